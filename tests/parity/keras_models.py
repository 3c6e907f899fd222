"""The tutorials' networks in Keras: evaluation only, so without dropout, and fed with images of their final size.

Layers bear the paths of our parameters, with dots for slashes, so that weights can be carried over by name.
"""

import tempfile

import pytest

# Keras reads both when it is first imported: it computes with JAX, and writes no settings into the user's home.
with pytest.MonkeyPatch.context() as _patch, tempfile.TemporaryDirectory() as _home:
    _patch.setenv("KERAS_BACKEND", "jax")
    _patch.setenv("KERAS_HOME", _home)
    keras = pytest.importorskip("keras")
if keras.backend.backend() != "jax":
    pytest.skip(f"Keras already computes with {keras.backend.backend()}, not with JAX", allow_module_level=True)

layers, ops = keras.layers, keras.ops


def gelu_dense(units, name):
    return layers.Dense(units, activation="gelu", name=name)


def norm(name, **settings):
    return layers.LayerNormalization(**{"epsilon": 1e-6} | settings, name=name)


def patches_of(images, size):
    """(batch, patches, numbers in a patch): rows of pixels, pixels of a row, colors of a pixel."""
    cut = ops.image.extract_patches(images, (size, size))
    return layers.Reshape((-1, cut.shape[-1]))(cut)


class Positions(layers.Layer):
    """Adds one learned vector to each patch."""

    def __init__(self, start, **settings):
        super().__init__(**settings)
        self.start = start

    def build(self, shape):
        self.table = layers.Embedding(*shape[1:], **self.start)
        self.table.build()

    def call(self, x):
        return x + self.table(ops.arange(x.shape[1]))


def mixer_block(x, name):
    """As many hidden units as patches in both MLPs, and one LayerNorm for both."""
    count, width = x.shape[1:]
    shared = norm(f"{name}.norm")
    y = layers.Permute((2, 1))(shared(x))
    y = layers.Dense(count, name=f"{name}.token_project")(gelu_dense(count, f"{name}.token_expand")(y))
    x = layers.Add()([x, layers.Permute((2, 1))(y)])
    y = gelu_dense(count, f"{name}.channel_expand")(shared(x))
    return layers.Add()([x, layers.Dense(width, name=f"{name}.channel_project")(y)])


def fnet_block(x, name):
    mixed, _ = ops.fft2((x, ops.zeros_like(x)))
    x = norm(f"{name}.mixing_norm")(layers.Add()([x, mixed]))
    y = layers.Dense(x.shape[-1], name=f"{name}.project")(gelu_dense(x.shape[-1], f"{name}.expand")(x))
    return norm(f"{name}.mlp_norm")(layers.Add()([x, y]))


def gmlp_block(x, name):
    """The skip connection carries the normalized input."""
    count, width = x.shape[1:]
    x = norm(f"{name}.norm")(x)
    u, v = ops.split(gelu_dense(2 * width, f"{name}.expand")(x), 2, axis=-1)
    v = layers.Permute((2, 1))(norm(f"{name}.gate_norm")(v))
    v = layers.Permute((2, 1))(layers.Dense(count, bias_initializer="ones", name=f"{name}.spatial")(v))
    y = layers.Dense(width, name=f"{name}.project")(layers.Multiply()([u, v]))
    return layers.Add()([x, y])


def mlp_example(block, kind, positions=False):
    """The three networks of the MLP example, at 64 px for CIFAR-100."""
    images = keras.Input((64, 64, 3))
    x = layers.Dense(256, name="stem")(patches_of(images, 8))
    if positions:
        x = Positions(dict(embeddings_initializer="glorot_uniform"), name="position_embedding")(x)
    for i in range(4):
        x = block(x, f"{kind}_{i}")
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(images, layers.Dense(100, name="head")(x))


def vit():
    """At 72 px for CIFAR-100."""
    images = keras.Input((72, 72, 3))
    x = layers.Dense(64, name="stem")(patches_of(images, 6))
    x = Positions({}, name="position_embedding")(x)  # as an Embedding starts by itself
    for i in range(8):
        name = f"KerasVitBlock_{i}"
        y = norm(f"{name}.attention_norm")(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, 64, name=f"{name}.attention")(y, y)])
        y = norm(f"{name}.mlp_norm")(x)
        y = gelu_dense(64, f"{name}.project")(gelu_dense(128, f"{name}.expand")(y))
        x = layers.Add()([x, y])
    x = layers.Flatten()(norm("pre_head_layer_norm")(x))
    for i, units in enumerate((2048, 1024)):
        x = gelu_dense(units, f"head_hidden_{i}")(x)
    return keras.Model(images, layers.Dense(100, name="head")(x))


def convmixer():
    """ConvMixer-256/8 at 32 px for CIFAR-10."""

    def activation_norm(x, name):
        return layers.BatchNormalization(name=f"{name}.norm")(
            layers.Activation("gelu")(x)
        )  # epsilon .001, momentum .99

    images = keras.Input((32, 32, 3))
    x = activation_norm(layers.Conv2D(256, 2, strides=2, name="stem")(images), "stem_norm")
    for i in range(8):
        name = f"ConvMixerBlock_{i}"
        y = layers.Conv2D(256, 5, padding="same", groups=256, name=f"{name}.depthwise")(x)
        x = layers.Add()([activation_norm(y, f"{name}.depthwise_norm"), x])
        x = activation_norm(layers.Conv2D(256, 1, name=f"{name}.pointwise")(x), f"{name}.pointwise_norm")
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(10, name="head")(x))


def blog_mixer():
    """At 32 px for CIFAR-10; its LayerNorms are over the patches of every channel."""
    images = keras.Input((32, 32, 3))
    x = layers.Reshape((-1, 128))(layers.Conv2D(128, 4, strides=4, name="stem")(images))
    for i in range(8):
        name = f"BlogMixerKerasBlock_{i}"
        y = layers.Permute((2, 1))(norm(f"{name}.token_norm", axis=1, epsilon=1e-3)(x))
        y = layers.Dense(64, name=f"{name}.token_project")(gelu_dense(64, f"{name}.token_expand")(y))
        x = layers.Add()([x, layers.Permute((2, 1))(y)])
        y = gelu_dense(512, f"{name}.channel_expand")(norm(f"{name}.channel_norm", axis=1, epsilon=1e-3)(x))
        x = layers.Add()([x, layers.Dense(128, name=f"{name}.channel_project")(y)])
    x = norm("pre_head_layer_norm", epsilon=1e-3)(layers.Flatten()(x))
    return keras.Model(images, layers.Dense(10, name="head")(x))


BUILD = {
    "keras_mixer": lambda: mlp_example(mixer_block, "KerasMixerBlock"),
    "keras_fnet": lambda: mlp_example(fnet_block, "KerasFnetBlock", positions=True),
    "keras_gmlp": lambda: mlp_example(gmlp_block, "KerasGmlpBlock"),
    "keras_vit": vit,
    "keras_convmixer": convmixer,
    "blog_mixer_keras": blog_mixer,
}
