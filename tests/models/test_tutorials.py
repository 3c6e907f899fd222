"""The tutorials' networks against NumPy forward passes of their descriptions, published counts and initial values."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from reference import gelu, norm, parameters, patches
from test_convmixer import forward as convmixer_forward
from test_convmixer import variables_of as convmixer_variables

from patchnets.models import tutorials
from patchnets.models.layers import DenseOverPatches, Dropout

# network: (variant, pixels a side, classes, trainable parameters)
PUBLISHED = {
    "KerasMixer": ("MLP_VARIANTS", 64, 100, 242_788),
    "KerasFnet": ("MLP_VARIANTS", 64, 100, 621_924),
    "KerasGmlp": ("MLP_VARIANTS", 64, 100, 885_348),
    "KerasVit": ("VIT_VARIANTS", 72, 100, 21_759_012),
    "KerasConvMixer": ("CONVMIXER_VARIANTS", 32, 10, 594_186),
    "BlogMixerPytorch": ("BLOG_PYTORCH_VARIANTS", 224, 1000, 3_110_316),
    "BlogMixerKeras": ("BLOG_KERAS_VARIANTS", 32, 10, 1_226_890),
}
SMALL = dict(num_classes=5, patch_size=2, depth=2, hidden_dim=8)
MIXER = dict(tokens_mlp_dim=3, channels_mlp_dim=7)
SIZES = {
    "KerasMixer": dict(dropout_rate=0.2),
    "KerasFnet": dict(dropout_rate=0.2),
    "KerasGmlp": dict(dropout_rate=0.2),
    "KerasVit": dict(num_heads=3, mlp_dim=7, dropout_rate=0.1, head_dropout_rate=0.5),
    "BlogMixerPytorch": MIXER,
    "BlogMixerKeras": MIXER,
}
# Compiling is what these tests take their time for.
quick = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def make(name, **options):
    return getattr(tutorials, name)(**SMALL | SIZES[name] | options)


def images_of(batch, height, width):
    return np.random.default_rng(1).standard_normal((batch, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize("name", PUBLISHED)
def test_network_has_the_published_number_of_parameters(name):
    table, side, classes, expected = PUBLISHED[name]
    (sizes,) = getattr(tutorials, table).values()
    model = getattr(tutorials, name)(num_classes=classes, **sizes)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    count = {key: sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for key, tree in shapes.items()}
    assert count == {"params": expected} | ({"batch_stats": 8_704} if name == "KerasConvMixer" else {})


# --- forward passes, one image at a time: x is (patches, channels) ----------------------------------------------------


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def act(x):
    return gelu(x, "exact")


def mixer_block(x, p):
    shared = p["norm"]
    x = x + dense(act(dense(norm(x, **shared, epsilon=1e-6).T, p["token_expand"])), p["token_project"]).T
    return x + dense(act(dense(norm(x, **shared, epsilon=1e-6), p["channel_expand"])), p["channel_project"])


def fnet_block(x, p):
    x = norm(x + np.fft.fft2(x).real, **p["mixing_norm"], epsilon=1e-6)
    return norm(x + dense(act(dense(x, p["expand"])), p["project"]), **p["mlp_norm"], epsilon=1e-6)


def gmlp_block(x, p):
    x = norm(x, **p["norm"], epsilon=1e-6)
    u, v = np.split(act(dense(x, p["expand"])), 2, axis=1)
    v = dense(norm(v, **p["gate_norm"], epsilon=1e-6).T, p["spatial"]).T
    return x + dense(u * v, p["project"])


def vit_block(x, p):
    y, q = norm(x, **p["attention_norm"], epsilon=1e-6), p["attention"]
    heads, width = q["query_bias"].shape
    x = x + q["out_bias"]
    for h in range(heads):
        query, key, value = (y @ q[f"{n}_kernel"][:, h] + q[f"{n}_bias"][h] for n in ("query", "key", "value"))
        weights = np.exp(query @ key.T / math.sqrt(width))
        x = x + weights / weights.sum(1, keepdims=True) @ value @ q["out_kernel"][h]
    return x + act(dense(act(dense(norm(x, **p["mlp_norm"], epsilon=1e-6), p["expand"])), p["project"]))


def torch_block(x, p):
    mlp = lambda x, q: dense(act(dense(x, q["Dense_0"])), q["Dense_1"])
    x = x + mlp(norm(x, **p["LayerNorm_0"], epsilon=1e-5).T, p["token_mixing"]).T
    return x + mlp(norm(x, **p["LayerNorm_1"], epsilon=1e-5), p["channel_mixing"])


def over_patches(x, p):
    """Every channel normalized over the patches, each of which has a scale and a bias."""
    mean = x.mean(0)
    return (x - mean) / np.sqrt(x.var(0) + 1e-3) * p["scale"][:, None] + p["bias"][:, None]


def blog_block(x, p):
    x = x + dense(act(dense(over_patches(x, p["token_norm"]).T, p["token_expand"])), p["token_project"]).T
    return x + dense(act(dense(over_patches(x, p["channel_norm"]), p["channel_expand"])), p["channel_project"])


def vit_head(x, p):
    x = norm(x, **p["pre_head_layer_norm"], epsilon=1e-6).ravel()
    return act(dense(act(dense(x, p["head_hidden_0"])), p["head_hidden_1"]))


BLOCKS = {
    "KerasMixer": (mixer_block, lambda x, p: x.mean(0)),
    "KerasFnet": (fnet_block, lambda x, p: x.mean(0)),
    "KerasGmlp": (gmlp_block, lambda x, p: x.mean(0)),
    "KerasVit": (vit_block, vit_head),
    "BlogMixerPytorch": (torch_block, lambda x, p: norm(x, **p["pre_head_layer_norm"], epsilon=1e-5).mean(0)),
    "BlogMixerKeras": (blog_block, lambda x, p: norm(x.ravel(), **p["pre_head_layer_norm"], epsilon=1e-3)),
}


def forward(name, params, image):
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    block, before_head = BLOCKS[name]
    x = patches(image.astype(np.float64), 2, **p["stem"]) + p.get("position_embedding", 0)
    for i in range(2):
        (layers,) = (value for key, value in p.items() if key.endswith(f"Block_{i}"))
        x = block(x, layers)
    return dense(before_head(x, p), p["head"])


def scaled_parameters(model, height, width):
    """Random, none of them zero, kernels so that numbers keep their size."""
    flat = traverse_util.flatten_dict(parameters(model, height, width), sep="/")
    kernels = {path: 2 * x / math.sqrt(math.prod(x.shape[:-1])) for path, x in flat.items() if path.endswith("kernel")}
    return traverse_util.unflatten_dict(flat | kernels, sep="/")


@pytest.mark.parametrize("name", BLOCKS)
def test_logits_equal_a_numpy_forward_pass(name):
    model = make(name)
    params, images = scaled_parameters(model, 4, 10), images_of(3, 4, 10)
    actual = quick(lambda p, x: model.apply({"params": p}, x, train=False))(params, images)
    np.testing.assert_allclose(actual, [forward(name, params, image) for image in images], rtol=1e-4, atol=1e-4)


def test_convmixer_equals_a_numpy_forward_pass_with_the_batch_norm_of_keras():
    model = tutorials.KerasConvMixer(**SMALL, kernel_size=5)
    variables, images = convmixer_variables(model, 6, 10), images_of(4, 6, 10)
    variables["batch_stats"]["stem_norm"]["norm"]["var"][:] = 1e-3  # the size of what is added to it
    evaluated, (_, new) = quick(
        lambda v, x: (model.apply(v, x, train=False), model.apply(v, x, train=True, mutable=["batch_stats"]))
    )(variables, images)
    described = dict(patch=2, depth=2, epsilon=1e-3, keep=0.99)
    np.testing.assert_allclose(evaluated, convmixer_forward(variables, images, **described)[0], rtol=1e-4, atol=1e-4)
    _, after = convmixer_forward(variables, images, **described, train=True)
    for path, value in traverse_util.flatten_dict(new["batch_stats"], sep="/").items():
        np.testing.assert_allclose(value, after[path], rtol=1e-4, atol=1e-4, err_msg=path)


# --- dropout ----------------------------------------------------------------------------------------------------------

# What is called in a network, block by block; * is dropout.
ORDER = {
    "KerasMixer": (
        "norm token_expand token_project * norm channel_expand channel_project *",
        "* head",
    ),
    "KerasFnet": ("mixing_norm expand * project mlp_norm", "* head"),
    "KerasGmlp": ("norm expand * gate_norm spatial project", "* head"),
    "KerasVit": (
        "attention_norm * mlp_norm expand * project *",
        "pre_head_layer_norm * head_hidden_0 * head_hidden_1 * head",
    ),
}


@pytest.mark.parametrize("name", ORDER)
def test_dropout_sits_where_the_description_says(name):
    model, called = make(name), []

    def note(call, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(
            context.module, nn.Dense | DenseOverPatches | nn.LayerNorm | Dropout
        ):
            called.append("*" if isinstance(context.module, Dropout) else context.module.name)
        return call(*args, **kwargs)

    params = parameters(model, 8, 8)
    with nn.intercept_methods(note):
        jax.eval_shape(
            lambda p: model.apply({"params": p}, images_of(1, 8, 8), train=True, rngs={"dropout": jax.random.key(0)}),
            params,
        )
    block, head = ORDER[name]
    assert " ".join(called) == f"{block} {block} {head}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDER)
def test_dropout_drops_the_shares_asked_for_and_nothing_in_evaluation(name):
    model, still = make(name), dict(dropout_rate=0.0)
    plain = make(name, **still | (dict(head_dropout_rate=0.0) if name == "KerasVit" else {}))
    params, images = scaled_parameters(model, 4, 10), images_of(200, 4, 10)
    watch = dict(capture_intermediates=lambda module, _: isinstance(module, Dropout), mutable=["intermediates"])

    @quick
    def run(p, x, key):
        return (
            model.apply({"params": p}, x, train=False, **watch),
            model.apply({"params": p}, x, train=True, rngs={"dropout": key}, **watch),
            plain.apply({"params": p}, x, train=True),
        )

    (evaluated, calm), (trained, noisy), expected = run(params, images, jax.random.key(2))
    np.testing.assert_allclose(evaluated, expected, rtol=1e-5, atol=1e-5)
    assert (np.abs(trained - evaluated).max(1) > 1e-3).all()
    calm, noisy = (traverse_util.flatten_dict(observed["intermediates"], sep="/") for observed in (calm, noisy))
    calm, noisy = (
        {path: np.asarray(x[0]) for path, x in observed.items() if "Dropout" in path} for observed in (calm, noisy)
    )
    for path, value in noisy.items():
        in_head = "Block" not in path
        rate = 0.5 if name == "KerasVit" and in_head else {"KerasVit": 0.1}.get(name, 0.2)
        error = 5 * math.sqrt(rate * (1 - rate) / value.size)
        assert (value == 0).mean() == pytest.approx(rate, abs=error), path
    block = "KerasVitBlock_0/attention" if name == "KerasVit" else f"{name}Block_0"
    first = f"{block}/Dropout_0/__call__"  # nothing random is before it
    kept = noisy[first] != 0
    np.testing.assert_allclose(
        noisy[first][kept], calm[first][kept] / (1 - (0.1 if name == "KerasVit" else 0.2)), rtol=1e-4, atol=1e-6
    )
    after_gelu = {
        "KerasFnet": ["KerasFnetBlock_0/Dropout_0"],
        "KerasGmlp": ["KerasGmlpBlock_0/Dropout_0"],
        "KerasVit": ["KerasVitBlock_0/Dropout_0", "KerasVitBlock_0/Dropout_1", "Dropout_1", "Dropout_2"],
    }.get(name, [])
    for path in after_gelu:
        value = calm[f"{path}/__call__"]
        assert -0.16 > value.min() > -0.17 and value.max() > 0.5, f"{path}: GELU has its minimum at -0.16997"


def test_keras_mixer_has_one_layer_norm_a_block():
    block = parameters(make("KerasMixer"), 8, 8)["KerasMixerBlock_0"]
    assert {name for name, layer in block.items() if "scale" in layer} == {"norm"}


# --- the start --------------------------------------------------------------------------------------------------------


@functools.cache
def fresh(name, **options):
    model = make(name, hidden_dim=32, depth=1, patch_size=4, **options)
    params = quick(lambda key: model.init(key, jnp.zeros((1, 16, 32, 3)), train=False))(jax.random.key(0))["params"]
    return {path: np.asarray(x) for path, x in traverse_util.flatten_dict(params, sep="/").items()}


def assert_uniform(value, limit, path):
    assert 0.9 * limit < np.abs(value).max() <= limit * 1.00001, path
    std = limit / math.sqrt(3)
    assert abs(value.std() - std) < 5 * std * math.sqrt(0.2 / value.size), path
    assert abs(value.mean()) < 5 * std / math.sqrt(value.size), path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["KerasMixer", "KerasFnet", "KerasGmlp", "KerasVit", "BlogMixerKeras"])
def test_kernels_start_uniform_within_the_limits_of_keras(name):
    for path, value in fresh(name).items():
        if path.startswith("stem/"):
            continue
        if path.endswith("kernel"):
            # Keras takes the last two axes for inputs and outputs, and the others for places, as in a convolution.
            places = math.prod(value.shape[:-2])
            assert_uniform(value, math.sqrt(6 / (places * (value.shape[-2] + value.shape[-1]))), path)
        elif path == "position_embedding":
            assert_uniform(value, 0.05 if name == "KerasVit" else math.sqrt(6 / (32 + 32)), path)
        else:
            assert (value == (path.endswith(("scale", "spatial/bias")))).all(), path


@pytest.mark.parametrize("name", ["KerasMixer", "KerasFnet", "KerasGmlp", "KerasVit"])
def test_stem_starts_as_the_dense_layer_on_flat_patches_that_it_is_in_the_examples(name):
    """As a convolution's, whose outputs count once for every pixel, the kernel would start several times smaller."""
    assert_uniform(fresh(name)["stem/kernel"], math.sqrt(6 / (4 * 4 * 3 + 32)), "stem/kernel")
    assert not fresh(name)["stem/bias"].any()


@pytest.mark.slow
def test_blog_mixer_in_pytorch_starts_as_pytorch_starts_layers_head_included():
    fan_in = {"stem": 48, "token_mixing/Dense_0": 32, "token_mixing/Dense_1": 64, "head": 32}
    fan_in |= {"channel_mixing/Dense_0": 32, "channel_mixing/Dense_1": 96}
    actual, observed = fresh("BlogMixerPytorch", tokens_mlp_dim=64, channels_mlp_dim=96, num_classes=70), 0
    for path, value in actual.items():
        layer, _, kind = path.removeprefix("MixerBlock_0/").rpartition("/")
        if layer in fan_in:
            assert_uniform(value, 1 / math.sqrt(fan_in[layer]), path)
            observed += 1
        else:
            assert (value == (kind == "scale")).all(), path
    assert observed == 12
