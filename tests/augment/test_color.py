"""Color operations do what Pillow and Python's colorsys do, and draw their strengths as documented."""

import colorsys
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps
from sklearn import datasets

from patchnets.augment import color
from patchnets.parallel import mesh

FACTORS = (0.0, 0.25, 0.7, 1.0, 1.3, 1.9, 2.8)
LEVEL = 1.001  # Pillow cuts fractions off, here they are kept
MANY = 512  # images, enough to see how what is random is distributed


@pytest.fixture(scope="module", params=["RGB", "L"])
def photos(request):
    """Seven photographs of 24 x 40 pixels, in color and in gray."""
    pictures = [Image.fromarray(photo) for photo in datasets.load_sample_images().images]
    boxes = [(80 * i, 30 * i, 80 * i + 160, 30 * i + 96) for i in range(len(FACTORS))]
    crops = [
        pictures[i % 2].resize((40, 24), Image.Resampling.BOX, box).convert(request.param)
        for i, box in enumerate(boxes)
    ]
    return np.stack([np.asarray(crop).reshape(24, 40, -1) for crop in crops])


@pytest.fixture(scope="module")
def colors():
    """Images of 2 x 4 pixels of any colors."""
    return np.random.default_rng(0).integers(0, 256, (MANY, 2, 4, 3)).astype(np.float32)


def pillow(operation, photos, strengths=None):
    """`operation(picture, strength)` of Pillow on each image."""
    strengths = itertools.repeat(None) if strengths is None else strengths
    results = [operation(Image.fromarray(photo.squeeze()), strength) for photo, strength in zip(photos, strengths)]
    return np.stack([np.asarray(result) for result in results]).reshape(photos.shape)


def on_levels(operation, photos, *strengths):
    return np.asarray(jax.jit(operation)(photos.astype(np.float32), *map(jnp.asarray, strengths)))


def kolmogorov_smirnov(drawn, low, high):
    """How far the numbers drawn are from uniform, as a multiple of what one sample in a hundred exceeds."""
    drawn = np.sort(drawn)
    steps = (np.arange(len(drawn)) + 0.5) / len(drawn)
    return np.abs((drawn - low) / (high - low) - steps).max() * np.sqrt(len(drawn)) / 1.63


# With a strength for each image.


@pytest.mark.parametrize(
    ("adjust", "enhance"),
    [
        (color.adjust_brightness, ImageEnhance.Brightness),
        (color.adjust_contrast, ImageEnhance.Contrast),
        (color.adjust_saturation, ImageEnhance.Color),
        (color.adjust_sharpness, ImageEnhance.Sharpness),
    ],
)
def test_factors_do_what_pillow_does(photos, adjust, enhance):
    got = on_levels(adjust, photos, FACTORS)
    expected = pillow(lambda picture, factor: enhance(picture).enhance(factor), photos, FACTORS)
    np.testing.assert_allclose(got, expected, atol=LEVEL)
    assert got.dtype == np.float32
    assert got.min() >= 0 and got.max() <= 255


def test_solarizing_is_pillows(photos):
    thresholds = (0, 1, 60, 128, 200, 255, 256)
    expected = pillow(lambda picture, threshold: ImageOps.solarize(picture, threshold), photos, thresholds)
    np.testing.assert_array_equal(on_levels(color.solarized, photos, thresholds), expected)


def test_posterizing_is_pillows(photos):
    bits = (1, 2, 3, 4, 6, 7, 8)
    expected = pillow(lambda picture, count: ImageOps.posterize(picture, count), photos, bits)
    np.testing.assert_array_equal(on_levels(color.posterized, photos, bits), expected)


def test_equalizing_is_pillows(photos):
    expected = pillow(lambda picture, _: ImageOps.equalize(picture), photos)
    np.testing.assert_array_equal(on_levels(color.equalized, photos), expected)
    assert np.abs(expected - photos.astype(float)).max() > 50


def test_equalizing_is_pillows_where_few_levels_or_pixels_are(photos):
    dark = photos // 16 + 3
    flat = np.full_like(photos, 90)
    few = photos[:, :8, :33]  # 264 pixels: a step is one pixel or none
    for images in (dark, flat, few):
        expected = pillow(lambda picture, _: ImageOps.equalize(picture), images)
        np.testing.assert_array_equal(on_levels(color.equalized, images), expected)


def test_stretching_contrast_is_pillows(photos):
    narrow = photos // 3 + 20
    expected = pillow(lambda picture, _: ImageOps.autocontrast(picture), narrow)
    np.testing.assert_allclose(on_levels(color.autocontrasted, narrow), expected, atol=LEVEL)
    assert np.ptp(expected) > 250 > 2 * np.ptp(narrow)
    flat = np.full(photos.shape, 90, np.float32)
    np.testing.assert_array_equal(color.autocontrasted(flat), flat)


def test_inverting_is_pillows(photos):
    expected = pillow(lambda picture, _: ImageOps.invert(picture), photos)
    np.testing.assert_array_equal(on_levels(color.inverted, photos), expected)


def test_the_gray_image_is_pillows_and_a_gray_one_stays_as_it_is(photos):
    gray = [np.asarray(Image.fromarray(photo.squeeze()).convert("L")) for photo in photos]
    got = on_levels(color.gray_levels, photos)
    assert got.shape == (*photos.shape[:3], 1)
    np.testing.assert_allclose(got[..., 0], gray, atol=1)  # Pillow's weights are 16-bit fractions
    assert (got[..., 0] == gray).mean() > 0.999


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.3])
def test_hue_is_turned_as_in_colorsys(colors, shift):
    images = colors[:16].copy()
    images[0, 0] = [[0, 0, 0], [255, 255, 255], [70, 70, 70], [255, 0, 0]]
    images[0, 1] = [[0, 255, 0], [0, 0, 255], [255, 255, 0], [9, 8, 9]]

    def turned(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        return 255 * np.array(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value))

    got = on_levels(color.adjust_hue, images, np.full(16, shift, np.float32))
    np.testing.assert_allclose(got, np.apply_along_axis(turned, -1, images.astype(float)), atol=0.01)
    gray = images[..., :1]
    np.testing.assert_array_equal(color.adjust_hue(gray, jnp.full(16, shift)), gray)


# Drawn from a key.


@pytest.mark.parametrize(("limit", "low"), [(0.4, 0.6), (0.9, 0.1), (1.5, 0.0)])
def test_factors_are_uniform_about_one_and_never_negative(limit, low):
    images = jnp.full((MANY, 1, 1, 1), 100.0)
    got = np.asarray(color.brightness(jax.random.key(0), images, limit=limit))[:, 0, 0, 0] / 100
    assert got.min() >= low and got.max() <= 1 + limit
    assert kolmogorov_smirnov(got, low, 1 + limit) < 1


@pytest.mark.parametrize("name", ["contrast", "saturation", "sharpness"])
def test_the_others_take_factors_from_the_same_range(colors, name):
    images = 100 + colors.reshape(-1, 4, 4, 3)[:128] / 10  # nothing is clipped
    got = np.asarray(getattr(color, name)(jax.random.key(1), images, limit=0.5))
    degenerate = np.asarray(getattr(color, f"adjust_{name}")(images, jnp.zeros(len(images))))
    away, before = got - degenerate, images - degenerate
    factors = (away * before).sum((1, 2, 3)) / (before**2).sum((1, 2, 3))
    np.testing.assert_allclose(away, factors[:, None, None, None] * before, atol=1e-3)
    assert factors.min() >= 0.5 - 1e-4 and factors.max() <= 1.5 + 1e-4
    assert kolmogorov_smirnov(factors, 0.5, 1.5) < 1


def test_hue_shifts_are_uniform_both_ways():
    images = jnp.tile(jnp.array([200.0, 50.0, 50.0]), (MANY, 1, 1, 1))
    got = np.asarray(color.hue(jax.random.key(2), images, limit=0.1))[:, 0, 0]
    shifts = np.array([(colorsys.rgb_to_hsv(*pixel)[0] + 0.5) % 1 - 0.5 for pixel in got / 255])
    assert np.abs(shifts).max() <= 0.1 + 1e-6
    assert kolmogorov_smirnov(shifts, -0.1, 0.1) < 1


@pytest.mark.parametrize(
    ("random", "certain"),
    [
        (color.grayscale, lambda images: jnp.broadcast_to(color.gray_levels(images), images.shape)),
        (color.equalize, color.equalized),
        (color.autocontrast, color.autocontrasted),
        (color.invert, color.inverted),
        (
            functools.partial(color.solarize, threshold=100),
            lambda images: color.solarized(images, jnp.array([100.0])),
        ),
        (
            functools.partial(color.posterize, bits=3),
            lambda images: color.posterized(images, jnp.array([3.0])),
        ),
    ],
    ids=["grayscale", "equalize", "autocontrast", "invert", "solarize", "posterize"],
)
def test_an_operation_is_applied_with_its_probability(colors, random, certain):
    images = jnp.tile(colors.reshape(-1, 4, 8, 3)[:1], (MANY, 1, 1, 1)) * 0.9
    changed = jax.jit(certain)(images)
    run = jax.jit(lambda probability: random(jax.random.key(3), images, probability=probability))
    for probability in (0.0, 0.3, 1.0):
        got = run(probability)
        applied = np.asarray((got == changed).all((1, 2, 3)))
        np.testing.assert_array_equal(applied | np.asarray((got == images).all((1, 2, 3))), True)
        assert abs(applied.mean() - probability) <= 4 * np.sqrt(probability * (1 - probability) / MANY)


# Color jitter.


def test_jitter_without_limits_changes_nothing(colors):
    np.testing.assert_array_equal(color.color_jitter(jax.random.key(0), colors), colors)


@pytest.mark.slow
def test_jitter_takes_the_operations_in_every_order_by_factors_drawn_for_each_image(colors):
    key, limits = jax.random.key(4), dict(brightness=0.5, contrast=0.6, saturation=0.7)
    images = colors
    got = np.asarray(jax.jit(functools.partial(color.color_jitter, **limits))(key, images))
    keys = jax.random.split(key, 5)[1:4]
    adjust = {
        name: functools.partial(getattr(color, f"adjust_{name}"), factor=color.jitter_factors(k, len(images), limit))
        for k, (name, limit) in zip(keys, limits.items())
    }
    met = []
    for order in itertools.permutations(limits):
        expected = images
        for name in order:
            expected = adjust[name](expected)
        met.append(np.abs(got - expected).max((1, 2, 3)) < 1.5)  # the mean and the gray image are whole levels
    assert np.any(met, 0).all()
    only = np.array(met)[:, np.sum(met, 0) == 1]  # where orders differ
    assert (only.sum(1) > 0).all()


def test_jitter_by_one_operation_draws_from_its_range():
    images = jnp.tile(jnp.array([100.0, 100.0, 100.0]), (MANY, 1, 1, 1))
    got = np.asarray(color.color_jitter(jax.random.key(5), images, brightness=0.4))[:, 0, 0, 0] / 100
    assert kolmogorov_smirnov(got, 0.6, 1.4) < 1


def test_jitter_turns_hue_and_leaves_gray_images_their_saturation(colors):
    key = jax.random.key(6)
    got = np.asarray(color.color_jitter(key, colors, hue=0.5))
    np.testing.assert_allclose(got.max(-1), colors.max(-1), atol=1e-3)
    np.testing.assert_allclose(got.min(-1), colors.min(-1), atol=1e-3)
    assert np.abs(got - colors).mean() > 30
    gray = colors[..., :1]
    np.testing.assert_allclose(color.color_jitter(key, gray, saturation=0.9, hue=0.5), gray, atol=1e-4)


# Keys, batches and devices.


@jax.jit
def everything(key, images):
    """All operations that draw, one after the other."""
    keys = iter(jax.random.split(key, 8))
    images = color.color_jitter(next(keys), images, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    images = color.sharpness(next(keys), images, limit=0.9)
    for operation in (color.equalize, color.autocontrast, color.invert, color.grayscale):
        images = operation(next(keys), images, probability=0.3)
    return images


@pytest.mark.slow
def test_an_image_does_not_depend_on_the_rest_of_its_batch(colors):
    images = colors.reshape(-1, 8, 8, 3)[:16]
    full = everything(jax.random.key(7), images)
    beside_others = everything(jax.random.key(7), np.concatenate([images[:3], 255 - images[3:]]))
    np.testing.assert_array_equal(full[:3], beside_others[:3])
    assert np.abs(everything(jax.random.key(8), images) - full).mean() > 1
    same = np.asarray(everything(jax.random.key(7), np.repeat(images[:1], 16, 0)))
    assert all(np.abs(same[i] - same[j]).max() > 1 for i in range(16) for j in range(i))


@pytest.mark.slow
def test_eight_devices_make_the_images_that_one_makes_and_exchange_nothing(colors, mesh8):
    images = colors.reshape(-1, 8, 8, 3)[:16]
    alone = everything(jax.random.key(9), images)
    split = NamedSharding(mesh8, PartitionSpec(mesh.BATCH_AXES))
    shared = jax.jit(everything, out_shardings=split).lower(jax.random.key(9), jax.device_put(images, split)).compile()
    got = shared(jax.random.key(9), jax.device_put(images, split))
    assert len(got.sharding.device_set) == 8
    np.testing.assert_allclose(got, alone, atol=1e-3)
    program = shared.as_text()
    assert not any(exchange in program for exchange in ("all-gather", "all-reduce", "all-to-all", "collective"))
