"""ConvMixer against published sizes and a NumPy forward pass, its two depthwise convolutions, and BatchNorm."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from reference import gelu

from patchnets.models import convmixer
from patchnets.models.convmixer import ConvMixer
from patchnets.models.ops import DEPTHWISE_IMPLS, depthwise_conv, depthwise_shifts
from patchnets.parallel import sharding

# Published with 1,000 classes at 224 px, and with 10 classes at 32 px.
PUBLISHED = {
    "1536/20": (1000, 51_625_960),
    "768/32": (1000, 21_110_248),
    "1024/20": (1000, 24_383_464),
    "1024/12": (1000, 14_621_672),
    "512/16": (1000, 5_357_544),
    "256/8-k9-p1": (10, 706_570),
    "256/8-k5-p2": (10, 594_186),
}
# Compiling is what these tests take their time for.
quick = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
SMALL = dict(num_classes=4, patch_size=2, depth=2, hidden_dim=6, kernel_size=3)


def images_of(batch, height, width, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, height, width, 3)).astype(np.float32)


def variables_of(model, height, width, seed=0):
    """Random values for every parameter and every running statistic; variances and scales above zero."""
    image = jnp.zeros((1, height, width, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        kind = path[-1].key
        value = rng.standard_normal(leaf.shape)
        if kind in ("var", "scale"):
            value = 0.5 + np.abs(value)
        elif kind == "kernel":
            value = value / math.sqrt(math.prod(leaf.shape[:-1]))
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.slow
@pytest.mark.parametrize("variant", convmixer.VARIANTS)
def test_every_variant_has_the_number_of_parameters_of_the_published_formula(variant):
    sizes = convmixer.VARIANTS[variant]
    classes = 1000 if sizes["hidden_dim"] > 256 else 10
    h, d, k, p = (sizes[name] for name in ("hidden_dim", "depth", "kernel_size", "patch_size"))
    model = ConvMixer(num_classes=classes, **sizes)
    side = 224 if classes == 1000 else 32
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    count = {name: sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for name, tree in shapes.items()}
    assert count["params"] == h * (d * (k * k + h + 6) + 3 * p * p + classes + 3) + classes
    assert count["batch_stats"] == 2 * h * (2 * d + 1)
    assert PUBLISHED.get(variant, (classes, count["params"])) == (classes, count["params"])


def test_every_published_variant_is_offered():
    assert set(PUBLISHED) <= set(convmixer.VARIANTS)
    assert {name for name, sizes in convmixer.VARIANTS.items() if sizes.get("activation") == "relu"} == {"768/32"}


def test_batch_norm_and_gelu_are_by_default_those_of_the_authors_code():
    model = ConvMixer(**SMALL)
    assert (model.batch_norm_epsilon, model.batch_norm_momentum, model.gelu) == (1e-5, 0.9, "exact")


# --- the forward pass -------------------------------------------------------------------------------------------------


def depthwise(x, kernel):
    """Place by place and tap by tap; where the kernel's side is even, the further row of zeros is at the end."""
    height, width = x.shape[1:3]
    k = kernel.shape[0]
    low = (k - 1) // 2
    out = np.zeros_like(x)
    for row, column, i, j in np.ndindex(height, width, k, k):
        r, c = row + i - low, column + j - low
        if 0 <= r < height and 0 <= c < width:
            out[:, row, column] += x[:, r, c] * kernel[i, j, 0]
    return out


def forward(variables, images, *, patch, depth, activation="gelu", form="exact", epsilon=1e-5, train=False, keep=0.9):
    """Logits of a batch in float64, and the running statistics after it."""
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    params, stats = variables["params"], variables["batch_stats"]
    after = {}

    def act_and_norm(x, *path):
        p, old = params, stats
        for name in (*path, "norm"):
            p, old = p[name], old[name]
        x = gelu(x, form) if activation == "gelu" else np.maximum(x, 0)
        mean, var = old["mean"], old["var"]
        if train:
            mean = x.mean((0, 1, 2))
            var = ((x - mean) ** 2).mean((0, 1, 2))
            after["/".join((*path, "norm", "mean"))] = keep * old["mean"] + (1 - keep) * mean
            after["/".join((*path, "norm", "var"))] = keep * old["var"] + (1 - keep) * var
        return (x - mean) / np.sqrt(var + epsilon) * p["scale"] + p["bias"]

    batch, height, width, _ = images.shape
    x = np.zeros((batch, height // patch, width // patch, params["stem"]["bias"].size))
    for row, column in np.ndindex(x.shape[1:3]):
        square = images[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch].astype(np.float64)
        x[:, row, column] = np.tensordot(square, params["stem"]["kernel"], 3) + params["stem"]["bias"]
    x = act_and_norm(x, "stem_norm")
    for i in range(depth):
        block = params[f"ConvMixerBlock_{i}"]
        y = depthwise(x, block["depthwise"]["kernel"]) + block["depthwise"]["bias"]
        x = x + act_and_norm(y, f"ConvMixerBlock_{i}", "depthwise_norm")
        y = x @ block["pointwise"]["kernel"] + block["pointwise"]["bias"]
        x = act_and_norm(y, f"ConvMixerBlock_{i}", "pointwise_norm")
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"], after


CASES = [
    (dict(), (8, 8)),
    (dict(activation="relu", kernel_size=4, depthwise_impl="conv"), (6, 10)),
    (dict(kernel_size=4, depthwise_impl="shifts", gelu="tanh", batch_norm_momentum=0.7), (6, 10)),
    (dict(kernel_size=7, activation="relu", patch_size=1, batch_norm_epsilon=1e-2), (3, 5)),
]


@pytest.mark.parametrize(("options", "shape"), CASES, ids=lambda case: str(case).replace(" ", ""))
def test_logits_and_running_statistics_equal_a_numpy_forward_pass(options, shape):
    model = ConvMixer(**SMALL | options)
    variables, images = variables_of(model, *shape), images_of(5, *shape)
    described = dict(
        patch=model.patch_size,
        depth=model.depth,
        activation=model.activation,
        form=model.gelu,
        epsilon=model.batch_norm_epsilon,
        keep=model.batch_norm_momentum,
    )

    @quick
    def run(v, x):
        return model.apply(v, x, train=False), model.apply(v, x, train=True, mutable=["batch_stats"])

    evaluated, (trained, updated) = run(variables, images)
    expected, _ = forward(variables, images, **described)
    np.testing.assert_allclose(evaluated, expected, rtol=1e-4, atol=1e-4)
    expected, after = forward(variables, images, **described, train=True)
    np.testing.assert_allclose(trained, expected, rtol=1e-4, atol=1e-4)
    actual = traverse_util.flatten_dict(updated["batch_stats"], sep="/")
    assert set(actual) == set(after) and len(after) == 2 * (2 * model.depth + 1)
    for name, value in after.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


# --- the depthwise convolution ----------------------------------------------------------------------------------------


def with_gradient(how, x, kernel, weights):
    """A convolution's value, and the gradient of its sum with these weights by both arguments."""
    value, pull = jax.vjp(how, x, kernel)
    return value, pull(weights)


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2, 5, 6, 9])
@pytest.mark.parametrize("shape", [(3, 7, 4, 5), (2, 2, 9, 3), (2, 3, 4, 256)])
def test_both_depthwise_convolutions_agree_in_value_and_gradient(k, shape):
    rng = np.random.default_rng(k)
    x, kernel, weights = (rng.standard_normal(s).astype(np.float32) for s in (shape, (k, k, 1, shape[-1]), shape))
    exact = [a.astype(np.float64) for a in (x, kernel, weights)]
    results = []
    for how in DEPTHWISE_IMPLS.values():
        value, grads = quick(with_gradient, static_argnums=0)(how, x, kernel, weights)
        np.testing.assert_allclose(value, depthwise(*exact[:2]), rtol=1e-4, atol=1e-4)
        results.append(grads)
    for first, other in zip(*results):
        np.testing.assert_allclose(first, other, rtol=1e-4, atol=1e-4)
    # The map is linear in both arguments, so that its transpose is fixed by inner products.
    along = rng.standard_normal(shape), rng.standard_normal(kernel.shape)
    for grads in results:
        pairs = (depthwise(along[0], exact[1]), grads[0], along[0]), (depthwise(exact[0], along[1]), grads[1], along[1])
        for moved, grad, direction in pairs:
            assert (moved * exact[2]).sum() == pytest.approx((np.asarray(grad) * direction).sum(), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("k", [4, 5])
def test_depthwise_convolutions_in_bfloat16_are_near_the_exact_ones(k):
    rng = np.random.default_rng(0)
    x, kernel, weights = (
        jnp.asarray(rng.standard_normal(s), jnp.bfloat16) for s in ((3, 7, 6, 4), (k, k, 1, 4), (3, 7, 6, 4))
    )
    wide = [a.astype(jnp.float32) for a in (x, kernel, weights)]
    value, grads = quick(with_gradient, static_argnums=0)(depthwise_conv, *wide)
    expected = [value, *grads]
    for how in DEPTHWISE_IMPLS.values():
        value, grads = quick(with_gradient, static_argnums=0)(how, x, kernel, weights)
        for actual, exact in zip([value, *grads], expected):
            assert actual.dtype == jnp.bfloat16
            assert np.abs(actual.astype(jnp.float32) - exact).max() < 0.01 * np.abs(exact).max()


@pytest.mark.slow
def test_shifts_sum_in_float32():
    """In bfloat16, 256 + 1 is 256: of 81 taps of which each adds one to 256, a sum in that type would lose all."""
    x = jnp.ones((1, 9, 9, 1), jnp.bfloat16).at[0, 0, 0, 0].set(256)
    kernel = jnp.ones((9, 9, 1, 1), jnp.bfloat16)
    assert float(quick(depthwise_shifts)(x, kernel)[0, 4, 4, 0]) == 336
    summed = quick(jax.grad(lambda k: (depthwise_shifts(x, k) * 1.0).sum()))(kernel)
    assert float(summed[4, 4, 0, 0]) == 336


# --- BatchNorm over devices -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", DEPTHWISE_IMPLS)
def test_batch_statistics_and_gradients_are_the_same_on_one_and_on_eight_devices(how, mesh1, mesh8):
    model = ConvMixer(**SMALL, depthwise_impl=how)
    variables = variables_of(model, 8, 8)
    # Every device gets images of another brightness and contrast: its own statistics would be far from the batch's.
    contrast, brightness = (np.linspace(low, high, 16).reshape(-1, 1, 1, 1) for low, high in ((0.2, 3), (-2, 2)))
    images = contrast * images_of(16, 8, 8) + brightness

    def run(mesh):
        @quick
        def step(v, x):
            x = sharding.shard_batch(x, mesh)

            def loss(params):
                logits, new = model.apply(v | {"params": params}, x, train=True, mutable=["batch_stats"])
                return jnp.sin(logits).sum(), (logits, new)

            (_, (logits, new)), grads = jax.value_and_grad(loss, has_aux=True)(v["params"])
            return dict(logits=logits, grads=grads, **new)

        placed = jax.tree.map(lambda leaf: sharding.replicate(leaf, mesh), (variables, images.astype(np.float32)))
        return jax.tree.map(np.asarray, step(*placed))

    first, eight = run(mesh1), run(mesh8)
    _, after = forward(variables, images, patch=2, depth=2, train=True)
    for name, value in traverse_util.flatten_dict(eight["batch_stats"], sep="/").items():
        np.testing.assert_allclose(value, after[name], rtol=1e-4, atol=1e-4, err_msg=name)
    for (path, a), (_, b) in zip(jax.tree.leaves_with_path(first), jax.tree.leaves_with_path(eight)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=jax.tree_util.keystr(path))


# --- the start, and gradients -----------------------------------------------------------------------------------------


def test_parameters_start_as_pytorch_starts_them():
    h, k, p = 96, 9, 8
    model = ConvMixer(num_classes=80, patch_size=p, depth=1, hidden_dim=h, kernel_size=k)
    variables = quick(lambda key: model.init(key, jnp.zeros((1, 16, 16, 3)), train=False))(jax.random.key(0))
    fan_in = {"stem": 3 * p * p, "depthwise": k * k, "pointwise": h, "head": h}
    drawn = 0
    for path, value in traverse_util.flatten_dict(variables["params"], sep="/").items():
        value, (layer, kind) = np.asarray(value), path.split("/")[-2:]
        if layer not in fan_in:
            assert layer == "norm" and (value == (kind == "scale")).all(), path
            continue
        bound, drawn = 1 / math.sqrt(fan_in[layer]), drawn + 1
        assert 0.93 * bound < np.abs(value).max() <= bound, path
        std = bound / math.sqrt(3)  # of a uniform distribution, whose sample deviation has this standard error:
        assert abs(value.std() - std) < 5 * std * math.sqrt(0.2 / value.size), path
        assert abs(value.mean()) < 5 * std / math.sqrt(value.size), path
    assert drawn == 8
    for path, value in traverse_util.flatten_dict(variables["batch_stats"], sep="/").items():
        assert (np.asarray(value) == path.endswith("var")).all(), path


@pytest.mark.parametrize("activation", convmixer.ACTIVATIONS)
def test_the_gradient_reaches_every_parameter(activation):
    model = ConvMixer(**SMALL, activation=activation)
    variables, images = variables_of(model, 8, 8), images_of(6, 8, 8)

    def loss(params):
        logits, _ = model.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
        return jnp.square(logits - jnp.arange(4)).sum()

    grads = traverse_util.flatten_dict(quick(jax.grad(loss))(variables["params"]), sep="/")
    # The activation stands between a convolution's bias and BatchNorm, which would take away a shift but not this.
    for path, leaf in grads.items():
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-3, path
        assert (np.asarray(leaf) != 0).mean() > (0.99 if activation == "gelu" else 0.6), path
