"""Preprocessing resizes, augments and normalises as NumPy and Keras do, each example on its own, on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from sklearn import datasets

from patchnets import sharding
from patchnets.data.preprocess import (
    Augment,
    Preprocess,
    augment_matrices,
    normalisation,
    reflect,
    resize_matrix,
    rotate,
)

SIZE = 16  # pixels a side of most images here
CENTRE = (SIZE - 1) / 2
MANY = 512  # examples, enough to see how what is random is distributed
TOLERANCE = 2e-3  # of a gray level, for sums of float32


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    """Keras, computing with TensorFlow, which has nothing to compile, and keeping its settings to itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "tensorflow")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        return pytest.importorskip("keras")


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


PAD = 3 * SIZE
STEP = 16  # levels between two pixels of a ramp


def ramps():
    """Many images whose first channel tells the row of a pixel, and whose second tells its column."""
    rows, columns = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    return np.broadcast_to(np.stack([rows, columns], -1) * STEP, (MANY, SIZE, SIZE, 2)).astype(np.uint8)


@pytest.fixture(scope="module")
def sampled():
    """(key, **augment) -> per example and axis, where each output line's pixels came from, as factor and offset.

    Read off ramps: near the centre of an image nothing is reflected, so that the source there is
    centre + offset + factor * distance from the centre. A negative factor of the columns is a mirrored image.
    """

    def read(key, **augment):
        sources = run(pixels(channels=2, **augment), ramps(), key) / STEP
        lines = sources[:, :, SIZE // 2, 0], sources[:, SIZE // 2, :, 1]
        left, right = SIZE // 2 - 1, SIZE // 2
        factors = np.stack([line[:, right] - line[:, left] for line in lines], 1)
        offsets = np.stack([(line[:, right] + line[:, left]) / 2 - CENTRE for line in lines], 1)
        return factors, offsets

    return read


def at(image, y, x):
    """The image at any point: bilinear between centres, mirrored about its edges (d c b a | a b c d | d c b a)."""
    mirrored = np.pad(image.astype(np.float64), ((PAD, PAD), (PAD, PAD), (0, 0)), mode="symmetric")
    y, x = y + PAD, x + PAD
    top, left = int(np.floor(y)), int(np.floor(x))
    b, r = y - top, x - left
    upper = (1 - r) * mirrored[top, left] + r * mirrored[top, left + 1]
    lower = (1 - r) * mirrored[top + 1, left] + r * mirrored[top + 1, left + 1]
    return (1 - b) * upper + b * lower


def warped(image, factors, offsets):
    """Every pixel of the output looked up in the input, one by one."""
    sources = [CENTRE + offsets[i] + factors[i] * (np.arange(SIZE) - CENTRE) for i in (0, 1)]
    return np.array([[at(image, y, x) for x in sources[1]] for y in sources[0]])


# Resizing.


def test_resizing_is_keras_bilinear_resizing(keras, small):
    size = (SIZE, SIZE)
    expected = keras.ops.image.resize(small.astype(np.float32), size, interpolation="bilinear", antialias=False)
    np.testing.assert_allclose(run(pixels(), small), keras.ops.convert_to_numpy(expected), atol=TOLERANCE)


@pytest.mark.parametrize(("out", "size"), [(27, 9), (3, 16)])
def test_a_line_is_resized_between_the_centres_of_pixels(out, size):
    line = np.random.default_rng(1).uniform(0, 255, size)
    centres = (np.arange(out) + 0.5) * size / out - 0.5
    np.testing.assert_allclose(resize_matrix(out, size) @ line, np.interp(centres, np.arange(size), line), rtol=1e-5)


def test_an_image_of_the_right_size_passes_unchanged(photos):
    np.testing.assert_array_equal(run(pixels(), photos), photos)
    np.testing.assert_array_equal(run(pixels(), photos, jax.random.key(0)), photos)


def test_the_output_is_float32(photos, small):
    assert run(pixels(), small).dtype == np.float32
    assert run(pixels(zoom=0.1), photos, jax.random.key(0)).dtype == np.float32


# Augmentation.


def test_positions_beyond_the_edges_are_mirrored_back():
    size = 5
    expected = np.pad(np.arange(size), 2 * size, mode="symmetric")
    np.testing.assert_allclose(reflect(jnp.arange(-2.0 * size, 3.0 * size), size), expected, atol=1e-5)


def test_zoom_looks_pixels_up_as_keras_random_zoom_does(keras, photos, sampled):
    key = jax.random.key(5)
    factors = sampled(key, zoom=0.4)[0][: len(photos)]
    got = run(pixels(zoom=0.4), photos, key)
    layer = keras.layers.RandomZoom(0.4, 0.4, fill_mode="reflect", interpolation="bilinear")
    sample = {"height_zoom": factors[:, :1], "width_zoom": factors[:, 1:], "input_shape": photos.shape}
    expected = keras.ops.convert_to_numpy(layer.transform_images(photos.astype(np.float32), sample))
    assert np.ptp(factors) > 0.4  # both in and out
    np.testing.assert_allclose(got, expected, atol=0.05)  # the factors were read off with an error of their own


@pytest.mark.parametrize(
    "augment",
    [dict(zoom=0.3), dict(shift=0.3), dict(flip=True, zoom=0.2, shift=0.2), dict(flip=True, zoom=0.9, shift=0.9)],
    ids=["zoom", "shift", "all", "extreme"],
)
def test_every_pixel_is_the_bilinear_value_at_its_place_with_edges_mirrored(photos, sampled, augment):
    key = jax.random.key(7)
    # A shift is read at a tenth of its range, so that no edge comes near the centre, and scaled to it.
    factors, offsets = sampled(key, **augment | dict(shift=augment.get("shift", 0) / 10))
    expected = np.stack([warped(*example) for example in zip(photos, factors, 10 * offsets)])
    np.testing.assert_allclose(run(pixels(**augment), photos, key), expected, atol=0.1)


def test_stored_images_are_resized_first_and_then_augmented(photos, small, sampled):
    key = jax.random.key(8)
    factors, offsets = sampled(key, zoom=0.3, flip=True)
    resized = run(pixels(), small)
    expected = np.stack([warped(*example) for example in zip(resized, factors, offsets)])
    np.testing.assert_allclose(run(pixels(zoom=0.3, flip=True), small, key), expected, atol=0.05)


def test_a_flip_is_an_exact_mirror_image_and_half_of_the_images_are_flipped(photos):
    images = np.tile(photos, (MANY // 8, 1, 1, 1))
    got = run(pixels(flip=True), images, jax.random.key(1))
    mirrored = (got == images[:, :, ::-1]).all((1, 2, 3))
    kept = (got == images).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert abs(mirrored.sum() - MANY / 2) < 4 * np.sqrt(MANY / 4)


@pytest.mark.parametrize("zoom", [0.2, 0.5])
def test_zoom_factors_are_uniform_about_one_and_apart_for_height_and_width(sampled, zoom):
    factors, offsets = sampled(jax.random.key(2), zoom=zoom)
    assert np.abs(offsets).max() < 1e-3  # about the centre
    assert factors.min() >= 1 - zoom - 1e-3
    assert factors.max() <= 1 + zoom + 1e-3
    spread = 2 * zoom / np.sqrt(12)
    for axis in (0, 1):
        assert factors[:, axis].min() < 1 - 0.97 * zoom
        assert factors[:, axis].max() > 1 + 0.97 * zoom
        assert abs(factors[:, axis].mean() - 1) < 4 * spread / np.sqrt(MANY)
        assert abs(factors[:, axis].std() / spread - 1) < 0.1
    assert abs(np.corrcoef(factors.T)[0, 1]) < 0.18  # four standard errors


def test_a_factor_above_one_zooms_out():
    bright = np.zeros((MANY, SIZE, SIZE, 2), np.uint8)
    bright[:, 4:12, 4:12] = 255
    area = run(pixels(channels=2, zoom=0.4), bright, jax.random.key(3))[..., 0].sum((1, 2)) / 255
    sources = run(pixels(channels=2, zoom=0.4), ramps(), jax.random.key(3)) / STEP
    factors = (sources[:, 8, 8] - sources[:, 7, 7]).prod(-1)
    np.testing.assert_allclose(area, 64 / factors, rtol=0.15)
    assert area.max() > 64 > area.min()


@pytest.mark.parametrize("shift", [0.1, 0.3])
def test_shifts_are_uniform_shares_of_the_size_both_ways(sampled, shift):
    factors, offsets = sampled(jax.random.key(4), shift=shift)
    np.testing.assert_allclose(factors, 1, atol=1e-4)  # moved, and not zoomed
    reach = shift * SIZE
    spread = 2 * reach / np.sqrt(12)
    assert np.abs(offsets).max() <= reach + 1e-3
    for axis in (0, 1):
        assert offsets[:, axis].min() < -0.97 * reach
        assert offsets[:, axis].max() > 0.97 * reach
        assert abs(offsets[:, axis].mean()) < 4 * spread / np.sqrt(MANY)
        assert abs(offsets[:, axis].std() / spread - 1) < 0.1
    assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.18


def test_rotation_looks_pixels_up_as_keras_random_rotation_does(keras, photos):
    """The angle is read off a slanted plane, whose value at a place tells where it came from."""
    key, limit = jax.random.key(3), 0.1
    rows, columns = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    plane = np.stack([rows, columns], -1).astype(np.float32)
    turned = np.asarray(rotate(jnp.asarray(plane), key, limit))
    y, x = turned[8, 8] - turned[7, 8]  # one pixel down, near the centre, where nothing is mirrored
    angle = np.arctan2(-x, y)
    assert 0 < abs(angle) < 2 * np.pi * limit
    share = float(angle / (2 * np.pi))
    layer = keras.layers.RandomRotation((share, share), data_format="channels_last")
    expected = np.asarray(layer(photos[:1].astype(np.float32), training=True))[0]
    found = np.asarray(rotate(jnp.asarray(photos[0], jnp.float32), key, limit))
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_rotation_angles_are_uniform_both_ways_and_drawn_apart_from_the_rest():
    rows, columns = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    plane = jnp.asarray(np.stack([rows, columns], -1), jnp.float32)
    keys = jax.random.split(jax.random.key(4), MANY)
    turned = np.asarray(jax.jit(jax.vmap(lambda key: rotate(plane, key, 0.1)))(keys))
    y, x = np.moveaxis(turned[:, 8, 8] - turned[:, 7, 8], -1, 0)
    shares = np.sort(np.arctan2(-x, y)) / (2 * np.pi)
    uniform = np.linspace(-0.1, 0.1, MANY)
    assert np.abs(shares - uniform).max() < 0.1 * 2 * 1.63 / np.sqrt(MANY)  # Kolmogorov and Smirnov, at 1 %
    matrices = jax.vmap(lambda key: augment_matrices(key, SIZE, Augment(zoom=0.2))[0])(keys)
    zoomed = np.asarray(matrices)[:, 12] @ np.arange(SIZE)
    angles = np.arctan2(-x, y)
    assert abs(np.corrcoef(angles, zoomed)[0, 1]) < 5 / np.sqrt(MANY)


def test_rotation_comes_between_resizing_and_zooming_and_off_it_changes_nothing(small):
    still = run(pixels(), small)
    turned = run(pixels(rotation=1e-9), small, jax.random.key(0))
    np.testing.assert_allclose(turned, still, atol=0.01)
    both = run(pixels(rotation=0.05, flip=True, zoom=0.2), small, jax.random.key(0))
    assert both.shape == still.shape and np.abs(both - still).max() > 10


def test_flip_zoom_and_shift_are_drawn_apart(sampled):
    factors, offsets = sampled(jax.random.key(6), flip=True, zoom=0.3, shift=0.2)
    flipped = np.sign(factors[:, 1])
    assert set(flipped) == {-1.0, 1.0}
    assert (factors[:, 0] > 0).all()  # never upside down
    drawn = np.stack([flipped, *np.abs(factors).T, *offsets.T])
    assert np.abs(np.corrcoef(drawn) - np.eye(5)).max() < 0.2


def test_the_same_key_gives_the_same_images_and_another_key_others(photos):
    preprocess = pixels(flip=True, zoom=0.2, shift=0.1)
    one, again, other = (run(preprocess, photos, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert all(np.abs(a - b).max() > 1 for a, b in zip(one, other))


def test_equal_images_in_a_batch_are_augmented_differently(photos):
    got = run(pixels(zoom=0.2), np.repeat(photos[:1], 8, 0), jax.random.key(0))
    assert all(np.abs(got[i] - got[j]).max() > 1 for i in range(8) for j in range(i))


def test_an_examples_augmentation_does_not_depend_on_the_rest_of_its_batch(photos):
    preprocess, key = pixels(flip=True, zoom=0.3, shift=0.2), jax.random.key(9)
    whole = run(preprocess, photos, key)
    beside_others = run(preprocess, np.concatenate([photos[:3], 255 - photos[3:]]), key)
    np.testing.assert_allclose(whole[:3], beside_others[:3], atol=TOLERANCE)


def test_evaluation_has_nothing_random(small):
    np.testing.assert_array_equal(run(pixels(flip=True, zoom=0.5, shift=0.5), small), run(pixels(), small))


def test_a_key_without_augmentation_changes_nothing(small):
    np.testing.assert_array_equal(run(pixels(), small, jax.random.key(0)), run(pixels(), small))


# Normalisation.


@pytest.fixture(scope="module", params=[1, 3])
def coloured(request):
    """Images of one channel or three, of unlike means and deviations."""
    generator = np.random.default_rng(2)
    shape = (8, SIZE, SIZE)
    channels = [generator.integers(low, high, shape) for low, high in ((0, 256), (100, 110), (0, 40))]
    return np.stack(channels[: request.param], -1).astype(np.uint8)


def test_symmetric_and_unit_span_their_ranges(coloured):
    channels = coloured.shape[-1]
    ends = np.broadcast_to(np.uint8([0, 255] * 4)[:, None, None, None], (8, SIZE, SIZE, channels))
    for name, low in (("symmetric", -1), ("unit", 0)):
        got = run(Preprocess(SIZE, *normalisation(name, coloured)), ends)
        np.testing.assert_allclose(got[::2], low, atol=1e-6)
        np.testing.assert_allclose(got[1::2], 1, atol=1e-6)


def test_dataset_normalisation_is_numpys_mean_and_deviation(coloured):
    mean, std = normalisation("dataset", coloured)
    np.testing.assert_allclose(mean, coloured.mean((0, 1, 2), dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(std, coloured.std((0, 1, 2), dtype=np.float64), rtol=1e-9)
    got = run(Preprocess(SIZE, mean, std), coloured).astype(np.float64)
    np.testing.assert_allclose(got.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(got.std((0, 1, 2)), 1, atol=1e-5)


def test_dataset_normalisation_takes_few_images_or_many_and_maps_them_from_disk(coloured, tmp_path):
    for images in (coloured[:3], np.concatenate([coloured, 255 - coloured, coloured // 2] * 7)):
        np.save(tmp_path / "images.npy", images)
        mean, std = normalisation("dataset", np.load(tmp_path / "images.npy", mmap_mode="r"))
        np.testing.assert_allclose(mean, images.mean((0, 1, 2)), rtol=1e-9)
        np.testing.assert_allclose(std, images.std((0, 1, 2)), rtol=1e-9)


def test_a_channel_without_variation_stays_finite():
    images = np.full((8, SIZE, SIZE, 1), 37, np.uint8)
    got = run(Preprocess(SIZE, *normalisation("dataset", images)), images)
    np.testing.assert_array_equal(got, 0)


def test_imagenet_normalisation_uses_the_published_numbers(photos):
    mean, std = normalisation("imagenet", photos)
    expected = (photos / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(run(Preprocess(SIZE, mean, std), photos), expected, atol=1e-5)


def test_imagenet_normalisation_of_gray_images_is_near_that_of_the_same_images_in_colour(photos):
    gray = photos.mean(-1, keepdims=True).astype(np.uint8)
    one = run(Preprocess(SIZE, *normalisation("imagenet", gray)), gray)
    three = run(Preprocess(SIZE, *normalisation("imagenet", photos)), np.repeat(gray, 3, -1))
    assert one.shape == (*gray.shape[:3], 1)
    np.testing.assert_allclose(one, three.mean(-1, keepdims=True), atol=0.1)


def test_normalisation_and_augmentation_can_be_exchanged(photos):
    mean, std, key = (100.0, 120.0, 140.0), (50.0, 60.0, 70.0), jax.random.key(10)
    augment = Augment(flip=True, zoom=0.3, shift=0.1)
    got = run(Preprocess(SIZE, mean, std, augment), photos, key)
    expected = (run(Preprocess(SIZE, (0.0,) * 3, (1.0,) * 3, augment), photos, key) - mean) / np.array(std)
    np.testing.assert_allclose(got, expected, atol=1e-4)


# Devices.


@pytest.mark.parametrize("key", [None, 11])
def test_eight_devices_make_the_images_that_one_makes_even_in_a_larger_batch(photos, mesh8, key):
    preprocess = Preprocess(SIZE, *normalisation("dataset", photos), Augment(flip=True, zoom=0.3, shift=0.2))
    key = None if key is None else jax.random.key(key)
    images = jax.device_put(photos, NamedSharding(mesh8, PartitionSpec(sharding.BATCH_AXES)))
    got = jax.jit(preprocess)(images, key)
    assert len(got.sharding.device_set) == 8
    np.testing.assert_allclose(got, run(preprocess, photos, key), atol=1e-5)
