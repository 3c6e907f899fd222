"""FNet against a NumPy forward pass written from the paper, and its two Fourier implementations against each other."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import gelu, norm, parameters, patches

from patchnets.models import fnet

SMALL = dict(num_classes=5, patch_size=2, depth=2, hidden_dim=6, mlp_dim=24)


def definition(x):
    """The real part of the transform over both axes of (patches, channels), as its double sum."""
    (m, n) = x.shape
    out = np.zeros_like(x)
    for k in range(m):
        for q in range(n):
            angle = 2 * np.pi * (k * np.arange(m)[:, None] / m + q * np.arange(n) / n)
            out[k, q] = (x * np.cos(angle)).sum()
    return out


@pytest.mark.parametrize("how", fnet.FOURIER_IMPLS)
def test_the_transform_is_the_one_of_the_definition(how):
    x = np.random.default_rng(0).standard_normal((2, 7, 10))
    actual = fnet.FOURIER_IMPLS[how](jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(actual, [definition(first) for first in x], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 196, 768), (2, 64, 256), (1, 49, 192), (3, 1, 5)])
def test_both_transforms_agree_in_float32_and_so_do_their_gradients(shape):
    x = jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(2).standard_normal(shape), jnp.float32)
    fast, real = (transform(x) for transform in fnet.FOURIER_IMPLS.values())
    assert float(jnp.abs(fast - real).max() / jnp.abs(fast).max()) < 1e-4
    gradients = [jax.grad(lambda x, t=t: (t(x) * weights).sum())(x) for t in fnet.FOURIER_IMPLS.values()]
    assert float(jnp.abs(gradients[0] - gradients[1]).max() / jnp.abs(gradients[0]).max()) < 1e-4


def forward(p, image, patch, depth, form, embedding_norm):
    """Logits of one image in float64."""
    x = patches(image, patch, **p["stem"]) + p["position_embedding"][0]
    if embedding_norm:
        x = norm(x, **p["embedding_norm"], epsilon=1e-12)
    for i in range(depth):
        block = p[f"FnetBlock_{i}"]
        x = norm(x + definition(x), **block["mixing_norm"], epsilon=1e-12)
        y = gelu(x @ block["expand"]["kernel"] + block["expand"]["bias"], form)
        x = norm(x + y @ block["project"]["kernel"] + block["project"]["bias"], **block["mlp_norm"], epsilon=1e-12)
    return x.mean(0) @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.parametrize(("form", "how", "embedding_norm"), [("tanh", "fft", True), ("exact", "matrix", False)])
@pytest.mark.parametrize("shape", [(8, 8), (4, 10)])
def test_logits_equal_a_numpy_forward_pass(form, how, embedding_norm, shape):
    model = fnet.Fnet(**SMALL, gelu=form, fourier_impl=how, embedding_norm=embedding_norm)
    params = parameters(model, *shape)
    images = np.random.default_rng(3).standard_normal((2, *shape, 3)).astype(np.float32)
    actual = jax.jit(functools.partial(model.apply, train=False))({"params": params}, images)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    expected = [forward(exact, first.astype(np.float64), 2, SMALL["depth"], form, embedding_norm) for first in images]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", fnet.VARIANTS)
def test_parameters_of_every_variant_are_those_of_the_formula(variant):
    width = {"Ti": 192, "S": 384, "B": 768}[variant.split("/")[0]]
    size = int(variant.split("/")[1])
    count = (224 // size) ** 2
    stem = 3 * size * size * width + width + count * width + 2 * width  # embedding, positions, norm
    block = 2 * 2 * width + 2 * 4 * width * width + 5 * width  # two norms; two dense layers of 4 times the width
    model = fnet.Fnet(num_classes=1000, **fnet.VARIANTS[variant])
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)["params"]
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == stem + 12 * block + 1000 * width + 1000


def test_kernels_start_with_a_deviation_of_two_hundredths_and_logits_at_zero():
    model = fnet.Fnet(num_classes=5, patch_size=2, depth=2, hidden_dim=64, mlp_dim=256)
    images = np.random.default_rng(4).standard_normal((2, 8, 8, 3)).astype(np.float32)
    params = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)["params"]
    block = params["FnetBlock_1"]
    for kernel in (block["expand"]["kernel"], block["project"]["kernel"], params["stem"]["kernel"]):
        assert np.std(kernel) == pytest.approx(0.02, rel=0.1)
    assert np.std(params["position_embedding"]) == pytest.approx(0.02, rel=0.1)
    assert not np.asarray(jax.jit(functools.partial(model.apply, train=False))({"params": params}, images)).any()


def test_the_gradient_reaches_every_parameter():
    model = fnet.Fnet(**SMALL)
    params = parameters(model, 8, 8)
    images = np.random.default_rng(5).standard_normal((3, 8, 8, 3)).astype(np.float32)
    grads = jax.jit(jax.grad(lambda p: jnp.square(model.apply({"params": p}, images, train=True)).sum()))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all() and np.asarray(leaf).any(), jax.tree_util.keystr(path)


def test_dropout_changes_training_alone():
    model = fnet.Fnet(**SMALL, dropout_rate=0.5)
    params = parameters(model, 8, 8)
    images = np.random.default_rng(6).standard_normal((2, 8, 8, 3)).astype(np.float32)
    train = jax.jit(functools.partial(model.apply, train=True))
    first, other = (train({"params": params}, images, rngs={"dropout": jax.random.key(i)}) for i in (0, 1))
    calm = jax.jit(functools.partial(model.apply, train=False))({"params": params}, images)
    assert np.abs(first - other).max() > 1e-3
    plain = jax.jit(functools.partial(fnet.Fnet(**SMALL).apply, train=False))
    np.testing.assert_array_equal(calm, plain({"params": params}, images))
