"""Geometric augmentation puts pixels where Pillow, Keras and SciPy put them; it samples as torchvision and Keras do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image
from sklearn import datasets

from patchnets.augment import geometry

SIZE = 16  # pixels a side of most images here
CENTRE = (SIZE - 1) / 2
MANY = 512  # examples, enough to see how what is random is distributed
RARE = 1e-4  # probability at which a sample is taken to be of another distribution; keys are fixed, so it stays so


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
def big():
    """A square of a real photograph, larger than what most of it is resized to."""
    return datasets.load_sample_image("china.jpg")[100:260, 200:360]


def batch_fn(images):
    """Filled up to a batch of MANY, so that all tests share what is compiled."""
    return jnp.asarray(np.resize(images, (MANY, *images.shape[1:])), jnp.float32)


@functools.cache
def compiled(operation, **settings):
    """With these settings fixed, and the others not, so that few programs are compiled."""
    return jax.jit(functools.partial(operation, **settings))


def alone(operation, key, images, **settings):
    """One operation on as many images as there are."""
    fixed = {name: settings.pop(name) for name in ("flip", "padding") if name in settings}
    return np.asarray(compiled(operation, **fixed)(key, batch_fn(images), **settings))[: len(images)]


def flipped_zoomed_shifted(key, images, **settings):
    matrices = geometry.augment_matrices(geometry.example_keys(key, MANY), SIZE, SIZE, **settings)
    return geometry.resample(images, *matrices)


def augmented(key, images, flip=False, zoom=0.0, shift=0.0):
    return alone(flipped_zoomed_shifted, key, images, flip=flip, zoom=zoom, shift=shift)


STEP = 16  # levels between two pixels of a ramp


def ramps():
    """Many images whose first channel tells the row of a pixel, and whose second tells its column."""
    rows, columns = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    return np.broadcast_to(np.stack([rows, columns], -1) * STEP, (MANY, SIZE, SIZE, 2)).astype(np.uint8)


@pytest.fixture(scope="module")
def sampled():
    """(key, **settings) -> per example and axis, where each output line's pixels came from, as factor and offset.

    Read off ramps: near the center of an image nothing is reflected, so that the source there is
    center + offset + factor * distance from the center. A negative factor of the columns is a mirrored image.
    """

    def read(key, **settings):
        sources = augmented(key, ramps(), **settings) / STEP
        lines = sources[:, :, SIZE // 2, 0], sources[:, SIZE // 2, :, 1]
        left, right = SIZE // 2 - 1, SIZE // 2
        factors = np.stack([line[:, right] - line[:, left] for line in lines], 1)
        offsets = np.stack([(line[:, right] + line[:, left]) / 2 - CENTRE for line in lines], 1)
        return factors, offsets

    return read


def at(image, y, x):
    """The image at any points: bilinear between centers, mirrored about its edges (d c b a | a b c d | d c b a)."""
    channels = np.moveaxis(image.astype(np.float64), -1, 0)
    return np.stack([scipy.ndimage.map_coordinates(c, [y, x], order=1, mode="reflect") for c in channels], -1)


def warped(image, factors, offsets):
    """Every pixel of the output looked up in the input."""
    sources = [CENTRE + offsets[i] + factors[i] * (np.arange(SIZE) - CENTRE) for i in (0, 1)]
    return at(image, *np.meshgrid(*sources, indexing="ij"))


# Resizing.


@pytest.mark.parametrize("out", [48, 224], ids=["smaller", "larger"])
@pytest.mark.parametrize("box", [(0, 0, 160, 160), (13, 40, 133, 100), (7.5, 0.25, 152.5, 159.0)])
def test_a_part_of_a_photograph_is_resized_as_pillow_does(big, box, out):
    left, top, right, bottom = box
    rows = geometry.resize_matrix(out, 160, top, bottom - top)
    columns = geometry.resize_matrix(out, 160, left, right - left)
    actual = np.asarray(geometry.resample(big[None].astype(np.float32), rows, columns))[0]
    expected = np.asarray(Image.fromarray(big).resize((out, out), Image.Resampling.BILINEAR, box=box))
    assert np.abs(actual - expected).max() <= 1.0


@pytest.mark.parametrize(("out", "size"), [(27, 9), (16, 16)])
def test_a_line_is_enlarged_between_the_centres_of_pixels(out, size):
    line = np.random.default_rng(1).uniform(0, 255, size)
    centers = (np.arange(out) + 0.5) * size / out - 0.5
    expected = np.interp(centers, np.arange(size), line)
    np.testing.assert_allclose(geometry.resize_matrix(out, size) @ line, expected, rtol=1e-5)


def test_a_line_is_shrunk_by_a_triangle_as_wide_as_the_scale():
    line = np.random.default_rng(1).uniform(0, 255, 16)
    scale, expected = 16 / 3, []
    for i in range(3):
        triangle = np.maximum(0, 1 - np.abs((i + 0.5) * scale - (np.arange(16) + 0.5)) / scale)
        expected.append(triangle @ line / triangle.sum())
    np.testing.assert_allclose(geometry.resize_matrix(3, 16) @ line, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [SIZE, 10])
def test_resizing_is_keras_bilinear_resizing_antialiased_where_it_makes_smaller(keras, photos, size):
    images = np.ascontiguousarray(photos[:, :12, :14]).astype(np.float32)
    expected = keras.ops.image.resize(images, (size, size), interpolation="bilinear", antialias=size < 12)
    np.testing.assert_allclose(geometry.resize(images, size=size), keras.ops.convert_to_numpy(expected), atol=2e-3)


def test_a_center_crop_keeps_its_share_about_the_center(big):
    actual = np.asarray(geometry.resize(big[None, :, :120].astype(np.float32), size=50, share=0.8))[0]
    box = (12, 16, 108, 144)
    expected = Image.fromarray(big[:, :120]).resize((50, 50), Image.Resampling.BILINEAR, box=box)
    assert np.abs(actual - np.asarray(expected)).max() <= 1.0


# Flip, zoom, shift.


def test_positions_beyond_the_edges_are_mirrored_back():
    size = 5
    expected = np.pad(np.arange(size), 2 * size, mode="symmetric")
    np.testing.assert_allclose(geometry.reflect(jnp.arange(-2.0 * size, 3.0 * size), size), expected, atol=1e-5)


@pytest.mark.slow
def test_zoom_looks_pixels_up_as_keras_random_zoom_does(keras, photos, sampled):
    key = jax.random.key(5)
    factors = sampled(key, zoom=0.4)[0][: len(photos)]
    got = alone(geometry.random_zoom, key, photos, zoom=0.4)
    layer = keras.layers.RandomZoom(0.4, 0.4, fill_mode="reflect", interpolation="bilinear")
    sample = {"height_zoom": factors[:, :1], "width_zoom": factors[:, 1:], "input_shape": photos.shape}
    expected = keras.ops.convert_to_numpy(layer.transform_images(photos.astype(np.float32), sample))
    assert np.ptp(factors) > 0.4  # both in and out
    np.testing.assert_allclose(got, expected, atol=0.05)  # the factors were read off with an error of their own


@pytest.mark.slow
@pytest.mark.parametrize(
    "augment",
    [dict(zoom=0.3), dict(shift=0.3), dict(flip=True, zoom=0.2, shift=0.2), dict(flip=True, zoom=0.9, shift=0.9)],
    ids=["zoom", "shift", "all", "extreme"],
)
def test_every_pixel_is_the_bilinear_value_at_its_place_with_edges_mirrored(photos, sampled, augment):
    key = jax.random.key(7)
    # A shift is read at a tenth of its range, so that no edge comes near the center, and scaled to it.
    factors, offsets = sampled(key, **augment | dict(shift=augment.get("shift", 0) / 10))
    expected = np.stack([warped(*example) for example in zip(photos, factors, 10 * offsets)])
    np.testing.assert_allclose(augmented(key, photos, **augment), expected, atol=0.1)


def test_a_flip_is_an_exact_mirror_image_and_half_of_the_images_are_flipped(photos):
    images = np.tile(photos, (MANY // 8, 1, 1, 1))
    got = alone(geometry.random_flip, jax.random.key(1), images)
    mirrored = (got == images[:, :, ::-1]).all((1, 2, 3))
    kept = (got == images).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert abs(mirrored.sum() - MANY / 2) < 4 * np.sqrt(MANY / 4)


def test_a_vertical_flip_turns_half_of_the_images_upside_down_apart_from_the_other_flip(photos):
    images = np.tile(photos, (MANY // 8, 1, 1, 1))
    got = alone(geometry.random_vertical_flip, jax.random.key(1), images)
    down = (got == images[:, ::-1]).all((1, 2, 3))
    assert (down ^ (got == images).all((1, 2, 3))).all()
    across = (alone(geometry.random_flip, jax.random.key(1), images) == images[:, :, ::-1]).all((1, 2, 3))
    assert abs(down.sum() - MANY / 2) < 4 * np.sqrt(MANY / 4)
    assert abs((down & across).sum() - MANY / 4) < 4 * np.sqrt(MANY * 3 / 16)


@pytest.mark.parametrize("zoom", [0.2, 0.5])
def test_zoom_factors_are_uniform_about_one_and_apart_for_height_and_width(sampled, zoom):
    factors, offsets = sampled(jax.random.key(2), zoom=zoom)
    assert np.abs(offsets).max() < 1e-3  # about the center
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
    area = augmented(jax.random.key(3), bright, zoom=0.4)[..., 0].sum((1, 2)) / 255
    sources = augmented(jax.random.key(3), ramps(), zoom=0.4) / STEP
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


def test_a_zoomed_image_is_moved_by_no_more_than_an_unzoomed_one(sampled):
    """Zoom comes first: what is at the center then lies as far from it as the shift says."""
    key, shift = jax.random.key(5), 0.02  # so little that no edge comes near the center
    factors, offsets = sampled(key, zoom=0.5, shift=shift)
    _, unzoomed = sampled(key, shift=shift)
    np.testing.assert_allclose(offsets / factors, unzoomed, atol=2e-3)
    assert np.abs(offsets / factors).max() <= shift * SIZE + 2e-3


def test_flip_zoom_and_shift_are_drawn_apart(sampled):
    factors, offsets = sampled(jax.random.key(6), flip=True, zoom=0.3, shift=0.2)
    flipped = np.sign(factors[:, 1])
    assert set(flipped) == {-1.0, 1.0}
    assert (factors[:, 0] > 0).all()  # never upside down
    drawn = np.stack([flipped, *np.abs(factors).T, *offsets.T])
    assert np.abs(np.corrcoef(drawn) - np.eye(5)).max() < 0.2


@pytest.mark.parametrize(
    ("operation", "setting"),
    [(geometry.random_zoom, "zoom"), (geometry.random_translation, "shift")],
    ids=["zoom", "shift"],
)
def test_an_operation_by_itself_draws_what_it_draws_among_others(photos, operation, setting):
    key = jax.random.key(12)
    actual = alone(operation, key, photos, **{setting: 0.2})
    np.testing.assert_array_equal(actual, augmented(key, photos, **{setting: 0.2}))


# Crops.


def test_a_share_crop_is_pillows_resize_and_one_of_all_crops(photos):
    """Six of seven pixels: 24 of 28, at 25 positions."""
    size, full = 24, 28
    images = np.repeat(photos[:1].astype(np.float32), 200, 0)
    cropped = np.asarray(geometry.random_share_crop(jax.random.key(0), images, size=size, share=6 / 7))
    resized = np.asarray(Image.fromarray(photos[0]).resize((full, full), Image.Resampling.BILINEAR), np.float32)
    corners = [(top, left) for top in range(full - size + 1) for left in range(full - size + 1)]
    every = np.stack([resized[top : top + size, left : left + size] for top, left in corners])
    errors = np.abs(cropped[:, None] - every).max((2, 3, 4))
    assert errors.min(1).max() < 1.01  # Pillow rounds
    counts = np.bincount(errors.argmin(1), minlength=len(corners))
    assert counts.min() > 0 and counts.max() < 3 * len(images) / len(corners)
    exact = np.asarray(geometry.random_share_crop(jax.random.key(0), resized[None], size=size, share=6 / 7))[0]
    assert np.abs(exact[None] - every).max((1, 2, 3)).min() < 1e-3  # of an image of the full size nothing is blurred


def test_a_crop_after_padding_is_one_of_all_and_all_are_alike_likely(photos):
    padding, places = 2, 5
    actual = alone(geometry.random_crop, jax.random.key(0), np.repeat(photos[:1], MANY, 0), padding=padding)
    padded = np.pad(photos[0], ((padding, padding), (padding, padding), (0, 0)))
    crops = np.stack([padded[y : y + SIZE, x : x + SIZE] for y in range(places) for x in range(places)])
    same = np.stack([(actual == crop).all((1, 2, 3)) for crop in crops], 1)
    assert (same.sum(1) == 1).all()
    assert scipy.stats.chisquare(same.sum(0)).pvalue > RARE


def torchvision_box(generator, height, width, area, aspect):
    """A box as torchvision's RandomResizedCrop documents it: top, left, height, width, and whether any try fitted."""
    for _ in range(10):
        target = height * width * generator.uniform(area, 1)
        ratio = np.exp(generator.uniform(-np.log(aspect), np.log(aspect)))
        h, w = round(np.sqrt(target / ratio)), round(np.sqrt(target * ratio))
        if 0 < h <= height and 0 < w <= width:
            return generator.integers(height - h + 1), generator.integers(width - w + 1), h, w, True
    h, w = min(height, round(width * aspect)), min(width, round(height * aspect))
    return (height - h) // 2, (width - w) // 2, h, w, False


def boxes_of(key, batch, height, width, area, aspect):
    """The corners and sizes of the boxes of a batch."""

    def draw(key):
        return geometry.crop_boxes(geometry.example_keys(key, batch), height, width, area, aspect)

    return [np.asarray(actual) for actual in jax.jit(draw)(key)]


@pytest.mark.parametrize(("height", "width", "area", "aspect"), [(64, 64, 0.08, 4 / 3), (50, 90, 0.7, 1.6)])
def test_boxes_are_distributed_as_those_of_torchvision(height, width, area, aspect):
    corner, size = boxes_of(jax.random.key(1), 4096, height, width, area, aspect)
    generator = np.random.default_rng(0)
    expected = np.array([torchvision_box(generator, height, width, area, aspect) for _ in range(4096)])
    assert (corner >= 0).all() and (corner + size <= (height, width)).all()
    np.testing.assert_array_equal(np.concatenate([corner, size]), np.round(np.concatenate([corner, size])))
    actual = np.concatenate([corner, size], 1)
    for i in range(4):
        assert scipy.stats.ks_2samp(actual[:, i], expected[:, i]).pvalue > RARE
    assert scipy.stats.ks_2samp(size.prod(1), expected[:, 2] * expected[:, 3]).pvalue > RARE
    assert scipy.stats.ks_2samp(size[:, 0] / size[:, 1], expected[:, 2] / expected[:, 3]).pvalue > RARE


@pytest.mark.slow
def test_small_boxes_have_a_uniform_share_and_a_log_uniform_ratio():
    drawn = jax.random.uniform(jax.random.key(2), (4096, 2 * geometry.MAX_ATTEMPTS + 2))
    _, size, actual = geometry.sample_boxes(drawn, (1000, 1000), (1000, 1000), (0.1, 0.3), (0.5, 2.0))
    assert actual.all()
    share, ratio = np.asarray(size).prod(1) / 1e6, np.log2(size[:, 1] / size[:, 0])
    assert scipy.stats.kstest(share, scipy.stats.uniform(0.1, 0.2).cdf).pvalue > RARE
    assert scipy.stats.kstest(ratio, scipy.stats.uniform(-1, 2).cdf).pvalue > RARE
    assert abs(np.corrcoef(share, ratio)[0, 1]) < 0.06


def test_where_no_box_fits_it_is_the_largest_about_the_center():
    for height, width, corner, size in ((20, 100, (0, 35), (20, 30)), (100, 20, (35, 0), (30, 20))):
        actual = boxes_of(jax.random.key(3), 16, height, width, 0.9, 1.5)
        np.testing.assert_array_equal(actual[0], [corner] * 16)
        np.testing.assert_array_equal(actual[1], [size] * 16)


def test_a_resized_crop_is_its_box_cut_out_and_then_resized_as_pillow_does(big):
    key, images = jax.random.key(4), np.repeat(big[None], 8, 0)
    actual = np.asarray(
        compiled(geometry.random_resized_crop, area=0.05, size=64)(key, jnp.asarray(images, jnp.float32))
    )
    corners, sizes = boxes_of(key, 8, 160, 160, 0.05, 4 / 3)
    assert sizes.min() < 64 < sizes.max()  # both made larger and made smaller
    for image, (top, left), (height, width) in zip(actual, np.asarray(corners), np.asarray(sizes)):
        part = Image.fromarray(big).crop((left, top, left + width, top + height))
        expected = np.asarray(part.resize((64, 64), Image.Resampling.BILINEAR))
        assert np.abs(image - expected).max() <= 1.0


# Warps.


def matrices_near_one(count, reach=0.6, move=5.0):
    generator = np.random.default_rng(5)
    linear = np.eye(2) + generator.uniform(-reach, reach, (count, 2, 2))
    return np.concatenate([linear, generator.uniform(-move, move, (count, 2, 1))], -1).astype(np.float32)


def test_a_warp_with_a_fill_is_pillows_affine_transform(big):
    image, matrices = big[:60, :90], matrices_near_one(6)
    images = jnp.asarray(np.repeat(image[None], 6, 0), jnp.float32)
    actual = np.asarray(compiled(geometry.warp, fill=77.0)(images, matrices))
    for got, ((a, b, c), (d, e, f)) in zip(actual, matrices.astype(float)):
        data = (e, d, f + 45 - 45 * e - 30 * d, b, a, c + 30 - 45 * b - 30 * a)
        expected = Image.fromarray(image).transform(
            (90, 60), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=(77, 77, 77)
        )
        difference = got - np.asarray(expected)  # Pillow cuts fractions of a level off
        assert difference.min() > -0.01 and difference.max() < 1.01
    assert (actual == 77).all(-1).mean() > 0.05


def test_a_warp_without_a_fill_mirrors_the_image_at_its_edges(big):
    image, matrices = big[:20, :30], matrices_near_one(6, reach=2.0, move=40.0)
    images = jnp.asarray(np.repeat(image[None], 6, 0), jnp.float32)
    actual = np.asarray(compiled(geometry.warp)(images, matrices))
    y, x = np.meshgrid(np.arange(20) - 9.5, np.arange(30) - 14.5, indexing="ij")
    for got, matrix in zip(actual, matrices.astype(float)):
        rows, columns = np.einsum("ij,jyx->iyx", matrix, np.stack([y, x, np.ones_like(x)]))
        np.testing.assert_allclose(got, at(image, rows + 9.5, columns + 14.5), atol=0.05)


@pytest.mark.parametrize("fill", [None, 0.0])
def test_a_warp_by_the_identity_or_by_whole_pixels_is_exact(photos, fill):
    images = jnp.asarray(photos, jnp.float32)
    matrices = np.tile(np.eye(2, 3, dtype=np.float32), (8, 1, 1))
    np.testing.assert_array_equal(compiled(geometry.warp, fill=fill)(images, matrices), photos)
    matrices[:, 0, 2] = -3
    np.testing.assert_array_equal(compiled(geometry.warp, fill=fill)(images, matrices)[:, 3:], photos[:, :-3])


def test_a_warp_far_outside_stays_in_bounds(photos):
    matrices = np.tile(np.float32([[1, 0, 1e9], [0, 1, -1e9]]), (8, 1, 1))
    images = jnp.asarray(photos, jnp.float32)
    assert (np.asarray(compiled(geometry.warp, fill=5.0)(images, matrices)) == 5).all()
    mirrored = np.asarray(compiled(geometry.warp, fill=None)(images, matrices))
    assert mirrored.min() >= 0 and mirrored.max() <= 255


@pytest.mark.slow
def test_rotation_looks_pixels_up_as_keras_random_rotation_does(keras, photos):
    """The angle is read off a slanted plane, whose value at a place tells where it came from."""
    key, limit = jax.random.key(3), 0.1
    turned = alone(geometry.random_rotation, key, ramps(), rotation=limit)[0] / STEP
    y, x = turned[8, 8] - turned[7, 8]  # one pixel down, near the center, where nothing is mirrored
    angle = np.arctan2(-x, y)
    assert 0 < abs(angle) < 2 * np.pi * limit
    share = float(angle / (2 * np.pi))
    layer = keras.layers.RandomRotation((share, share), data_format="channels_last")
    expected = np.asarray(layer(photos[:1].astype(np.float32), training=True))[0]
    actual = alone(geometry.random_rotation, key, photos, rotation=limit)[0]
    np.testing.assert_allclose(actual, expected, atol=0.02)


def test_rotation_angles_are_uniform_both_ways_and_drawn_apart_from_the_rest():
    key = jax.random.key(4)
    turned = alone(geometry.random_rotation, key, ramps(), rotation=0.1)
    y, x = np.moveaxis(turned[:, 8, 8] - turned[:, 7, 8], -1, 0)
    angles = np.arctan2(-x, y)
    assert scipy.stats.kstest(angles / (2 * np.pi), scipy.stats.uniform(-0.1, 0.2).cdf).pvalue > 0.01
    zoomed = augmented(key, ramps(), zoom=0.2)[:, 12, 8, 0]
    sheared = alone(geometry.random_shear, key, ramps(), shear=0.3)[:, 7, 8]
    drawn = np.stack([angles, zoomed, *sheared.T])
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 5 / np.sqrt(MANY)


def test_shear_slopes_are_uniform_along_each_axis():
    actual = alone(geometry.random_shear, jax.random.key(5), ramps(), shear=0.3) / STEP
    along = actual[:, 8, 8] - actual[:, 8, 7]  # one pixel to the right: the slope of the rows, and 1
    down = actual[:, 8, 8] - actual[:, 7, 8]
    np.testing.assert_allclose(along[:, 1], 1, atol=1e-4)
    np.testing.assert_allclose(down[:, 0], 1, atol=1e-4)
    for slopes in (along[:, 0], down[:, 1]):
        assert scipy.stats.kstest(slopes, scipy.stats.uniform(-0.3, 0.6).cdf).pvalue > 0.01
    assert abs(np.corrcoef(along[:, 0], down[:, 1])[0, 1]) < 5 / np.sqrt(MANY)


def test_rotation_and_shear_are_one_matrix():
    keys = geometry.example_keys(jax.random.key(6), 8)
    draw = jax.jit(geometry.affine_matrices)
    turn, lean, both = (np.asarray(draw(keys, rotation=r, shear=s)) for r, s in ((0.2, 0.0), (0.0, 0.4), (0.2, 0.4)))
    np.testing.assert_allclose(both[:, :, :2], turn[:, :, :2] @ lean[:, :, :2], atol=1e-6)
    np.testing.assert_array_equal(both[:, :, 2], 0)
