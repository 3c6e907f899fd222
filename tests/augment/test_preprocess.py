"""Preprocessing resizes, augments in the order it says, normalizes; each example on its own, on any devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image
from sklearn import datasets

from patchnets import config
from patchnets.augment import color, geometry, policies
from patchnets.augment.preprocess import Augment, Preprocess, check_channels, normalization
from patchnets.errors import UserError
from patchnets.parallel import mesh

SIZE = 16  # pixels a side of most images here
MANY = 512  # examples, enough to see how what is random is distributed
TOLERANCE = 2e-3  # of a gray level, for sums of float32
MOVES = dict(
    flip=True, crop_padding=1, crop_scale_min=0.5, zoom=0.3, rotation=0.1, shear=0.1, translate=0.2
)  # all of them


@pytest.fixture(scope="module")
def photos():
    """Eight squares of a real photograph."""
    photo = datasets.load_sample_image("flower.jpg")
    return np.stack([photo[100 + i * 30 : 100 + i * 30 + SIZE, 250 + i * 20 : 250 + i * 20 + SIZE] for i in range(8)])


@pytest.fixture(scope="module")
def small(photos):
    """Parts of them that are smaller than what is asked for, and no squares."""
    return np.ascontiguousarray(photos[:, :10, :12])


def pixels(image_size=SIZE, channels=3, **augment):
    """Preprocessing that leaves pixels on the scale of a byte."""
    return Preprocess(image_size, (0.0,) * channels, (1.0,) * channels, Augment(**augment))


def run(preprocess, images, key=None):
    """On one device, filled up to a batch of MANY, so that all tests share what is compiled."""
    batch = np.resize(images, (MANY, *images.shape[1:]))
    return np.asarray(preprocess(jnp.asarray(batch), key))[: len(images)]


# Resizing.


@pytest.mark.parametrize("share", [1.0, 0.75])
def test_evaluation_keeps_the_center_and_resizes_it_as_pillow_does(small, share):
    preprocess = dataclasses.replace(pixels(zoom=0.3, crop_padding=2), crop_pct=share)
    margin = np.array([6, 5]) * (1 - share)  # of width and height
    box = (*margin, *(np.array([12, 10]) - margin))
    expected = [Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box) for image in small]
    assert np.abs(run(preprocess, small) - np.stack(expected)).max() <= 1.0


def test_a_share_of_evaluation_images_is_no_matter_of_training(photos):
    preprocess = dataclasses.replace(pixels(), crop_pct=0.5)
    np.testing.assert_array_equal(run(preprocess, photos, jax.random.key(0)), photos)
    assert np.abs(run(preprocess, photos) - photos).max() > 10


def test_an_image_of_the_right_size_passes_unchanged(photos):
    np.testing.assert_array_equal(run(pixels(), photos), photos)
    np.testing.assert_array_equal(run(pixels(), photos, jax.random.key(0)), photos)


@pytest.mark.slow
def test_the_output_is_float32(photos, small):
    assert run(pixels(), small).dtype == np.float32
    assert run(pixels(zoom=0.1), photos, jax.random.key(0)).dtype == np.float32


# Augmentation.


def stand_in(monkeypatch, module, name, calls):
    """Puts a function that leaves images as they are, and notes its settings and what they span, for one with tests."""

    def noted(key, images, **settings):
        calls.append((name, settings, float(images.min()), float(images.max())))
        return images

    monkeypatch.setattr(module, name, noted)


def test_the_settings_are_those_of_the_configuration():
    names = {name.removeprefix("augment."): key.default for name, key in config.KEYS.items() if "augment." in name}
    assert dataclasses.asdict(Augment()) == names
    assert not Augment() and not Augment(mixup=0.5, cutmix=1.0, randaugment_num_ops=3, random_erasing_prob=0.5)
    used = dict(
        flip=True,
        flip_vertical=True,
        crop_padding=1,
        crop_scale_min=0.5,
        zoom=0.1,
        rotation=0.1,
        shear=0.1,
        translate=0.1,
        hue=0.1,
    )
    used |= dict(brightness=0.1, contrast=0.1, saturation=0.1, grayscale=0.1, policy="randaugment")
    assert all(Augment(**{name: value}) for name, value in used.items())


def test_stored_images_are_resized_first_and_then_augmented(small):
    key = jax.random.key(8)
    resized = jnp.asarray(np.resize(run(pixels(), small), (MANY, SIZE, SIZE, 3)))
    expected = geometry.random_zoom(key, geometry.random_flip(key, resized), zoom=0.3)[:8]
    np.testing.assert_allclose(run(pixels(zoom=0.3, flip=True), small, key), expected, atol=TOLERANCE)


@pytest.mark.slow
def test_all_that_is_geometric_is_the_same_as_one_after_the_other(photos):
    key = jax.random.key(3)

    @jax.jit
    def one_by_one(x):
        keys = geometry.example_keys(key, len(x))
        x = geometry.random_crop(key, x, padding=1)
        x = geometry.random_resized_crop(key, x, area=0.5, size=SIZE)
        x = geometry.warp(x, geometry.affine_matrices(keys, rotation=0.1, shear=0.1))
        return geometry.resample(x, *geometry.augment_matrices(keys, SIZE, SIZE, flip=True, zoom=0.3, shift=0.2))

    expected = one_by_one(jnp.asarray(np.resize(photos, (MANY, SIZE, SIZE, 3)), jnp.float32))[:8]
    np.testing.assert_allclose(run(pixels(**MOVES), photos, key), expected, atol=TOLERANCE)


@pytest.mark.slow
def test_images_are_turned_upside_down_after_all_else(photos):
    key = jax.random.key(3)
    which = geometry.sample_flip(geometry.example_keys(key, 8), geometry.FLIP_VERTICAL)
    without = run(pixels(**MOVES), photos, key)
    expected = np.where(np.asarray(which)[:, None, None, None], without[:, ::-1], without)
    np.testing.assert_allclose(run(pixels(**MOVES, flip_vertical=True), photos, key), expected, atol=TOLERANCE)
    assert 0 < which.sum() < 8


def test_padding_is_black_whatever_the_normalization():
    images = np.full((8, SIZE, SIZE, 3), 200, np.uint8)
    got = run(Preprocess(SIZE, (100.0,) * 3, (50.0,) * 3, Augment(crop_padding=4)), images, jax.random.key(0))
    np.testing.assert_allclose(np.unique(got), [-2, 2], atol=1e-6)


def test_rotation_comes_between_resizing_and_zooming_and_off_it_changes_nothing(small):
    still = run(pixels(), small)
    turned = run(pixels(rotation=1e-9), small, jax.random.key(0))
    np.testing.assert_allclose(turned, still, atol=0.01)
    both = run(pixels(rotation=0.05, flip=True, zoom=0.2), small, jax.random.key(0))
    assert both.shape == still.shape and np.abs(both - still).max() > 10


def test_cropped_images_are_neither_cropped_nor_resized_again(photos):
    key, augment = jax.random.key(2), dict(crop_scale_min=0.3, flip=True, zoom=0.2)
    cropped = dataclasses.replace(pixels(**augment), cropped=True, crop_pct=0.5)
    np.testing.assert_array_equal(run(cropped, photos), photos)
    np.testing.assert_array_equal(run(cropped, photos, key), run(pixels(flip=True, zoom=0.2), photos, key))
    only = dataclasses.replace(pixels(crop_scale_min=0.3), cropped=True)
    np.testing.assert_array_equal(run(only, photos, key), photos)


@pytest.mark.parametrize(
    ("policy", "function", "expected"),
    [
        (
            "randaugment",
            "rand_augment",
            dict(num_ops=3, magnitude=7.0, magnitude_std=0.5, probability=0.9, variant="tensorflow"),
        ),
        ("autoaugment_cifar10", "auto_augment", dict(policy="cifar10")),
        ("autoaugment_imagenet", "auto_augment", dict(policy="imagenet")),
        ("trivialaugment", "trivial_augment", {}),
    ],
)
def test_levels_are_changed_then_the_policy_applied_then_normalized(monkeypatch, photos, policy, function, expected):
    calls = []
    stages = [(color, "color_jitter"), (color, "grayscale"), (policies, function)]
    for module, name in stages:
        stand_in(monkeypatch, module, name, calls)
    augment = dict(
        randaugment_num_ops=3, magnitude=7.0, magnitude_std=0.5, randaugment_prob=0.9, randaugment_variant="tensorflow"
    )
    augment |= dict(brightness=0.1, contrast=0.2, saturation=0.3, hue=0.4, grayscale=0.5, policy=policy)
    preprocess = Preprocess(SIZE, (127.5,) * 3, (127.5,) * 3, Augment(**augment))
    normalized = preprocess(jnp.asarray(photos), jax.random.key(0))
    assert [call[:2] for call in calls] == [
        ("color_jitter", dict(brightness=0.1, contrast=0.2, saturation=0.3, hue=0.4)),
        ("grayscale", dict(probability=0.5)),
        (function, expected),
    ]
    assert all(most > 100 for *_, most in calls)  # levels
    assert -1 <= normalized.min() < normalized.max() <= 1


def test_colors_of_gray_images_cannot_be_changed():
    for name in ("saturation", "hue", "grayscale"):
        check_channels(Augment(**{name: 0.1}), 3)
        with pytest.raises(UserError, match=rf"^config.augment.{name}=0.1 changes colors, .* gray; set it to 0$"):
            check_channels(Augment(**{name: 0.1}), 1)
    check_channels(Augment(brightness=0.1, policy="randaugment"), 1)


def test_the_same_key_gives_the_same_images_and_another_key_others(photos):
    preprocess = pixels(flip=True, zoom=0.2, translate=0.1)
    first, again, other = (run(preprocess, photos, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert all(np.abs(a - b).max() > 1 for a, b in zip(first, other))


def test_equal_images_in_a_batch_are_augmented_differently(photos):
    got = run(pixels(zoom=0.2), np.repeat(photos[:1], 8, 0), jax.random.key(0))
    assert all(np.abs(got[i] - got[j]).max() > 1 for i in range(8) for j in range(i))


def test_an_examples_augmentation_does_not_depend_on_the_rest_of_its_batch(photos):
    preprocess, key = pixels(flip=True, zoom=0.3, translate=0.2), jax.random.key(9)
    full = run(preprocess, photos, key)
    beside_others = run(preprocess, np.concatenate([photos[:3], 255 - photos[3:]]), key)
    np.testing.assert_allclose(full[:3], beside_others[:3], atol=TOLERANCE)


def test_evaluation_has_nothing_random(small):
    np.testing.assert_array_equal(run(pixels(flip=True, zoom=0.5, translate=0.5), small), run(pixels(), small))


def test_a_key_without_augmentation_changes_nothing(small):
    np.testing.assert_array_equal(run(pixels(), small, jax.random.key(0)), run(pixels(), small))


# Normalization.


@pytest.fixture(scope="module", params=[1, 3])
def colored(request):
    """Images of one channel or three, of unlike means and deviations."""
    generator = np.random.default_rng(2)
    shape = (8, SIZE, SIZE)
    channels = [generator.integers(low, high, shape) for low, high in ((0, 256), (100, 110), (0, 40))]
    return np.stack(channels[: request.param], -1).astype(np.uint8)


def test_symmetric_and_unit_span_their_ranges(colored):
    channels = colored.shape[-1]
    ends = np.broadcast_to(np.uint8([0, 255] * 4)[:, None, None, None], (8, SIZE, SIZE, channels))
    for name, low in (("symmetric", -1), ("unit", 0)):
        got = run(Preprocess(SIZE, *normalization(name, colored)), ends)
        np.testing.assert_allclose(got[::2], low, atol=1e-6)
        np.testing.assert_allclose(got[1::2], 1, atol=1e-6)


def test_dataset_normalization_is_numpys_mean_and_deviation(colored):
    mean, std = normalization("dataset", colored)
    np.testing.assert_allclose(mean, colored.mean((0, 1, 2), dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(std, colored.std((0, 1, 2), dtype=np.float64), rtol=1e-9)
    got = run(Preprocess(SIZE, mean, std), colored).astype(np.float64)
    np.testing.assert_allclose(got.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(got.std((0, 1, 2)), 1, atol=1e-5)


def test_dataset_normalization_takes_few_images_or_many_and_maps_them_from_disk(colored, tmp_path):
    for images in (colored[:3], np.concatenate([colored, 255 - colored, colored // 2] * 7)):
        np.save(tmp_path / "images.npy", images)
        mean, std = normalization("dataset", np.load(tmp_path / "images.npy", mmap_mode="r"))
        np.testing.assert_allclose(mean, images.mean((0, 1, 2)), rtol=1e-9)
        np.testing.assert_allclose(std, images.std((0, 1, 2)), rtol=1e-9)


def test_a_channel_without_variation_stays_finite():
    images = np.full((8, SIZE, SIZE, 1), 37, np.uint8)
    got = run(Preprocess(SIZE, *normalization("dataset", images)), images)
    np.testing.assert_array_equal(got, 0)


def test_imagenet_normalization_uses_the_published_numbers(photos):
    mean, std = normalization("imagenet", photos)
    expected = (photos / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(run(Preprocess(SIZE, mean, std), photos), expected, atol=1e-5)


def test_imagenet_normalization_of_gray_images_is_near_that_of_the_same_images_in_color(photos):
    gray = photos.mean(-1, keepdims=True).astype(np.uint8)
    first = run(Preprocess(SIZE, *normalization("imagenet", gray)), gray)
    three = run(Preprocess(SIZE, *normalization("imagenet", photos)), np.repeat(gray, 3, -1))
    assert first.shape == (*gray.shape[:3], 1)
    np.testing.assert_allclose(first, three.mean(-1, keepdims=True), atol=0.1)


def test_normalization_and_augmentation_can_be_exchanged(photos):
    mean, std, key = (100.0, 120.0, 140.0), (50.0, 60.0, 70.0), jax.random.key(10)
    augment = Augment(flip=True, zoom=0.3, translate=0.1)
    got = run(Preprocess(SIZE, mean, std, augment), photos, key)
    expected = (run(Preprocess(SIZE, (0.0,) * 3, (1.0,) * 3, augment), photos, key) - mean) / np.array(std)
    np.testing.assert_allclose(got, expected, atol=1e-4)


# Devices.


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, 11])
def test_eight_devices_make_the_images_that_one_makes_even_in_a_larger_batch(photos, mesh8, key):
    preprocess = Preprocess(SIZE, *normalization("dataset", photos), Augment(**MOVES))
    key = None if key is None else jax.random.key(key)
    images = jax.device_put(photos, NamedSharding(mesh8, PartitionSpec(mesh.BATCH_AXES)))
    program = jax.jit(preprocess).lower(images, key).compile()
    got = program(images, key)
    assert len(got.sharding.device_set) == 8
    np.testing.assert_allclose(got, run(preprocess, photos, key), atol=1e-4)
    assert not any(name in program.as_text() for name in ("all-gather", "all-reduce", "all-to-all", "permute("))
