"""mixup and CutMix mix images and targets by the same weights, drawn as published."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import NamedSharding, PartitionSpec

from patchnets.augment import mixup
from patchnets.errors import UserError
from patchnets.parallel import mesh

MANY, HEIGHT, WIDTH, CLASSES = 1024, 24, 16, 5
RARE = 1e-4  # probability at which a sample is taken to be of another distribution; keys are fixed, so it stays so


@pytest.fixture(scope="module")
def batch():
    """Images of 1 in the first half and of 0 in the second, so that a mixed pixel tells its weight; and targets."""
    images = np.zeros((MANY, HEIGHT, WIDTH, 2), np.float32)
    images[: MANY // 2] = 1
    targets = np.eye(CLASSES, dtype=np.float32)[np.arange(MANY) % CLASSES] * 0.9 + 0.1 / CLASSES
    return jnp.asarray(images), jnp.asarray(targets)


@functools.cache
def compiled(operation, **settings):
    return jax.jit(functools.partial(operation, **settings))


def weights(batch, operation, seed=0, **settings):
    """The weight of every pixel's own image: (batch, height, width); targets are checked to be mixed by its mean."""
    _, targets = batch
    mixed, mixed_targets = (np.asarray(x) for x in compiled(operation, **settings)(jax.random.key(seed), *batch))
    np.testing.assert_array_equal(mixed[..., 0], mixed[..., 1])
    own = np.where(np.arange(MANY)[:, None, None] < MANY // 2, mixed[..., 0], 1 - mixed[..., 0])
    share = own.mean((1, 2), dtype=np.float64)[:, None]
    np.testing.assert_allclose(mixed_targets, share * targets + (1 - share) * targets[::-1], atol=1e-6)
    np.testing.assert_allclose(mixed_targets.sum(1), 1, atol=1e-6)
    return own


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 4.0])
def test_weights_are_beta_distributed(alpha):
    drawn = np.asarray(mixup.beta_weight(jax.random.uniform(jax.random.key(1), (20_000, 2)), alpha))
    assert drawn.min() >= 0 and drawn.max() <= 1
    expected = scipy.stats.beta(alpha, alpha)
    places = np.linspace(0.001, 0.999, 999)  # nearer to the ends float32 cannot tell weights from them
    below = np.searchsorted(np.sort(drawn), places) / len(drawn)
    assert np.abs(below - expected.cdf(places)).max() < 2.2 / np.sqrt(len(drawn))  # Kolmogorov and Smirnov, at RARE
    assert abs(drawn.mean() - 0.5) < 4 * expected.std() / np.sqrt(20_000)
    np.testing.assert_allclose(drawn.var(), expected.var(), rtol=0.04)


def test_the_ends_of_the_uniform_range_give_weights_too():
    ends = np.array([[u, v] for u in (0, 1e-30, 0.5, 1 - 2**-24) for v in (0, 0.25, 0.5, 1 - 2**-24)], np.float32)
    for alpha in (0.05, 1.0, 50.0):
        actual = np.asarray(mixup.beta_weight(jnp.asarray(ends), alpha))
        assert ((actual >= 0) & (actual <= 1)).all()


def test_mixup_weighs_all_pixels_of_an_image_alike(batch):
    own = weights(batch, mixup.mixup, alpha=0.4, mode="example")
    np.testing.assert_allclose(own.max((1, 2)), own.min((1, 2)), atol=1e-6)
    assert scipy.stats.kstest(own[:, 0, 0], scipy.stats.beta(0.4, 0.4).cdf).pvalue > RARE
    assert abs(np.corrcoef(own[:, 0, 0], own[::-1, 0, 0])[0, 1]) < 0.13


def test_cutmix_pastes_a_box_of_the_image_at_the_same_place_of_the_partner():
    images = np.random.default_rng(0).uniform(size=(6, HEIGHT, WIDTH, 3)).astype(np.float32)
    targets = np.eye(6, dtype=np.float32)
    cutmix = compiled(mixup.cutmix, alpha=1.0, mode="example")
    mixed, mixed_targets = (np.asarray(x) for x in cutmix(jax.random.key(2), images, targets))
    pasted = (mixed != images).any(-1)
    assert pasted.any((1, 2)).sum() >= 4
    for i in range(6):
        rows, columns = pasted[i].any(1), pasted[i].any(0)
        np.testing.assert_array_equal(pasted[i], rows[:, None] & columns)
        np.testing.assert_array_equal(mixed[i][pasted[i]], images[5 - i][pasted[i]])
        expected = np.eye(6)[i] * (1 - pasted[i].mean()) + np.eye(6)[5 - i] * pasted[i].mean()
        np.testing.assert_allclose(mixed_targets[i], expected, atol=1e-6)


def published_share(generator, alpha):
    """The share of an image that CutMix keeps, by the pseudo-code of the paper and its published code."""
    side = np.sqrt(1 - generator.beta(alpha, alpha))
    ends = []
    for size in (HEIGHT, WIDTH):
        half, center = int(size * side) // 2, generator.integers(size)
        ends.append(np.clip(center + half, 0, size) - np.clip(center - half, 0, size))
    return 1 - ends[0] * ends[1] / (HEIGHT * WIDTH)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_share_that_cutmix_keeps_is_distributed_as_published(batch, alpha):
    own = weights(batch, mixup.cutmix, alpha=alpha, mode="example")
    assert set(np.unique(own)) == {0.0, 1.0}
    generator = np.random.default_rng(0)
    expected = [published_share(generator, alpha) for _ in range(MANY)]
    assert scipy.stats.ks_2samp(own.mean((1, 2)), expected).pvalue > RARE
    center = (1 - own).mean(0)  # boxes lie anywhere, and by halves on either side
    np.testing.assert_allclose(center[:, : WIDTH // 2].mean(), center[:, WIDTH // 2 :].mean(), rtol=0.15)
    np.testing.assert_allclose(center[: HEIGHT // 2].mean(), center[HEIGHT // 2 :].mean(), rtol=0.15)


@pytest.mark.parametrize("operation", [mixup.mixup, mixup.cutmix])
def test_a_batch_is_mixed_by_one_draw_and_another_key_draws_another(batch, operation):
    first, other = (weights(batch, operation, seed=seed, alpha=1.0) for seed in (1, 2))
    for own in (first, other):
        np.testing.assert_allclose(own, np.broadcast_to(own[:1], own.shape), atol=1e-6)
    assert np.abs(first[0] - other[0]).max() > 0.01


def test_both_are_switched_between_and_left_out_with_their_probabilities(batch):
    own = weights(batch, mixup.mix, mixup=2.0, cutmix=1.0, switch=0.3, probability=0.8, mode="example")
    flat = own.max((1, 2)) - own.min((1, 2)) < 1e-5
    blended = flat & (own[:, 0, 0] < 1 - 1e-5) & (own[:, 0, 0] > 1e-5)
    cut = (~flat).sum() + (own == 0).all((1, 2)).sum()
    assert abs(blended.sum() - 0.8 * 0.7 * MANY) < 4 * np.sqrt(MANY * 0.56 * 0.44)
    assert abs(cut - 0.8 * 0.3 * MANY) < 4 * np.sqrt(MANY * 0.24 * 0.76) + 0.02 * MANY  # some boxes have no pixel
    assert scipy.stats.kstest(own[blended, 0, 0], scipy.stats.beta(2, 2).cdf).pvalue > RARE


@pytest.mark.parametrize("per", ["batch", "example"])
def test_nothing_is_mixed_with_what_does_not_count(batch, per):
    mask = np.ones(MANY, np.float32)
    mask[[3, MANY - 8]] = 0
    mixed = compiled(mixup.mix, mixup=1.0, cutmix=1.0, mode=per)(jax.random.key(2), *batch, mask=mask)
    full = compiled(mixup.mix, mixup=1.0, cutmix=1.0, mode=per)(jax.random.key(2), *batch)
    partners = [MANY - 4, 7]
    for actual, everything, settings in zip(mixed, full, batch):
        np.testing.assert_array_equal(actual[np.array(partners)], settings[np.array(partners)])
        others = np.setdiff1d(np.arange(MANY), partners)
        np.testing.assert_allclose(actual[others], everything[others], atol=1e-5)  # shares are drawn to about that


def test_off_they_leave_the_batch_as_it_is(batch):
    assert mixup.mix(jax.random.key(0), *batch, mixup=0.0, cutmix=0.0) == batch
    never = compiled(mixup.mix, mixup=1.0, cutmix=1.0, probability=0.0, mode="example")(jax.random.key(0), *batch)
    for actual, settings in zip(never, batch):
        np.testing.assert_array_equal(actual, settings)


@pytest.mark.parametrize("per", ["batch", "example"])
def test_eight_devices_mix_as_one_does(per, mesh8):
    images = np.random.default_rng(0).uniform(size=(16, HEIGHT, WIDTH, 3)).astype(np.float32)
    targets = np.eye(16, dtype=np.float32)
    run = jax.jit(functools.partial(mixup.mix, mixup=0.8, cutmix=1.0, mode=per))
    expected = run(jax.random.key(5), images, targets)
    shared = jax.device_put((images, targets), NamedSharding(mesh8, PartitionSpec(mesh.BATCH_AXES)))
    for actual, settings in zip(run(jax.random.key(5), *shared), expected):
        np.testing.assert_allclose(actual, settings, atol=1e-5)


def test_mixing_per_anything_else_is_refused(batch):
    with pytest.raises(UserError, match=r"mix_mode must be 'batch' or 'example', got 'pixel'$"):
        mixup.mix(jax.random.key(0), *batch, mixup=1.0, cutmix=0.0, mode="pixel")
