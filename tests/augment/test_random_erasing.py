"""Random erasing replaces one rectangle an image, drawn as published, and leaves the rest as it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import NamedSharding, PartitionSpec

from patchnets.augment.random_erasing import random_erasing
from patchnets.errors import UserError
from patchnets.parallel import mesh

MANY, HEIGHT, WIDTH = 1024, 40, 32
RARE = 1e-4  # probability at which a sample is taken to be of another distribution; keys are fixed, so it stays so


@pytest.fixture(scope="module")
def images():
    """Noise that is nowhere 0, of three channels, as normalized images are."""
    return np.random.default_rng(0).uniform(1, 2, (MANY, HEIGHT, WIDTH, 3)).astype(np.float32)


@functools.cache
def compiled(mode):
    return jax.jit(lambda key, images, p: random_erasing(key, images, probability=p, mode=mode))


@pytest.fixture(scope="module")
def erased(images):
    """(mode) -> all images with a rectangle erased."""
    return functools.cache(lambda mode: np.asarray(compiled(mode)(jax.random.key(3), images, 1.0)))


def rectangle(changed):
    """Top, left, height and width of what changed, which must be all of a rectangle."""
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    top, left, height, width = rows[0], columns[0], len(rows), len(columns)
    assert changed[top : top + height, left : left + width].all() and changed.sum() == height * width
    return top, left, height, width


def published(generator):
    """A rectangle as the paper and timm draw it."""
    while True:
        area = HEIGHT * WIDTH * generator.uniform(0.02, 1 / 3)
        aspect = np.exp(generator.uniform(np.log(0.3), np.log(1 / 0.3)))
        height, width = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if height < HEIGHT and width < WIDTH:
            top, left = generator.integers(HEIGHT - height + 1), generator.integers(WIDTH - width + 1)
            return top, left, height, width


def test_one_rectangle_an_image_is_erased_distributed_as_published(images, erased):
    actual = np.array([rectangle(changed) for changed in (erased("constant") != images).all(-1)])
    generator = np.random.default_rng(1)
    expected = np.array([published(generator) for _ in range(MANY)])
    for i in range(4):
        assert scipy.stats.ks_2samp(actual[:, i], expected[:, i]).pvalue > RARE
    assert scipy.stats.ks_2samp(actual[:, 2:].prod(1), expected[:, 2:].prod(1)).pvalue > RARE
    assert scipy.stats.ks_2samp(actual[:, 2] / actual[:, 3], expected[:, 2] / expected[:, 3]).pvalue > RARE


@pytest.mark.slow
def test_the_rest_of_an_image_stays_and_the_fill_is_that_of_the_mode(images, erased):
    inside = (erased("constant") != images).all(-1)
    for mode in ("constant", "random", "pixel"):
        np.testing.assert_array_equal(erased(mode)[~inside], images[~inside])
    assert (erased("constant")[inside] == 0).all()
    colors = np.array([image[position] for image, position in zip(erased("random"), inside)], object)
    assert all((color == color[0]).all() for color in colors)
    values = np.array([color[0] for color in colors])
    noise = erased("pixel")[inside]
    for actual in (values, noise[:: len(noise) // MANY]):
        assert scipy.stats.kstest(actual.ravel(), scipy.stats.norm.cdf).pvalue > RARE
        assert np.abs(np.corrcoef(actual.T) - np.eye(3)).max() < 0.1
    neighbors = (inside[:, :, 1:] & inside[:, :, :-1], erased("pixel")[:, :, 1:], erased("pixel")[:, :, :-1])
    assert abs(np.corrcoef(neighbors[1][neighbors[0]][:, 0], neighbors[2][neighbors[0]][:, 0])[0, 1]) < 0.02


def test_an_image_is_erased_with_its_probability(images):
    for probability in (0.0, 0.25, 1.0):
        changed = (
            (np.asarray(compiled("constant")(jax.random.key(4), images, probability)) != images).any((1, 2, 3)).sum()
        )
        assert abs(changed - probability * MANY) <= 4 * np.sqrt(MANY * probability * (1 - probability))


def test_where_no_rectangle_fits_nothing_is_erased():
    flat = jnp.ones((8, 2, 64, 1))
    erase = functools.partial(random_erasing, probability=1.0, area=(0.9, 1.0), aspect=(0.9, 1.1))
    np.testing.assert_array_equal(jax.jit(erase)(jax.random.key(0), flat), flat)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["constant", "pixel"])
def test_an_image_is_erased_alike_in_another_batch_and_on_eight_devices(images, erased, mode, mesh8):
    sample = jax.device_put(images[:16], NamedSharding(mesh8, PartitionSpec(mesh.BATCH_AXES)))
    np.testing.assert_array_equal(compiled(mode)(jax.random.key(3), sample, 1.0), erased(mode)[:16])


def test_an_unknown_mode_is_refused():
    with pytest.raises(UserError, match=r"random_erasing_mode='black' is unknown; use one of constant, random, pixel$"):
        random_erasing(jax.random.key(0), jnp.ones((1, 4, 4, 1)), probability=1.0, mode="black")
