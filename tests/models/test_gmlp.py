"""gMLP against the published sizes and against a NumPy forward pass written from the paper's figure 1."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import gelu, norm, parameters, patches

from patchnets.models import gmlp

# Parameters without a head, and with one of 1,000 classes, at 224 px.
PUBLISHED = {"Ti/16": (5_738_328, 5_867_328), "S/16": (19_165_656, 19_422_656), "B/16": (72_562_392, 73_075_392)}
SMALL = dict(num_classes=5, patch_size=2, depth=3, hidden_dim=6, ffn_dim=8)


@pytest.mark.parametrize("variant", gmlp.VARIANTS)
def test_every_variant_has_the_published_number_of_parameters(variant):
    model = gmlp.Gmlp(num_classes=1000, **gmlp.VARIANTS[variant])
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)["params"]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    head = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["head"]))
    assert (count - head, count) == PUBLISHED[variant]


def forward(p, image, patch, depth, form):
    """Logits of one image, patch by patch and in float64."""
    x = patches(image, patch, **p["stem"])
    for i in range(depth):
        block = p[f"GmlpBlock_{i}"]
        y = norm(x, **block["norm"], epsilon=1e-6)
        y = gelu(y @ block["expand"]["kernel"] + block["expand"]["bias"], form)
        half = y.shape[1] // 2
        u, v = y[:, :half], y[:, half:]
        gate = block["spatial_gating"]
        v = norm(v, **gate["norm"], epsilon=1e-5)
        mixed = np.zeros_like(v)
        for path in range(len(v)):  # out of all patches, into this one
            mixed[path] = sum(gate["kernel"][other, path] * v[other] for other in range(len(v))) + gate["bias"][path]
        x = x + (u * mixed) @ block["project"]["kernel"] + block["project"]["bias"]
    pooled = norm(x, **p["pre_head_layer_norm"], epsilon=1e-6).mean(0)
    return pooled @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.parametrize("form", ["exact", "tanh"])
@pytest.mark.parametrize("shape", [(8, 8), (4, 10)])
def test_logits_equal_a_numpy_forward_pass(form, shape):
    model = gmlp.Gmlp(**SMALL, gelu=form)
    params = parameters(model, *shape)
    images = np.random.default_rng(1).standard_normal((2, *shape, 3)).astype(np.float32)
    actual = jax.jit(functools.partial(model.apply, train=False))({"params": params}, images)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    expected = [forward(exact, image.astype(np.float64), 2, SMALL["depth"], form) for image in images]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def fresh():
    """A model of 12 blocks as it is initialized, and a batch."""
    model = gmlp.Gmlp(num_classes=5, patch_size=2, depth=12, hidden_dim=32, ffn_dim=64, survival_probability=0.5)
    images = np.random.default_rng(2).standard_normal((64, 8, 8, 3)).astype(np.float32)
    params = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)["params"]
    return model, params, images


@pytest.mark.slow
def test_gating_starts_at_one_and_nearly_without_mixing_and_the_head_at_zero(fresh):
    model, params, images = fresh
    kernels = np.stack([params[f"GmlpBlock_{i}"]["spatial_gating"]["kernel"] for i in range(12)])
    assert kernels.std() == pytest.approx(1e-6, rel=0.1)
    for i in range(12):
        block = params[f"GmlpBlock_{i}"]
        assert (np.asarray(block["spatial_gating"]["bias"]) == 1).all()
        for name, inputs in (("expand", 32), ("project", 32)):
            assert np.std(block[name]["kernel"]) == pytest.approx(inputs**-0.5, rel=0.1)
            assert not np.asarray(block[name]["bias"]).any()
    assert not np.asarray(jax.jit(functools.partial(model.apply, train=False))({"params": params}, images)).any()


def test_a_block_starts_as_a_feed_forward_network_that_no_other_patch_reaches(fresh):
    model, params, images = fresh
    look = jax.jit(functools.partial(model.apply, train=False, mutable=["intermediates"]))
    _, observed = look({"params": params}, images)
    changed = images.copy()
    changed[:, :2, :2] += 1.0  # the first patch
    _, other = look({"params": params}, changed)
    before, after = (np.asarray(actual["intermediates"]["block_0"][0]) for actual in (observed, other))
    assert np.abs(after - before)[:, 0].max() > 0.1
    assert np.abs(after - before)[:, 1:].max() < 1e-3


@pytest.mark.slow
def test_later_blocks_are_dropped_more_often_and_the_first_never(fresh):
    model, params, images = fresh
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["intermediates"]))
    _, actual = train({"params": params}, images, rngs={"dropout": jax.random.key(3)})
    actual = actual["intermediates"]
    x = [np.asarray(actual["stem"]["patches"][0])] + [np.asarray(actual[f"block_{i}"][0]) for i in range(12)]
    dropped = [float(np.mean([(b == a).all() for a, b in zip(x[i], x[i + 1])])) for i in range(12)]
    assert dropped[0] == 0
    expected = [0.5 * i / 11 for i in range(12)]
    assert np.abs(np.array(dropped) - expected).max() < 4 * math.sqrt(0.25 / 64)
    assert np.mean(dropped) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 / (12 * 64)))


def test_the_gradient_reaches_every_parameter():
    model = gmlp.Gmlp(**SMALL)
    params = parameters(model, 8, 8)
    images = np.random.default_rng(4).standard_normal((3, 8, 8, 3)).astype(np.float32)
    grads = jax.jit(jax.grad(lambda p: jnp.square(model.apply({"params": p}, images, train=True)).sum()))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all() and np.asarray(leaf).any(), jax.tree_util.keystr(path)


def test_spatial_weights_can_be_looked_at():
    model = gmlp.Gmlp(**SMALL)
    params = parameters(model, 8, 8)
    _, actual = model.apply({"params": params}, np.zeros((1, 8, 8, 3)), train=False, mutable=["intermediates"])
    for i in range(SMALL["depth"]):
        (kernel,) = actual["intermediates"][f"GmlpBlock_{i}"]["spatial_gating"]["mixing"]
        np.testing.assert_array_equal(kernel, params[f"GmlpBlock_{i}"]["spatial_gating"]["kernel"])
