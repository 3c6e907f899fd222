"""MLP-Mixer against published parameter counts and a NumPy forward pass written from the paper."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from patchnets.models import mlp_mixer
from patchnets.models.intermediates import capture_intermediates
from patchnets.models.layers import PatchEmbed
from patchnets.models.mlp_mixer import MlpMixer

# variant: (parameters without the head, with a head of 1000 classes), at 224 px. Rounded to millions, the first column
# is that of table 1 of arXiv 2105.01601; the exact figures follow from its sizes, and other implementations list them.
PUBLISHED = {
    "S/32": (18_591_624, 19_104_624),
    "S/16": (18_015_264, 18_528_264),
    "B/32": (59_524_428, 60_293_428),
    "B/16": (59_111_472, 59_880_472),
    "L/32": (205_914_264, 206_939_264),
    "L/16": (207_171_168, 208_196_168),
    "H/14": (431_069_952, 432_350_952),
}

# Small, and every size a different number, so that no two axes can be mistaken for each other.
SMALL = dict(num_classes=7, patch_size=4, depth=2, hidden_dim=10, tokens_mlp_dim=5, channels_mlp_dim=13)


def shapes(model: MlpMixer, height: int, width: int, channels: int) -> dict[str, tuple[int, ...]]:
    """{path: shape} of all parameters, without computing any."""
    image = jnp.zeros((1, height, width, channels))
    params = jax.eval_shape(lambda key: model.init(key, image, train=False), jax.random.key(0))["params"]
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(params, sep="/").items()}


def random_params(model: MlpMixer, height: int, width: int, channels: int, seed: int = 0) -> dict:
    """Parameters of which none is zero or one: kernels that keep the scale, scales about 1, biases about 0."""
    rng = np.random.default_rng(seed)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith("kernel"):
            return 1.5 * rng.standard_normal(shape) / math.sqrt(math.prod(shape[:-1]))
        return 0.3 * rng.standard_normal(shape) + (1.0 if path.endswith("scale") else 0.0)

    actual = shapes(model, height, width, channels)
    flat = {path: draw(path, shape).astype(np.float32) for path, shape in actual.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def images_of(batch: int, height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(99).standard_normal((batch, height, width, channels)).astype(np.float32)


def with_tables(model: MlpMixer, params: dict, images: jax.Array, **kwargs) -> tuple[jax.Array, list[jax.Array]]:
    """The logits, and the table of patches by channels after the stem and after every block."""
    tables: list[jax.Array] = []

    def note(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(context.module, PatchEmbed | mlp_mixer.MixerBlock):
            tables.append(result)
        return result

    with nn.intercept_methods(note):
        return model.apply({"params": params}, images, **kwargs), tables


# --- the paper, in NumPy ----------------------------------------------------------------------------------------------


def gelu_reference(x: np.ndarray, form: str) -> np.ndarray:
    if form == "exact":
        return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm_reference(x: np.ndarray, p: dict) -> np.ndarray:
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def mlp_reference(x: np.ndarray, p: dict, form: str) -> np.ndarray:
    hidden = gelu_reference(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], form)
    return hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def mixer_reference(params: dict, images: np.ndarray, patch: int, depth: int, form: str) -> dict[str, np.ndarray]:
    """Section 2 of the paper in float64, one image at a time: {what is sown, and "logits": array}."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    actual: dict[str, list[np.ndarray]] = {}
    for image in images.astype(np.float64):
        height, width, _ = image.shape
        table = []  # patches x channels: row by row over the image, each patch projected by the same matrix
        for top in range(0, height, patch):
            for left in range(0, width, patch):
                piece = image[top : top + patch, left : left + patch]
                table.append(np.einsum("ijc,ijcf->f", piece, params["stem"]["kernel"]) + params["stem"]["bias"])
        x = np.stack(table)
        actual.setdefault("stem", []).append(x)
        for i in range(depth):
            block = params[f"MixerBlock_{i}"]
            columns = layer_norm_reference(x, block["LayerNorm_0"]).T  # every channel's values over the patches
            x = x + mlp_reference(columns, block["token_mixing"], form).T
            x = x + mlp_reference(layer_norm_reference(x, block["LayerNorm_1"]), block["channel_mixing"], form)
            actual.setdefault(f"block_{i}", []).append(x)
        pooled = layer_norm_reference(x, params["pre_head_layer_norm"]).mean(axis=0)
        actual.setdefault("pre_logits", []).append(pooled)
        actual.setdefault("logits", []).append(pooled @ params["head"]["kernel"] + params["head"]["bias"])
    return {name: np.stack(rows) for name, rows in actual.items()}


# --- counts and names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", list(mlp_mixer.VARIANTS))
def test_variant_has_the_published_number_of_parameters(variant):
    assert variant in PUBLISHED, f"{variant} has no row in the table of published counts: add one"
    actual = shapes(MlpMixer(num_classes=1000, **mlp_mixer.VARIANTS[variant]), 224, 224, 3)
    total = sum(math.prod(shape) for shape in actual.values())
    head = sum(math.prod(shape) for path, shape in actual.items() if path.startswith("head/"))
    assert (total - head, total) == PUBLISHED[variant]


def test_every_published_variant_is_offered():
    assert set(mlp_mixer.VARIANTS) == set(PUBLISHED)


def test_parameters_have_the_names_and_shapes_of_the_official_checkpoints():
    expected = {"stem/kernel": (4, 4, 3, 10), "stem/bias": (10,)}
    for i in (0, 1):
        block = f"MixerBlock_{i}"
        for j in (0, 1):
            expected |= {f"{block}/LayerNorm_{j}/{name}": (10,) for name in ("scale", "bias")}
        expected |= {f"{block}/token_mixing/Dense_0/kernel": (6, 5), f"{block}/token_mixing/Dense_0/bias": (5,)}
        expected |= {f"{block}/token_mixing/Dense_1/kernel": (5, 6), f"{block}/token_mixing/Dense_1/bias": (6,)}
        expected |= {f"{block}/channel_mixing/Dense_0/kernel": (10, 13), f"{block}/channel_mixing/Dense_0/bias": (13,)}
        expected |= {f"{block}/channel_mixing/Dense_1/kernel": (13, 10), f"{block}/channel_mixing/Dense_1/bias": (10,)}
    expected |= {"pre_head_layer_norm/scale": (10,), "pre_head_layer_norm/bias": (10,)}
    expected |= {"head/kernel": (10, 7), "head/bias": (7,)}
    assert shapes(MlpMixer(**SMALL), 8, 12, 3) == expected


# --- the forward pass -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gelu", "height", "width"), [("tanh", 8, 8), ("exact", 8, 8), ("tanh", 8, 12)])
def test_logits_equal_a_numpy_forward_pass_written_from_the_paper(gelu, height, width):
    model = MlpMixer(**SMALL, gelu=gelu)
    params, images = random_params(model, height, width, 3), images_of(3, height, width, 3)
    expected = mixer_reference(params, images, SMALL["patch_size"], SMALL["depth"], gelu)["logits"]
    logits = jax.jit(lambda p, x: model.apply({"params": p}, x, train=False))(params, images)
    assert logits.shape == (3, 7)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    form = {"tanh": "exact", "exact": "tanh"}[gelu]
    other = mixer_reference(params, images, SMALL["patch_size"], SMALL["depth"], form)["logits"]
    assert np.abs(other - expected).max() > 2e-4, "these inputs do not tell the two forms of GELU apart"


def test_epsilon_of_every_layer_norm_is_that_of_the_official_code():
    """With all tables of about 1e-3, what is added to a variance of 1e-6 decides every result."""
    model = MlpMixer(**SMALL)
    params, images = random_params(model, 8, 8, 3), images_of(3, 8, 8, 3)
    flat = traverse_util.flatten_dict(params, sep="/")
    flat |= {path: 1e-3 * value for path, value in flat.items() if path.startswith("stem/") or "/Dense_1/" in path}
    params = traverse_util.unflatten_dict(flat, sep="/")
    expected = mixer_reference(params, images, SMALL["patch_size"], SMALL["depth"], "tanh")["logits"]
    logits = jax.jit(lambda p, x: model.apply({"params": p}, x, train=False))(params, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_sown_intermediates_equal_the_numpy_forward_pass():
    model = MlpMixer(**SMALL)
    params, images = random_params(model, 8, 12, 3), images_of(3, 8, 12, 3)
    actual = jax.jit(lambda p, x: capture_intermediates(model, {"params": p}, x))(params, images)
    expected = mixer_reference(params, images, SMALL["patch_size"], SMALL["depth"], "tanh")
    for i in range(2):
        reads, writes = actual.pop(f"block_{i}/mixing")
        weights = params[f"MixerBlock_{i}"]["token_mixing"]
        np.testing.assert_array_equal(reads, weights["Dense_0"]["kernel"])
        np.testing.assert_array_equal(writes, weights["Dense_1"]["kernel"])
    assert {name: value.shape for name, value in actual.items()} == {
        "stem": (3, 6, 10),
        "block_0": (3, 6, 10),
        "block_1": (3, 6, 10),
        "pre_logits": (3, 10),
        "logits": (3, SMALL["num_classes"]),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, atol=1e-4, rtol=0, err_msg=name)


def test_nothing_is_computed_for_intermediates_that_nobody_asks_for():
    model = MlpMixer(**SMALL)
    params, images = random_params(model, 8, 8, 3), images_of(2, 8, 8, 3)
    program = jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x, train=False))(params, images).jaxpr
    (logits,) = program.outvars
    needed = {logits}
    for equation in reversed(program.eqns):
        assert needed & set(equation.outvars), f"no logit depends on {equation}"
        needed |= {variable for variable in equation.invars if not hasattr(variable, "val")}


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_and_logits_in_float32():
    half, full = MlpMixer(**SMALL, dtype=jnp.bfloat16), MlpMixer(**SMALL)
    params, images = random_params(full, 8, 8, 3), images_of(4, 8, 8, 3)
    made = jax.eval_shape(lambda key: half.init(key, images, train=False), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}

    rough, tables = jax.jit(lambda p, x: with_tables(half, p, x, train=False))(params, images)
    exact = jax.jit(lambda p, x: full.apply({"params": p}, x, train=False))(params, images)
    assert {table.dtype for table in tables} == {jnp.dtype("bfloat16")}
    assert rough.dtype == exact.dtype == jnp.float32
    error = np.abs(np.asarray(rough) - np.asarray(exact)).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.03  # eight bits of mantissa; not a float32 result under another name


def test_gradient_reaches_every_number_of_every_parameter_that_can_matter():
    model = MlpMixer(**SMALL)
    params, images = random_params(model, 8, 8, 3), images_of(4, 8, 8, 3)
    target = jax.nn.one_hot(np.array([0, 3, 6, 3]), 7)

    def loss(p):
        return -(jax.nn.log_softmax(model.apply({"params": p}, images, train=True)) * target).sum()

    for path, gradient in traverse_util.flatten_dict(jax.jit(jax.grad(loss))(params), sep="/").items():
        gradient = np.asarray(gradient)
        assert np.isfinite(gradient).all(), path
        if path.endswith("token_mixing/Dense_1/bias"):
            # It moves all channels of a patch alike, which every LayerNorm after it takes away again.
            assert np.abs(gradient).max() < 1e-5, path
        else:
            assert np.abs(gradient).max() > 1e-3 and (gradient != 0).all(), path


# --- the start --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_initial_parameters_have_lecun_statistics_and_initial_logits_are_zero():
    model = MlpMixer(num_classes=9, patch_size=8, depth=1, hidden_dim=96, tokens_mlp_dim=80, channels_mlp_dim=120)
    images = images_of(2, 64, 64, 3)
    variables = jax.jit(lambda key: model.init(key, images[:1], train=False))(jax.random.key(3))
    assert set(variables) == {"params"}
    flat = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(variables["params"], sep="/").items()}
    fan_in = {
        "stem": 8 * 8 * 3,
        "MixerBlock_0/token_mixing/Dense_0": 64,
        "MixerBlock_0/token_mixing/Dense_1": 80,
        "MixerBlock_0/channel_mixing/Dense_0": 96,
        "MixerBlock_0/channel_mixing/Dense_1": 120,
    }
    for path, value in flat.items():
        layer, _, kind = path.rpartition("/")
        if layer in fan_in and kind == "kernel":
            std, n = 1 / math.sqrt(fan_in[layer]), value.size
            assert n > 5000 and abs(value.mean()) < 5 * std / math.sqrt(n), path
            assert abs(value.std() - std) < 5 * std / math.sqrt(2 * n), path  # five standard errors
            assert np.abs(value).max() <= 2 * std / 0.8796, path  # a normal cut at two deviations, then rescaled
        else:
            assert (value == (1.0 if kind == "scale" else 0.0)).all(), path
    assert sum(path.endswith("kernel") for path in flat) == len(fan_in) + 1  # and the head, which is zero
    assert (np.asarray(model.apply(variables, images, train=False)) == 0).all()


# --- regularization ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_stochastic_depth_grows_linearly_from_none_in_the_first_block_to_all_in_the_last():
    depth, rate, examples = 5, 0.8, 6000
    model = MlpMixer(
        num_classes=2,
        patch_size=1,
        depth=depth,
        hidden_dim=3,
        tokens_mlp_dim=2,
        channels_mlp_dim=2,
        drop_path_rate=rate,
    )
    params, images = random_params(model, 1, 2, 1), images_of(examples, 1, 2, 1)
    _, states = jax.jit(lambda p, x, key: with_tables(model, p, x, train=True, rngs={"dropout": key}))(
        params, images, jax.random.key(5)
    )
    states = [np.asarray(state) for state in states]
    for i in range(depth):
        unchanged = (states[i + 1] == states[i]).reshape(examples, -1)
        dropped = unchanged.all(axis=1)
        assert (unchanged.mean(axis=1)[~dropped] < 0.5).all(), "part of an example was dropped"
        # An example passes a block unchanged when both of its branches are dropped, each with the block's own rate.
        expected = (rate * i / (depth - 1)) ** 2
        error = math.sqrt(expected * (1 - expected) / examples)
        assert abs(dropped.mean() - expected) <= 5 * error, f"block {i}"


@pytest.mark.slow
def test_dropout_and_stochastic_depth_change_training_alone():
    plain = MlpMixer(**SMALL)
    noisy = MlpMixer(**SMALL, dropout_rate=0.5, drop_path_rate=0.9)
    params, images = random_params(plain, 8, 8, 3), images_of(4, 8, 8, 3)

    @jax.jit
    def outcomes(p, x, key):
        return (
            plain.apply({"params": p}, x, train=False),
            plain.apply({"params": p}, x, train=True),
            noisy.apply({"params": p}, x, train=False),
            noisy.apply({"params": p}, x, train=True, rngs={"dropout": key}),
        )

    expected, plain_training, evaluated, trained = outcomes(params, images, jax.random.key(0))
    np.testing.assert_array_equal(plain_training, expected)
    np.testing.assert_array_equal(evaluated, expected)
    assert (np.abs(trained - expected).max(axis=1) > 0.01).all()


@pytest.mark.slow
def test_dropout_falls_on_the_outputs_of_both_mlps():
    """With a rate near one hardly anything but the skip connections is left: the last table is the stem's."""
    model = MlpMixer(**SMALL, dropout_rate=0.999)
    params, images = random_params(model, 8, 8, 3), images_of(4, 8, 8, 3)
    _, tables = jax.jit(lambda p, x, key: with_tables(model, p, x, train=True, rngs={"dropout": key}))(
        params, images, jax.random.key(1)
    )
    assert np.mean(np.asarray(tables[0]) == np.asarray(tables[-1])) > 0.97
