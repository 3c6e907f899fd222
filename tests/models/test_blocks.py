"""Blocks with `remat` and `scan` against plain ones, and captured intermediate values, for every network."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import traverse_util

from patchnets.models import MODELS
from patchnets.models.blocks import stack_blocks, unstack_blocks
from patchnets.models.intermediates import capture_intermediates

DEPTH, HEIGHT, WIDTH, PATCHES = 2, 4, 6, 6
COMMON = dict(num_classes=5, patch_size=2, depth=DEPTH, hidden_dim=8)
SIZES = {
    "mlp_mixer": dict(tokens_mlp_dim=3, channels_mlp_dim=7),
    "fnet": dict(mlp_dim=7),
    "gmlp": dict(ffn_dim=10),
    "convmixer": dict(kernel_size=3),
    "vit": dict(mlp_dim=7, num_heads=2, layer_scale=0.5),
    "keras_mixer": dict(dropout_rate=0.0),
    "keras_fnet": dict(dropout_rate=0.0),
    "keras_gmlp": dict(dropout_rate=0.0),
    "keras_vit": dict(num_heads=2, mlp_dim=7, dropout_rate=0.0, head_dropout_rate=0.0),
    "keras_convmixer": dict(kernel_size=3),
    "blog_mixer_pytorch": dict(tokens_mlp_dim=3, channels_mlp_dim=7),
    "blog_mixer_keras": dict(tokens_mlp_dim=3, channels_mlp_dim=7),
}
# Compiling is what these tests take their time for, and networks of a few numbers run fast enough without its best.
quick = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
EVERY = pytest.mark.parametrize("name", MODELS)


def make(name, **options):
    return MODELS[name][0](**COMMON | SIZES[name] | options)


IMAGES = np.random.default_rng(0).standard_normal((4, HEIGHT, WIDTH, 3)).astype(np.float32)


@functools.cache
def variables_of(name, depth=DEPTH):
    """Random values for everything, those of every block different; variances and scales above zero."""
    model = make(name, depth=depth)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES[:1], train=False))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        value = rng.standard_normal(leaf.shape)
        kind = path[-1].key
        if kind.endswith("kernel"):
            value = value / math.sqrt(math.prod(leaf.shape[:-1]))
        elif kind in ("scale", "var"):
            value = 0.5 + np.abs(value)
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def train(model, variables, **rngs):
    """Logits, gradients and updated statistics of a training step."""

    @quick
    def run(variables, images):
        rest = {name: tree for name, tree in variables.items() if name != "params"}

        def loss(params):
            logits, new = model.apply(
                {"params": params, **rest}, images, train=True, mutable=["batch_stats"], rngs=dict(rngs)
            )
            return jnp.square(logits - jnp.arange(5)).sum(), (logits, new)

        grads, (logits, new) = jax.grad(loss, has_aux=True)(variables["params"])
        return dict(logits=logits), dict(params=grads, **new)

    return run(variables, IMAGES)


@functools.cache
def plain_training(name):
    return train(make(name), variables_of(name))


def assert_near(actual, expected, tolerance=1e-5):
    """Leaf by leaf, relative to its largest number or, where it is small for sums that cancel out, the tree's."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for (path, a), (_, b) in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves_with_path(expected)):
        scale = max(np.abs(b).max(), 0.1 * largest)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


def test_every_architecture_has_sizes_here():
    assert set(SIZES) == set(MODELS)


@pytest.mark.slow
@EVERY
def test_the_gradient_reaches_every_parameter(name):
    _, rest = plain_training(name)
    for path, leaf in jax.tree.leaves_with_path(rest["params"]):
        position = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), position
        # A bias of the keys adds the same to all scores of a query, which the softmax takes away again.
        assert ("'key'" in position and "bias" in position) or "key_bias" in position or np.asarray(leaf).any(), (
            position
        )


@pytest.mark.slow
@EVERY
def test_blocks_computed_anew_give_the_same_logits_gradients_and_statistics(name):
    assert_near(train(make(name, remat=True), variables_of(name)), plain_training(name))


@pytest.mark.slow
@EVERY
def test_scanned_blocks_give_the_same_logits_gradients_and_statistics(name):
    logits, rest = plain_training(name)
    actual, others = train(make(name, scan=True), stack_blocks(variables_of(name)))
    assert_near((actual, others), (logits, stack_blocks(rest)))
    assert ("batch_stats" in others) == ("convmixer" in name)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(others))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gmlp", "convmixer"])
def test_scanned_blocks_computed_anew_give_the_same_too(name):
    logits, rest = plain_training(name)
    actual = train(make(name, scan=True, remat=True), stack_blocks(variables_of(name)))
    assert_near(actual, (logits, stack_blocks(rest)))


def backward_work(model, variables):
    """Number of matrix products in a training step, without compiling it."""
    loss = lambda p: jnp.square(model.apply({"params": p}, IMAGES, train=True)).sum()
    return str(jax.make_jaxpr(jax.grad(loss))(variables["params"])).count("dot_general")


@pytest.mark.slow
def test_remat_computes_twice_and_scan_writes_a_block_once():
    task = {
        (depth, how): backward_work(
            make("mlp_mixer", depth=depth, **{how: True} if how else {}),
            stack_blocks(variables_of("mlp_mixer", depth)) if how == "scan" else variables_of("mlp_mixer", depth),
        )
        for depth in (2, 4)
        for how in ("", "remat", "scan")
    }
    assert task[2, "remat"] > task[2, ""] and task[4, ""] > task[2, ""]
    assert task[4, "scan"] == task[2, "scan"]


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
def test_blocks_computed_anew_drop_what_they_dropped_before(scan):
    """Dropout in the backward pass is that of the forward pass, or gradients would be those of another network."""
    noise = dict(dropout_rate=0.4, drop_path_rate=0.5, scan=scan)
    variables = stack_blocks(variables_of("mlp_mixer")) if scan else variables_of("mlp_mixer")
    expected, actual = (
        train(make("mlp_mixer", **noise, remat=remat), variables, dropout=jax.random.key(3)) for remat in (False, True)
    )
    assert_near(actual, expected)
    assert np.abs(actual[0]["logits"] - plain_training("mlp_mixer")[0]["logits"]).max() > 0.01


# --- stacking ---------------------------------------------------------------------------------------------------------


@EVERY
def test_unstacking_inverts_stacking_and_both_have_the_shapes_that_the_networks_ask_for(name):
    variables = variables_of(name)
    stacked = stack_blocks(variables)
    shapes = lambda model: jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES[:1], train=False))
    sizes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, jnp.dtype(leaf.dtype)), tree)
    assert sizes(stacked) == sizes(shapes(make(name, scan=True)))
    apart = unstack_blocks(stacked)
    assert sizes(apart) == sizes(variables) and sizes(unstack_blocks(variables)) == sizes(variables)
    jax.tree.map(np.testing.assert_array_equal, apart, variables)


@pytest.mark.slow
def test_more_than_ten_blocks_keep_their_order():
    variables = variables_of("mlp_mixer", 12)
    assert list(variables["params"])[:4] != [f"MixerBlock_{i}" for i in range(4)], "they come in alphabetical order"
    stacked = stack_blocks(variables)
    kernels = stacked["params"]["MixerBlocks"]["channel_mixing"]["Dense_0"]["kernel"]
    for i in range(12):
        kernel = variables["params"][f"MixerBlock_{i}"]["channel_mixing"]["Dense_0"]["kernel"]
        np.testing.assert_array_equal(kernels[i], kernel)
        apart = unstack_blocks(stacked)["params"][f"MixerBlock_{i}"]
        np.testing.assert_array_equal(apart["channel_mixing"]["Dense_0"]["kernel"], kernel)
    plain, scanned = make("mlp_mixer", depth=12), make("mlp_mixer", depth=12, scan=True)
    expected = quick(lambda v, x: capture_intermediates(plain, v, x))(variables, IMAGES)
    actual = quick(lambda v, x: capture_intermediates(scanned, v, x))(stacked, IMAGES)
    assert_near(actual, expected)
    assert [name for name in plain_names("mlp_mixer", 12) if name not in actual] == []
    turned = jax.tree.map(lambda leaf: leaf[::-1], stacked["params"]["MixerBlocks"])
    other = scanned.apply({"params": stacked["params"] | {"MixerBlocks": turned}}, IMAGES, train=False)
    assert np.abs(other - expected["logits"]).max() > 1e-2, "the order would not have shown"


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
def test_later_blocks_are_dropped_more_often_and_each_on_its_own(scan):
    depth, rate, examples = 5, 0.8, 4000
    sizes = dict(num_classes=2, patch_size=1, depth=depth, hidden_dim=3, ffn_dim=4)
    model = MODELS["gmlp"][0](**sizes, survival_probability=1 - rate, scan=scan)
    images = np.random.default_rng(2).standard_normal((examples, 1, 2, 1)).astype(np.float32)
    variables = model.init(jax.random.key(0), images[:1], train=False)
    _, observed = quick(
        lambda v, x, key: model.apply(v, x, train=True, rngs={"dropout": key}, mutable=["intermediates"])
    )(variables, images, jax.random.key(5))
    observed = observed["intermediates"]
    x = [np.asarray(observed["stem"]["patches"][0])] + [np.asarray(observed[f"block_{i}"][0]) for i in range(depth)]
    dropped = np.stack([(after == before).all((1, 2)) for before, after in itertools.pairwise(x)])
    expected = rate * np.arange(depth) / (depth - 1)
    error = np.sqrt(expected * (1 - expected) / examples)
    assert (np.abs(dropped.mean(1) - expected) <= 5 * error).all() and not dropped[0].any()
    # One mask for all blocks would drop in a later block whatever is dropped in an earlier one.
    for i, j in ((1, 2), (2, 3), (2, 4), (3, 4)):
        both = expected[i] * expected[j]
        assert (dropped[i] & dropped[j]).mean() == pytest.approx(both, abs=5 * math.sqrt(both / examples))


# --- looking inside ---------------------------------------------------------------------------------------------------


def plain_names(name, depth):
    inside = [entry for i in range(depth) for entry in (f"block_{i}", f"block_{i}/mixing")]
    return ["stem", *inside, "pre_logits", "logits"]


@functools.cache
def looked(name, scan=False, dtype=jnp.float32):
    variables = variables_of(name)
    model = make(name, scan=scan, dtype=dtype)
    return quick(lambda v, x: capture_intermediates(model, v, x))(
        stack_blocks(variables) if scan else variables, IMAGES
    )


@pytest.mark.slow
@EVERY
def test_look_finds_the_documented_arrays_scanned_or_not(name):
    model, actual = make(name), look_in_order(name)
    assert actual == plain_names(name, DEPTH)
    observed = looked(name)
    batch, tokens = len(IMAGES), PATCHES + (name == "vit")  # the class token is one of ViT's
    units = {"keras_mixer": PATCHES}.get(name, SIZES[name].get("tokens_mlp_dim"))
    mixing = {
        "mixer": [(PATCHES, units), (units, PATCHES)],
        "gmlp": [(PATCHES, PATCHES)],
        "fnet": [(PATCHES, PATCHES), (PATCHES, PATCHES)],
        "vit": [(batch, 2, tokens, tokens)],
        "convmixer": [(3, 3, 8)],
    }
    kind = next(kind for kind in ("convmixer", "mixer", "gmlp", "fnet", "vit") if kind in name)
    table = (batch, 2, 3, 8) if kind == "convmixer" else (batch, tokens, 8)
    assert observed["stem"].shape == (batch, PATCHES, 8) and observed["logits"].shape == (batch, model.num_classes)
    wide = {"keras_vit": 1024, "blog_mixer_keras": PATCHES * 8}
    assert observed["pre_logits"].shape == (batch, wide.get(name, 8))
    for i in range(DEPTH):
        assert observed[f"block_{i}"].shape == table
        assert [leaf.shape for leaf in jax.tree.leaves(observed[f"block_{i}/mixing"])] == mixing[kind]
    assert_near(looked(name, scan=True), observed)
    expected = jax.eval_shape(lambda v: model.apply(v, IMAGES, train=False), variables_of(name))
    assert expected.shape == observed["logits"].shape
    head = variables_of(name)["params"]["head"]
    np.testing.assert_allclose(
        observed["pre_logits"] @ head["kernel"] + head["bias"], observed["logits"], rtol=1e-4, atol=1e-4
    )


def look_in_order(name):
    """The names in the order in which `look` gives them; a compiled function would sort them."""
    names = []

    def run(v):
        names.extend(capture_intermediates(make(name), v, IMAGES))

    jax.eval_shape(run, variables_of(name))
    return names


@EVERY
def test_mixing_is_what_a_block_mixes_with(name):
    """The matrices that `look` gives, held against the parameters or, for attention, used to compute the block."""
    observed, params = looked(name), jax.tree.map(np.asarray, variables_of(name)["params"])
    kind = next(key for key in params if "Block" in key).rpartition("_")[0]
    for i in range(DEPTH):
        block, mixing = params[f"{kind}_{i}"], observed[f"block_{i}/mixing"]
        flat = traverse_util.flatten_dict(block, sep="/")
        if "fnet" in name:
            transform = np.fft.fft(np.eye(PATCHES))
            np.testing.assert_allclose(mixing[0] - 1j * mixing[1], transform, atol=1e-6)
        elif "convmixer" in name:
            np.testing.assert_array_equal(mixing, block["depthwise"]["kernel"][:, :, 0])
        elif "gmlp" in name:
            gate = "spatial" if "keras" in name else "spatial_gating"
            np.testing.assert_array_equal(mixing, block[gate]["kernel"])
        elif "mixer" in name:
            pairs = [("token_mixing/Dense_0", "token_mixing/Dense_1"), ("token_expand", "token_project")]
            (pair,) = (pair for pair in pairs if f"{pair[0]}/kernel" in flat)
            for matrix, layer in zip(mixing, pair):
                np.testing.assert_array_equal(matrix, flat[f"{layer}/kernel"])
        elif i > 0:  # the first block's input is not among what is looked at
            np.testing.assert_allclose(np.sum(mixing, -1), 1, atol=1e-5)
            assert np.std(mixing) > 0.01
            block = {key.replace("_kernel", "/kernel").replace("_bias", "/bias"): leaf for key, leaf in flat.items()}
            x = np.asarray(observed[f"block_{i - 1}"])
            y = reference.norm(x, block["attention_norm/scale"], block["attention_norm/bias"], 1e-6)
            values = np.einsum("bnc,chd->bnhd", y, block["attention/value/kernel"]) + block["attention/value/bias"]
            mixed = np.einsum("bhqk,bkhd->bqhd", mixing, values)
            out = np.einsum("bqhd,hdc->bqc", mixed, block["attention/out/kernel"]) + block["attention/out/bias"]
            x = x + out * block.get("attention_scale", 1)
            y = reference.norm(x, block["mlp_norm/scale"], block["mlp_norm/bias"], 1e-6)
            if name == "vit":
                y = reference.gelu(y @ block["mlp/Dense_0/kernel"] + block["mlp/Dense_0/bias"], "tanh")
                y = (y @ block["mlp/Dense_1/kernel"] + block["mlp/Dense_1/bias"]) * block["mlp_scale"]
            else:
                for layer in ("expand", "project"):
                    y = reference.gelu(y @ block[f"{layer}/kernel"] + block[f"{layer}/bias"], "exact")
            np.testing.assert_allclose(x + y, observed[f"block_{i}"], rtol=1e-4, atol=1e-4)


# --- types and the start ----------------------------------------------------------------------------------------------


@EVERY
def test_bfloat16_keeps_parameters_and_logits_in_float32_scanned_too(name):
    for scan in (False, True):
        model = make(name, dtype=jnp.bfloat16, scan=scan)
        made = jax.eval_shape(lambda m=model: m.init(jax.random.key(0), IMAGES[:1], train=False))
        assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    rough, exact = looked(name, scan=True, dtype=jnp.bfloat16), looked(name)
    assert rough["logits"].dtype == exact["logits"].dtype == jnp.float32
    assert {rough[f"block_{i}"].dtype for i in range(DEPTH)} == {jnp.dtype("bfloat16")}
    error = np.abs(rough["logits"] - exact["logits"]).max() / np.abs(exact["logits"]).max()
    assert 1e-5 < error < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gmlp", "convmixer", "vit"])
def test_scanned_networks_start_with_the_statistics_of_plain_ones(name):
    """Deviations agree within their standard errors, so that no initializer takes the blocks for inputs."""
    model, scanned = (make(name, hidden_dim=32, scan=scan) for scan in (False, True))
    init = lambda m, seed: quick(lambda key: m.init(key, IMAGES[:1], train=False))(jax.random.key(seed))
    expected = traverse_util.flatten_dict(stack_blocks(init(model, 0)), sep="/")
    actual = traverse_util.flatten_dict(init(scanned, 1), sep="/")
    assert set(actual) == set(expected) and any("Blocks/" in path for path in actual)
    for path, first in expected.items():
        first, other = np.asarray(first), np.asarray(actual[path])
        assert first.shape == other.shape
        if first.std() == 0:
            np.testing.assert_array_equal(other, first, err_msg=path)
            continue
        assert (first != other).mean() > 0.99, path
        for a, b in zip(first, other) if "Blocks/" in path else [(first, other)]:
            if a.size >= 16:
                assert abs(a.std() / b.std() - 1) < 5 / math.sqrt(a.size), path
        if "Blocks/" in path:
            assert (other[0] != other[1]).mean() > 0.99, f"{path}: two blocks start alike"
