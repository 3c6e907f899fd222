"""The five Keras examples: preprocessing layers, network, optimizer, metrics.

"Image classification with modern MLP models" (Mixer, FNet, gMLP), "Image classification with Vision Transformer" and
"Image classification with ConvMixer", reimplemented with the examples' sizes and learning rates. Images are uint8, 32
pixels a side. tests/parity compares the parameter counts with the published ones.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

Layers = Any  # keras.layers.Layer, or a tensor of Keras
Block = Callable[[Layers], Layers]


def gelu(units: int) -> Layers:
    return layers.Dense(units, activation="gelu")


def norm() -> Layers:
    return layers.LayerNormalization(epsilon=1e-6)


class Patches(layers.Layer):
    """Convert images to (batch, patches, values per patch)."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def call(self, images: Any) -> Any:
        patches = ops.image.extract_patches(images, size=self.size)
        return ops.reshape(patches, (ops.shape(patches)[0], patches.shape[1] * patches.shape[2], patches.shape[3]))


class Positions(layers.Layer):
    """Add a learned vector to each patch."""

    def __init__(self, patches: int, width: int, start: str):
        super().__init__()
        self.patches, self.table = patches, layers.Embedding(patches, width, embeddings_initializer=start)

    def call(self, x: Any) -> Any:
        return x + self.table(ops.arange(self.patches))


class MixerBlock(layers.Layer):
    def __init__(self, patches: int, width: int, dropout: float):
        super().__init__()
        self.tokens = keras.Sequential([gelu(patches), layers.Dense(patches), layers.Dropout(dropout)])
        self.channels = keras.Sequential([gelu(patches), layers.Dense(width), layers.Dropout(dropout)])
        self.norm = norm()

    def call(self, x: Any) -> Any:
        y = self.tokens(ops.transpose(self.norm(x), (0, 2, 1)))
        x = x + ops.transpose(y, (0, 2, 1))
        return x + self.channels(self.norm(x))


class FnetBlock(layers.Layer):
    def __init__(self, patches: int, width: int, dropout: float):
        super().__init__()
        self.mlp = keras.Sequential([gelu(width), layers.Dropout(dropout), layers.Dense(width)])
        self.first, self.second = norm(), norm()

    def call(self, x: Any) -> Any:
        real, _ = ops.fft2((x, ops.zeros_like(x)))
        x = self.first(x + real)
        return self.second(x + self.mlp(x))


class GmlpBlock(layers.Layer):
    def __init__(self, patches: int, width: int, dropout: float):
        super().__init__()
        self.expand = keras.Sequential([gelu(2 * width), layers.Dropout(dropout)])
        self.project = layers.Dense(width)
        self.spatial = layers.Dense(patches, bias_initializer="ones")
        self.outer, self.gate = norm(), norm()

    def call(self, x: Any) -> Any:
        x = self.outer(x)
        u, v = ops.split(self.expand(x), 2, axis=-1)
        v = ops.transpose(self.spatial(ops.transpose(self.gate(v), (0, 2, 1))), (0, 2, 1))
        return x + self.project(u * v)


def fitted(images: np.ndarray, size: int, *more: Layers) -> list[Layers]:
    """Return the examples' preprocessing: normalization by `images`, resizing, flip, and `more`."""
    normalization = layers.Normalization()
    normalization.adapt(images)
    return [normalization, layers.Resizing(size, size), layers.RandomFlip("horizontal"), *more]


def zoom() -> Layers:
    return layers.RandomZoom(height_factor=0.2, width_factor=0.2)


def preprocessing(name: str, images: np.ndarray) -> list[Layers]:
    """Return the preprocessing layers of a tutorial; with JAX, tf.data accepts single layers but no Sequential."""
    if name == "convmixer":
        return [layers.RandomCrop(32, 32), layers.RandomFlip("horizontal")]
    if name == "vit":
        return fitted(images, 72, layers.RandomRotation(factor=0.02), zoom())
    return fitted(images, 64, zoom())


def mlp(name: str, images: np.ndarray) -> Layers:
    """Build Mixer, FNet or gMLP for CIFAR-100."""
    block = {"mixer": MixerBlock, "fnet": FnetBlock, "gmlp": GmlpBlock}[name]
    patches, width, dropout = 64, 256, 0.2
    inputs = keras.Input((32, 32, 3))
    x = layers.Dense(width)(Patches(8)(keras.Sequential(preprocessing(name, images))(inputs)))
    if name == "fnet":
        x = Positions(patches, width, "glorot_uniform")(x)
    x = keras.Sequential([block(patches, width, dropout) for _ in range(4)])(x)
    x = layers.Dropout(dropout)(layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, layers.Dense(100)(x))


def vit(images: np.ndarray) -> Layers:
    """Build the Vision Transformer for CIFAR-100."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Dense(64)(Patches(6)(keras.Sequential(preprocessing("vit", images))(inputs)))
    x = Positions(144, 64, "uniform")(x)
    for _ in range(8):
        y = norm()(x)
        x = layers.Add()([layers.MultiHeadAttention(num_heads=4, key_dim=64, dropout=0.1)(y, y), x])
        y = norm()(x)
        for units in (128, 64):
            y = layers.Dropout(0.1)(gelu(units)(y))
        x = layers.Add()([y, x])
    x = layers.Dropout(0.5)(layers.Flatten()(norm()(x)))
    for units in (2048, 1024):
        x = layers.Dropout(0.5)(gelu(units)(x))
    return keras.Model(inputs, layers.Dense(100)(x))


def convmixer() -> Layers:
    """Build ConvMixer-256/8 for CIFAR-10; its images are augmented in the pipeline."""

    def activation_norm(x: Any) -> Any:
        return layers.BatchNormalization()(layers.Activation("gelu")(x))

    inputs = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = activation_norm(layers.Conv2D(256, kernel_size=2, strides=2)(x))
    for _ in range(8):
        y = activation_norm(layers.DepthwiseConv2D(kernel_size=5, padding="same")(x))
        x = activation_norm(layers.Conv2D(256, kernel_size=1)(layers.Add()([y, x])))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def build(name: str, images: np.ndarray) -> Layers:
    """Build a tutorial's network, with its preprocessing fitted to `images`."""
    if name == "convmixer":
        return convmixer()
    return vit(images) if name == "vit" else mlp(name, images)


def compiled(name: str, model: Layers, learning_rate: float) -> Layers:
    """Compile the model like the examples."""
    top1 = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    top5 = keras.metrics.SparseTopKCategoricalAccuracy(5, name="top5-accuracy")
    model.compile(
        optimizer=keras.optimizers.AdamW(learning_rate=learning_rate, weight_decay=1e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=name != "convmixer"),
        metrics=[top1] if name == "convmixer" else [top1, top5],
    )
    return model
