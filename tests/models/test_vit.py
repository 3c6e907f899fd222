"""ViT against published sizes, a NumPy forward pass written from the paper's equations, and its initial statistics."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from reference import gelu, norm, parameters, patches

from patchnets.models import vit
from patchnets.models.layers import Dropout
from patchnets.models.vit import MultiHeadAttention, VisionTransformer, VitBlock

# With a class token, at 224 px: parameters without a head, and with one of 1,000 classes.
PUBLISHED = {
    "Ti/16": (5_524_416, 5_717_416),
    "S/32": (22_493_952, 22_878_952),
    "S/16": (21_665_664, 22_050_664),
    "B/32": (87_455_232, 88_224_232),
    "B/16": (85_798_656, 86_567_656),
    "L/32": (305_510_400, 306_535_400),
    "L/16": (303_301_632, 304_326_632),
    "H/14": (630_764_800, 632_045_800),
}
# Compiling is what these tests take their time for.
quick = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
# Every size a different number, so that no two axes can be mistaken for each other.
SMALL = dict(num_classes=5, patch_size=2, depth=2, hidden_dim=12, mlp_dim=20, num_heads=3)


def images_of(batch, height, width, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, height, width, 3)).astype(np.float32)


def counts(model, size=224):
    model = model.clone(scan=True)  # as many parameters, and one block to trace
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)["params"]
    total, head = (sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for tree in (shapes, shapes["head"]))
    return total - head, total


@pytest.mark.parametrize("variant", PUBLISHED)
def test_variant_has_the_published_number_of_parameters(variant):
    assert counts(VisionTransformer(num_classes=1000, **vit.VARIANTS[variant])) == PUBLISHED[variant]


@pytest.mark.parametrize(("representation", "total"), [(384, 22_122_472), (0, 21_974_632)])
def test_small_network_with_mean_pooling_has_the_published_number_of_parameters(representation, total):
    options = dict(pool_type="gap", posemb="sincos2d", rep_size=representation)
    assert counts(VisionTransformer(num_classes=1000, **vit.VARIANTS["S/16"], **options))[1] == total


# --- the forward pass -------------------------------------------------------------------------------------------------


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def sines_and_cosines(rows, columns, width):
    """Number by number: of the column, then of the row, sines before cosines, frequencies from 1 down to 1e-4."""
    table = np.zeros((rows * columns, width))
    quarter = width // 4
    for row in range(rows):
        for column in range(columns):
            for i in range(quarter):
                frequency = 10_000 ** (-i / (quarter - 1))
                for part, value in enumerate(
                    (
                        math.sin(column * frequency),
                        math.cos(column * frequency),
                        math.sin(row * frequency),
                        math.cos(row * frequency),
                    )
                ):
                    table[row * columns + column, part * quarter + i] = value
    return table


def attention(tokens, memory, p):
    """Head by head (appendix A, equations 5 to 8)."""
    out = np.zeros((len(tokens), p["out"]["bias"].size)) + p["out"]["bias"]
    for head in range(p["query"]["bias"].shape[0]):
        q, k, v = (
            x @ p[name]["kernel"][:, head] + p[name]["bias"][head]
            for name, x in (("query", tokens), ("key", memory), ("value", memory))
        )
        scores = np.exp(q @ k.T / math.sqrt(q.shape[1]))
        out += scores / scores.sum(1, keepdims=True) @ v @ p["out"]["kernel"][head]
    return out


def forward(p, image, model):
    """Logits of one image, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)
    mlp = lambda x, q: dense(gelu(dense(x, q["Dense_0"]), model.gelu), q["Dense_1"])
    size = model.patch_size
    x = patches(image.astype(np.float64), size, **p["stem"])
    if model.posemb == "sincos2d":
        x = x + sines_and_cosines(image.shape[0] // size, image.shape[1] // size, model.hidden_dim)
    if model.pool_type == "cls":
        x = np.concatenate([p["class_token"][0], x])
    if model.posemb == "learned":
        x = x + p["position_embedding"][0]
    for i in range(model.depth):
        block = p[f"VitBlock_{i}"]
        y = norm(x, **block["attention_norm"], epsilon=1e-6)
        x = x + attention(y, y, block["attention"]) * block.get("attention_scale", 1)
        x = x + mlp(norm(x, **block["mlp_norm"], epsilon=1e-6), block["mlp"]) * block.get("mlp_scale", 1)
    last = lambda x: norm(x, **p["pre_head_layer_norm"], epsilon=1e-6)
    x = x if model.norm_after_pooling else last(x)
    if model.pool_type == "map":
        head = p["map_head"]
        y = attention(head["probe"][0], x, head["attention"])
        pooled = (y + mlp(norm(y, **head["norm"], epsilon=1e-6), head["mlp"]))[0]
    else:
        pooled = x[0] if model.pool_type == "cls" else x.mean(0)
    pooled = last(pooled) if model.norm_after_pooling else pooled
    if model.rep_size:
        pooled = np.tanh(dense(pooled, p["representation"]))
    return dense(pooled, p["head"])


CASES = [
    (dict(), (8, 8)),
    (dict(pool_type="gap", posemb="sincos2d", rep_size=7, attention_impl="fused"), (4, 10)),
    (dict(pool_type="map", posemb="none", gelu="exact", attention_impl="fused"), (8, 4)),
    (dict(pool_type="map", norm_after_pooling=True, layer_scale=0.1, attention_impl="plain"), (6, 4)),
    (dict(pool_type="cls", posemb="sincos2d", gelu="exact", layer_scale=1e-4, attention_impl="fused"), (6, 10)),
    (dict(pool_type="gap", norm_after_pooling=True, rep_size=9), (4, 6)),
    (dict(pool_type="cls", norm_after_pooling=True, posemb="none", patch_size=3), (3, 12)),
]


@pytest.mark.parametrize(("options", "shape"), CASES, ids=lambda case: str(case).replace(" ", ""))
def test_logits_equal_a_numpy_forward_pass(options, shape):
    model = VisionTransformer(**SMALL | options)
    params, images = parameters(model, *shape), images_of(2, *shape)
    actual = quick(lambda p, x: model.apply({"params": p}, x, train=False))(params, images)
    np.testing.assert_allclose(actual, [forward(params, image, model) for image in images], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "columns", "width"), [(3, 5, 12), (14, 14, 32), (1, 4, 8)])
def test_fixed_positions_are_those_of_the_formula(rows, columns, width):
    actual = vit.sincos2d(rows, columns, width)
    np.testing.assert_allclose(actual, sines_and_cosines(rows, columns, width), atol=1e-12)


@pytest.mark.slow
def test_plain_and_fused_attention_agree_in_value_and_gradient():
    plain, fused = (VisionTransformer(**SMALL, attention_impl=how) for how in ("plain", "fused"))
    params, images = parameters(plain, 6, 10), images_of(3, 6, 10)

    def run(model):
        loss = lambda p, x: jnp.sin(model.apply({"params": p}, x, train=True)).sum()
        return quick(jax.value_and_grad(loss, argnums=(0, 1)))(params, images)

    for (path, first), (_, other) in zip(*(jax.tree.leaves_with_path(run(model)) for model in (plain, fused))):
        assert np.abs(first).max() > 0, jax.tree_util.keystr(path)
        np.testing.assert_allclose(first, other, rtol=1e-4, atol=2e-5, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(), dict(pool_type="map", layer_scale=0.3), dict(pool_type="gap", rep_size=7)])
def test_gradient_reaches_every_parameter_that_can_matter(options):
    model = VisionTransformer(**SMALL | options)
    params, images = parameters(model, 6, 8), images_of(3, 6, 8)
    loss = lambda p: jnp.square(model.apply({"params": p}, images, train=True)).sum()
    grads = traverse_util.flatten_dict(quick(jax.grad(loss))(params), sep="/")
    scale = max(np.abs(leaf).max() for leaf in grads.values())
    for path, leaf in grads.items():
        assert np.isfinite(leaf).all(), path
        if path.endswith("key/bias"):
            # It adds the same number to all scores of a query, which the softmax takes away again.
            assert np.abs(leaf).max() < 1e-5 * scale, path
        else:
            assert np.abs(leaf).max() > 1e-4 * scale and (np.asarray(leaf) != 0).all(), path


# --- the start --------------------------------------------------------------------------------------------------------


def assert_uniform(value, limit, path):
    value = np.asarray(value)
    assert 0.99 * limit < np.abs(value).max() <= limit, path
    assert value.std() == pytest.approx(limit / math.sqrt(3), rel=0.05), path
    assert abs(value.mean()) < 5 * limit / math.sqrt(3 * value.size), path


@pytest.mark.slow
@pytest.mark.parametrize("pool_type", ["cls", "map"])
def test_initial_statistics_are_the_authors_and_logits_start_at_zero(pool_type):
    width, hidden = 64, 96
    sizes = dict(num_classes=9, patch_size=8, depth=1, hidden_dim=width, mlp_dim=hidden, num_heads=4)
    model = VisionTransformer(**sizes, pool_type=pool_type, rep_size=80, layer_scale=1e-4)
    images = images_of(2, 64, 64)
    params = quick(lambda key: model.init(key, images[:1], train=False))(jax.random.key(3))["params"]
    observed = set()
    for path, value in traverse_util.flatten_dict(params, sep="/").items():
        value = np.asarray(value)
        _, _, kind = path.rpartition("/")
        if "attention/" in path and kind == "kernel":  # of the matrix from all channels to all heads
            assert_uniform(value, math.sqrt(6 / (width + width)), path)
        elif "mlp/Dense" in path and kind == "kernel":
            assert_uniform(value, math.sqrt(6 / (width + hidden)), path)
        elif "mlp/Dense" in path:
            assert value.std() == pytest.approx(1e-6, rel=0.5) and np.abs(value).max() < 6e-6, path
        elif path == "position_embedding":
            assert value.std() == pytest.approx(0.02, rel=0.05), path
        elif path == "stem/kernel":
            assert value.std() == pytest.approx((8 * 8 * 3) ** -0.5, rel=0.05), path
        elif path == "representation/kernel":
            assert value.std() == pytest.approx(width**-0.5, rel=0.05), path
        elif path.endswith("probe"):
            limit = math.sqrt(6 / (1 + width))
            assert 0.8 * limit < np.abs(value).max() <= limit and value.min() < 0 < value.max(), path
        else:
            expected = 1e-4 if path.endswith("_scale") else float(kind == "scale")
            assert (value == np.float32(expected)).all(), path  # head, class token, norms, other biases
        observed.add(path)
    assert ("class_token" in observed) == (pool_type == "cls") and ("map_head/probe" in observed) == (
        pool_type == "map"
    )
    assert {"head/kernel", "VitBlock_0/attention_scale", "VitBlock_0/mlp_scale", "position_embedding"} <= observed
    assert not np.asarray(quick(partial(model.apply, train=False))({"params": params}, images)).any()


# --- regularization ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_regularization_changes_training_alone():
    noisy = dict(dropout_rate=0.3, attention_dropout_rate=0.4, drop_path_rate=0.9)
    plain, model = VisionTransformer(**SMALL), VisionTransformer(**SMALL | noisy)
    params, images = parameters(plain, 8, 8), images_of(4, 8, 8)

    @quick
    def outcomes(p, x, key):
        calm = [plain.apply({"params": p}, x, train=train) for train in (False, True)]
        noise = [model.apply({"params": p}, x, train=True, rngs={"dropout": k}) for k in (key, jax.random.key(9))]
        return [*calm, model.apply({"params": p}, x, train=False), *noise]

    expected, training, evaluated, first, other = map(np.asarray, outcomes(params, images, jax.random.key(0)))
    np.testing.assert_allclose(training, expected, atol=1e-5)  # attention may be computed otherwise in training
    np.testing.assert_array_equal(evaluated, expected)
    assert (np.abs(first - expected).max(1) > 0.01).all() and (np.abs(first - other).max(1) > 0.01).all()


def assert_mean(samples, expected):
    """Within five standard errors of `expected`, element by element."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert (error > 0).all() and (np.abs(samples.mean(0) - expected) <= 5 * error + 1e-6).all()


def test_attention_dropout_keeps_the_mean():
    model = MultiHeadAttention(num_heads=2, dropout_rate=0.4)
    x = np.random.default_rng(0).standard_normal((1, 5, 6)).astype(np.float32)
    params = jax.tree.map(np.asarray, quick(partial(model.init, train=False))(jax.random.key(1), x, x))
    many = np.broadcast_to(x, (4000, 5, 6))
    run = quick(lambda p, x, key: model.apply(p, x, x, train=True, rngs={"dropout": key}))
    actual = run(params, many, jax.random.key(2))
    assert_mean(np.asarray(actual), np.asarray(quick(partial(model.apply, train=False))(params, x, x))[0])


@pytest.mark.slow
@pytest.mark.parametrize(("branch", "other"), [("attention", "mlp"), ("mlp", "attention")])
def test_dropout_and_stochastic_depth_of_a_branch_keep_the_mean_and_drop_the_shares_asked_for(branch, other):
    """With the other branch's last layer at zero, this one's noise reaches the output through linear layers alone."""
    rate, depth_rate, copies = 0.3, 0.4, 6000
    block = VitBlock(num_heads=2, mlp_dim=8, dropout_rate=rate, attention_dropout_rate=0.2)
    x = np.random.default_rng(0).standard_normal((1, 5, 6)).astype(np.float32)
    params = quick(partial(block.init, train=False))(jax.random.key(1), x)["params"]
    last = {"attention": "out", "mlp": "Dense_1"}
    params[other][last[other]] = jax.tree.map(jnp.zeros_like, params[other][last[other]])
    params[branch][last[branch]]["bias"] += 0.5
    many = np.broadcast_to(x, (copies, 5, 6))
    run = quick(lambda p, x, key: block.apply({"params": p}, x, depth_rate, train=True, rngs={"dropout": key}))
    change = np.asarray(run(params, many, jax.random.key(2))) - x
    calm = quick(partial(block.apply, train=False))({"params": params}, x, depth_rate)
    assert_mean(change, np.asarray(calm)[0] - x[0])
    dropped = (change == 0).all((1, 2))
    assert dropped.mean() == pytest.approx(depth_rate, abs=5 * math.sqrt(0.25 / copies))
    kept = change[~dropped]
    assert (kept == 0).mean() == pytest.approx(rate, abs=5 * math.sqrt(0.25 / kept.size))


def test_dropout_falls_on_the_embedded_patches_too():
    model = VisionTransformer(**SMALL | dict(depth=1), dropout_rate=0.25)
    params, images = parameters(model, 8, 8), images_of(64, 8, 8)
    first = lambda module, _: isinstance(module, Dropout) and module.name == "Dropout_0" and len(module.path) == 1
    watch = dict(capture_intermediates=first, mutable=["intermediates"])
    _, calm = quick(partial(model.apply, train=False, **watch))({"params": params}, images)
    train = quick(partial(model.apply, train=True, **watch))
    _, noisy = train({"params": params}, images, rngs={"dropout": jax.random.key(0)})
    calm, noisy = (np.asarray(actual["intermediates"]["Dropout_0"]["__call__"][0]) for actual in (calm, noisy))
    assert calm.shape == (64, 17, 12), "the class token and its position are embedded too"
    assert (noisy == 0).mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_allclose(noisy[noisy != 0], calm[noisy != 0] / 0.75, rtol=1e-5)
