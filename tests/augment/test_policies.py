"""Policies draw what their papers and published code say, and every operation does what Pillow does."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps
from sklearn import datasets

from patchnets.augment import ops, policies
from patchnets.errors import UserError
from patchnets.parallel import mesh

HEIGHT, WIDTH = 24, 40
PLACE = (0.3, 0.9)  # of the center of cutout: row 7 of 24, column 36 of 40
MANY = 6000  # draws, enough to see how what is random is distributed
LEVEL = 1.001  # Pillow cuts fractions off, here they are kept
SIGNED = ("brightness", "contrast", "color", "sharpness", "rotate", "shear_x", "shear_y", "translate_x", "translate_y")
ENHANCED = SIGNED[:4]

apply = jax.jit(ops.apply_operations)

# Every operation at several strengths.
STRENGTHS = {
    "identity": (0.0,),
    "autocontrast": (0.0,),
    "equalize": (0.0,),
    "invert": (0.0,),
    "posterize": (1.0, 4.0, 8.0),
    "solarize": (0.0, 100.0, 256.0),
    "solarize_add": (0.0, 60.0, 110.0),
    **dict.fromkeys(ENHANCED, (0.1, 0.7, 1.9)),
    "rotate": (-27.0, 10.0, 135.0),
    "shear_x": (-0.27, 0.3),
    "shear_y": (-0.27, 0.3),
    "translate_x": (-7.25, 12.0),
    "translate_y": (-7.25, 12.0),
    "cutout": (0.0, 5.0, 30.0),
}


@pytest.fixture(scope="module", params=["RGB", "L"])
def picture(request):
    """A photograph of 24 x 40 pixels, in color and in gray."""
    photo = Image.fromarray(datasets.load_sample_images().images[0])
    return photo.resize((WIDTH, HEIGHT), Image.Resampling.BOX).convert(request.param)


@pytest.fixture(scope="module")
def noise():
    """Sixteen images of 8 x 8 pixels of any colors, with fractions of levels."""
    return np.random.default_rng(0).uniform(0, 255, (16, 8, 8, 3)).astype(np.float32)


def applied(name, strength, picture):
    """What Pillow makes of a picture (NumPy for cutout), and where it does not look near the edges."""
    inside = np.ones((HEIGHT, WIDTH), bool)
    lower = lambda level: min(255, level + int(strength)) if level < 128 else level
    coefficients = {
        "shear_x": (1, strength, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, strength, 1, 0),
        "translate_x": (1, 0, strength, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, strength),
    }
    enhance = {"brightness": "Brightness", "contrast": "Contrast", "color": "Color", "sharpness": "Sharpness"}
    if name in coefficients or name == "rotate":
        white = ImageOps.expand(Image.new("L", (WIDTH - 2, HEIGHT - 2), 255), 1)  # with a black edge

        def warp(image):
            if name == "rotate":
                return image.rotate(strength, Image.Resampling.BILINEAR)
            return image.transform(image.size, Image.Transform.AFFINE, coefficients[name], Image.Resampling.BILINEAR)

        inside = np.asarray(warp(white)) == 255
        picture = warp(picture)
    elif name in enhance:
        picture = getattr(ImageEnhance, enhance[name])(picture).enhance(strength)
    elif name == "solarize_add":
        picture = picture.point([lower(level) for level in range(256)] * len(picture.getbands()))
    elif name == "cutout":
        half, pixels = int(strength), np.array(picture)
        pixels[max(0, 7 - half) : 7 + half, max(0, 36 - half) : 36 + half] = 128
        picture = pixels
    elif name == "posterize":
        picture = ImageOps.posterize(picture, int(strength))
    elif name == "solarize":
        picture = ImageOps.solarize(picture, int(strength))
    elif name != "identity":
        picture = getattr(ImageOps, name)(picture)
    return np.asarray(picture).reshape(HEIGHT, WIDTH, -1), inside


def test_every_operation_in_one_batch_does_what_pillow_does(picture):
    assert set(STRENGTHS) == set(ops.OPERATIONS)
    cases = [(name, strength) for name, strengths in STRENGTHS.items() for strength in strengths]
    images = np.tile(np.asarray(picture, np.float32).reshape(1, HEIGHT, WIDTH, -1), (len(cases), 1, 1, 1))
    operation = jnp.array([ops.NUMBER[name] for name, _ in cases])
    strength, path = jnp.array([value for _, value in cases]), jnp.tile(jnp.array(PLACE), (len(cases), 1))
    got = np.asarray(apply(images, operation, strength, path, fill=128.0))
    assert got.dtype == np.float32
    for (name, value), image in zip(cases, got):
        expected, inside = applied(name, value, picture)
        assert inside.mean() > 0.3
        np.testing.assert_allclose(image[inside], expected[inside], atol=LEVEL, err_msg=f"{name} {value}")
    # What a warp uncovers is filled.
    moved = cases.index(("translate_x", 12.0))
    for fill in (128.0, 7.0):
        uncovered = np.asarray(apply(images, operation, strength, path, fill=fill))[moved, :, -12:]
        np.testing.assert_array_equal(uncovered, fill)


def test_only_tables_round_to_levels(noise):
    operation = jnp.arange(len(noise)) % 2 * ops.NUMBER["posterize"]
    got = np.asarray(apply(noise, operation, jnp.full(len(noise), 8.0), jnp.zeros((len(noise), 2))))
    np.testing.assert_array_equal(got[::2], noise[::2])
    np.testing.assert_array_equal(got[1::2], np.round(noise[1::2]))


@pytest.mark.slow
def test_cutout_is_centred_on_every_pixel_alike_and_cut_at_the_borders():
    images = jnp.zeros((MANY, 6, 8, 1))
    path = jax.random.uniform(jax.random.key(0), (MANY, 2))
    cutout = jnp.full(MANY, ops.NUMBER["cutout"])
    got = np.asarray(apply(images, cutout, jnp.full(MANY, 2.0), path))[..., 0]
    assert set(np.unique(got)) == {0.0, 128.0}
    # The square of 4 x 4 begins two pixels before its center, and at the border if that is beyond.
    centers = collections.Counter()
    for image in got:
        rows, columns = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
        assert image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        centers[rows[-1] - 1, columns[-1] - 1] += rows[-1] < 5 and columns[-1] < 7
        assert rows[0] == max(0, rows[-1] - 3) or rows[-1] == 5
        assert columns[0] == max(0, columns[-1] - 3) or columns[-1] == 7
    inner = [centers[y, x] for y in range(4) for x in range(6)]
    assert all(about_equal(count, MANY / 48, MANY) for count in inner)
    # Of 48 centers, one has its square in the lowest right corner cut to 3 x 3.
    assert about_equal((got.astype(bool).sum((1, 2)) == 9)[got[:, 5, 7] == 128].sum(), MANY / 48, MANY)


# What is drawn.


def drawn(draw, *settings):
    """Names of operations and strengths of many images: two lists of [images, layers]."""
    keys = jax.random.split(jax.random.key(0), MANY)
    operation, strength, path = jax.jit(jax.vmap(lambda key: draw(key, *settings)))(keys)
    assert path.shape == (*operation.shape, 2) and not path.any()
    return np.array(ops.OPERATIONS)[operation], np.asarray(strength)


@functools.partial(jax.jit, static_argnames="ranges")
def draw_rand_augment(magnitude, std, probability, ranges):
    keys = jax.random.split(jax.random.key(0), MANY)
    draw = lambda key: policies.draw_rand_augment(key, HEIGHT, WIDTH, 3, magnitude, std, probability, variant=ranges)
    return jax.vmap(draw)(keys)


def rand_augmented(magnitude, std=0.0, probability=1.0, ranges="timm"):
    operation, strength, _ = draw_rand_augment(magnitude, std, probability, ranges)
    return np.array(ops.OPERATIONS)[operation], np.asarray(strength)


def about_equal(count, expected, total):
    share = expected / total
    return abs(count - expected) <= 4.5 * np.sqrt(total * share * (1 - share))


@pytest.mark.parametrize(
    ("ranges", "without"),
    [
        ("timm", {"identity", "cutout"}),
        ("torchvision", {"invert", "solarize_add", "cutout"}),
        ("tensorflow", {"identity"}),
    ],
)
def test_rand_augment_draws_each_operation_alike_and_each_layer_apart(ranges, without):
    names, _ = rand_augmented(9.0, ranges=ranges)
    assert names.shape == (MANY, 3)
    counts, expected = collections.Counter(names.ravel()), set(ops.OPERATIONS) - without
    assert set(counts) == expected and len(counts) == {"timm": 15, "torchvision": 14, "tensorflow": 16}[ranges]
    assert all(about_equal(count, names.size / len(expected), names.size) for count in counts.values())
    repeated = (names[:, 0] == names[:, 1]).sum()
    assert about_equal(repeated, MANY / len(expected), MANY)


def timm(magnitude):
    share = magnitude / 10
    return {
        "posterize": (max(0, 4 - int(4 * share)),),
        "solarize": (max(0, 256 - int(256 * share)),),
        "solarize_add": (int(110 * share),),
        **dict.fromkeys(ENHANCED, (max(0.1, 1 - 0.9 * share), 1 + 0.9 * share)),
        "rotate": (-30 * share, 30 * share),
        **dict.fromkeys(("shear_x", "shear_y"), (-0.3 * share, 0.3 * share)),
        "translate_x": (-0.45 * WIDTH * share, 0.45 * WIDTH * share),
        "translate_y": (-0.45 * HEIGHT * share, 0.45 * HEIGHT * share),
    }


def torchvision(magnitude):
    across, down = (int(150 / 331 * size * magnitude / 30) for size in (WIDTH, HEIGHT))
    return {
        "posterize": (8 - round(magnitude / (30 / 4)),),
        "solarize": (255 - 8.5 * magnitude,),
        **dict.fromkeys(ENHANCED, (1 - 0.9 * magnitude / 30, 1 + 0.9 * magnitude / 30)),
        "rotate": (-magnitude, magnitude),
        **dict.fromkeys(("shear_x", "shear_y"), (-0.01 * magnitude, 0.01 * magnitude)),
        "translate_x": (-across, across),
        "translate_y": (-down, down),
    }


def tensorflow(magnitude):
    share = magnitude / 10
    return {
        "posterize": (int(4 * share),),
        "solarize": (min(256, int(256 * share)),),
        "solarize_add": (int(110 * share),),
        **dict.fromkeys(ENHANCED, (0.1 + 1.8 * share,)),
        "rotate": (-30 * share, 30 * share),
        **dict.fromkeys(("shear_x", "shear_y"), (-0.3 * share, 0.3 * share)),
        **dict.fromkeys(("translate_x", "translate_y"), (-100 * share, 100 * share)),
        "cutout": (int(40 * share),),
    }


@pytest.mark.parametrize(
    ("published", "magnitudes"),
    [(timm, (5, 9, 10, 15)), (torchvision, (0, 5, 9, 14, 27, 30)), (tensorflow, (3, 9, 10, 15))],
)
def test_rand_augment_strengths_are_the_published_ones(published, magnitudes):
    for magnitude in magnitudes:
        names, strengths = rand_augmented(float(magnitude), ranges=published.__name__)
        for name, values in published(magnitude).items():
            actual, counts = np.unique(strengths[names == name].round(3), return_counts=True)
            expected = sorted({round(value, 3) for value in values})
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-3, err_msg=f"{name} {magnitude}")
            assert all(about_equal(count, counts.sum() / len(counts), counts.sum()) for count in counts), name


def test_rand_augment_of_unknown_ranges_is_refused(noise):
    with pytest.raises(UserError, match=r"'keras'.*timm.*torchvision.*tensorflow"):
        policies.rand_augment(jax.random.key(0), noise, variant="keras")


def test_rand_augment_draws_places_for_each_layer_all_over_the_image():
    path = np.asarray(draw_rand_augment(9.0, 0.0, 1.0, "tensorflow")[2]).reshape(MANY, 6)  # of 3 layers, (y, x) each
    assert path.min() >= 0 and path.max() < 1
    counts = np.stack([np.histogram(first, 8, (0, 1))[0] for first in path.T])
    assert all(about_equal(count, MANY / 8, MANY) for count in counts.ravel())
    assert np.abs(np.corrcoef(path.T) - np.eye(6)).max() < 4.5 / np.sqrt(MANY)


def test_a_threshold_that_is_a_level_inverts_it_whatever_rounding_made_of_it():
    threshold = np.nextafter(np.float32(170), np.float32([0, 255]))  # magnitude 10 of torchvision's 30
    images = jnp.tile(jnp.array([169.0, 170.0]).reshape(1, 1, 2, 1), (2, 1, 1, 1))
    got = apply(images, jnp.full(2, ops.NUMBER["solarize"]), threshold, jnp.zeros((2, 2)))
    np.testing.assert_array_equal(got[:, 0, :, 0], [[169, 85], [169, 85]])


def test_rand_augment_magnitudes_are_normal_up_to_the_strongest():
    names, strengths = rand_augmented(9.0, std=0.5)
    magnitudes = np.abs(strengths[names == "rotate"]) / 3
    assert magnitudes.max() == 10
    below = magnitudes[magnitudes < 10]
    assert abs((magnitudes == 10).mean() - 0.0228) < 0.02  # two deviations above the mean
    assert abs(np.median(magnitudes) - 9) < 0.08
    assert abs(np.percentile(below, 15) - 8.48) < 0.12
    _, strengths = rand_augmented(15.0, std=2.0)
    assert strengths.max() <= 110 * 1.5 + 100  # clipped at the magnitude where that is above 10
    names, strengths = rand_augmented(0.5, std=2.0)
    assert np.abs(strengths[names == "rotate"]).min() == 0
    for ranges, strongest in (("torchvision", 30), ("tensorflow", 3 * 28)):  # degrees
        names, strengths = rand_augmented(28.0, std=3.0, ranges=ranges)
        np.testing.assert_allclose(np.abs(strengths[names == "rotate"]).max(), strongest, rtol=1e-5)


def test_rand_augment_leaves_operations_out_with_a_probability():
    names, _ = rand_augmented(9.0, probability=0.3)
    assert about_equal((names != "identity").sum(), 0.3 * names.size, names.size)


@pytest.mark.parametrize("policy", ["cifar10", "imagenet"])
def test_auto_augment_has_25_sub_policies_of_two_operations(policy):
    table = policies.SUB_POLICIES[policy]
    assert len(table) == 25
    for pair in table:
        assert len(pair) == 2
        for name, probability, level in pair:
            assert name in ops.OPERATIONS[1:] and name not in ("solarize_add", "cutout")
            assert 0 <= probability <= 1 and round(10 * probability) == pytest.approx(10 * probability)
            assert level in range(10)


def test_auto_augment_tables_are_the_papers():
    """Some rows of tables 7 and 9 of arXiv 1805.09501; where an operation has no strength its level means nothing."""
    cifar10, imagenet = policies.SUB_POLICIES["cifar10"], policies.SUB_POLICIES["imagenet"]
    assert cifar10[1] == (("rotate", 0.7, 2), ("translate_x", 0.3, 9))
    assert cifar10[3] == (("shear_y", 0.5, 8), ("translate_y", 0.7, 9))
    assert cifar10[13] == (("brightness", 0.9, 6), ("color", 0.2, 8))
    assert cifar10[21] == (("translate_y", 0.9, 9), ("translate_y", 0.7, 9))
    assert imagenet[0] == (("posterize", 0.4, 8), ("rotate", 0.6, 9))
    assert imagenet[8] == (("rotate", 0.2, 3), ("solarize", 0.6, 8))
    assert imagenet[16] == (("color", 0.8, 8), ("solarize", 0.8, 7))
    counts = [collections.Counter(name for pair in table for name, _, _ in pair) for table in (cifar10, imagenet)]
    assert counts[0]["translate_y"] == 5 and counts[0]["shear_x"] == 0 and counts[0]["rotate"] == 1
    assert counts[1]["equalize"] == 17 and counts[1]["posterize"] == 5 and counts[1]["brightness"] == 0


@pytest.mark.parametrize("policy", ["cifar10", "imagenet"])
def test_auto_augment_draws_sub_policies_alike_and_each_operation_with_its_probability(policy):
    names, _ = drawn(policies.draw_auto_augment, policy, HEIGHT, WIDTH)
    expected = [collections.Counter(), collections.Counter()]
    for pair in policies.SUB_POLICIES[policy]:
        for path, (name, probability, _) in enumerate(pair):
            expected[path][name] += probability / 25
            expected[path]["identity"] += (1 - probability) / 25
    for path in (0, 1):
        counts = collections.Counter(names[:, path])
        for name, share in expected[path].items():
            assert about_equal(counts[name], share * MANY, MANY), name
        assert set(counts) <= set(expected[path])
    # The two are of one sub-policy.
    pairs = {tuple(name for name, _, _ in pair) for pair in policies.SUB_POLICIES[policy]}
    assert {tuple(pair) for pair in names if "identity" not in pair} <= pairs


def test_auto_augment_strengths_are_the_published_ones():
    names, strengths = drawn(policies.draw_auto_augment, "cifar10", HEIGHT, WIDTH)
    first = names[:, 0]
    reach = [int(150 / 331 * HEIGHT * level / 9) for level in range(10)]
    expected = {  # level 2; levels 7 and 8; levels 2 and 5; levels 6 and 1; levels 3, 7 and 9
        "rotate": {30 * 2 / 9},
        "shear_y": {0.3 * 7 / 9, 0.3 * 8 / 9},
        "solarize": {255 * (1 - 2 / 9), 255 * (1 - 5 / 9)},
        "brightness": {0.9 * 6 / 9, 0.9 * 1 / 3},
        "translate_y": {reach[3], reach[9]},
    }
    for name, values in expected.items():
        actual = strengths[:, 0][first == name] - (name in ENHANCED)
        np.testing.assert_allclose(np.unique(np.abs(actual).round(4)), sorted(values), rtol=1e-3, err_msg=name)
        if name in SIGNED:
            assert about_equal((actual > 0).sum(), len(actual) / 2, len(actual)), name
    second = names[:, 1]
    assert set(strengths[:, 1][second == "posterize"]) == {8 - round(7 / (9 / 4))}
    names, strengths = drawn(policies.draw_auto_augment, "imagenet", HEIGHT, WIDTH)
    assert set(strengths[:, 0][names[:, 0] == "posterize"]) == {4.0, 5.0, 6.0}  # levels 8; 7; 5


def test_an_unknown_policy_is_refused(noise):
    with pytest.raises(UserError, match=r"'svhn'.*cifar10.*imagenet"):
        policies.auto_augment(jax.random.key(0), noise, policy="svhn")


def test_trivial_augment_draws_one_of_14_operations_at_one_of_31_strengths():
    names, strengths = drawn(policies.draw_trivial_augment)
    assert names.shape == (MANY, 1)
    counts = collections.Counter(names.ravel())
    assert len(counts) == 14 and {"identity", "equalize", "translate_y"} < set(counts)
    assert not {"invert", "solarize_add", "cutout"} & set(counts)
    assert all(about_equal(count, MANY / 14, MANY) for count in counts.values())
    grades = np.arange(31)
    expected = {
        "posterize": 8 - np.round(grades / 5),
        "solarize": 255 - 255 * grades / 30,
        **dict.fromkeys(ENHANCED, 0.99 * grades / 30),
        "rotate": 135 * grades / 30,
        **dict.fromkeys(("shear_x", "shear_y"), 0.99 * grades / 30),
        **dict.fromkeys(("translate_x", "translate_y"), np.floor(32 * grades / 30)),
    }
    for name, values in expected.items():
        actual = strengths[names == name] - (name in ENHANCED)
        distances = np.abs(np.abs(actual)[:, None] - np.unique(values)).min(1)
        assert distances.max() < 1e-3, name
        missed = set(range(31)) - set(np.abs(np.abs(actual)[:, None] - values).argmin(1)) if name == "rotate" else {}
        assert not missed
        np.testing.assert_allclose(np.abs(actual).max(), values.max(), rtol=1e-5)
        np.testing.assert_allclose(np.abs(actual).min(), values.min(), atol=1e-3)
        if name in SIGNED:
            assert actual.min() < 0 < actual.max(), name


# Images, keys, batches and devices.

RAND = dict(num_ops=2, magnitude=8.0, magnitude_std=0.5, variant="timm")
CUTTING = RAND | dict(magnitude=0.6, variant="tensorflow")  # squares of 4 x 4 and less


@jax.jit
def compiled(key, images, probability):
    return policies.rand_augment(key, images, probability=probability, **RAND)


def rand_augment(key, images, probability=0.8):
    return compiled(key, images, probability)


@jax.jit
def cutting_rand_augment(key, images):
    return policies.rand_augment(key, images, **CUTTING)


@jax.jit
def auto_augment(key, images):
    return policies.auto_augment(key, images, policy="cifar10")


trivial_augment = jax.jit(policies.trivial_augment)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "draw"),
    [
        (
            rand_augment,
            functools.partial(policies.draw_rand_augment, height=8, width=8, probability=0.8, **RAND),
        ),
        (
            cutting_rand_augment,
            functools.partial(policies.draw_rand_augment, height=8, width=8, probability=1.0, **CUTTING),
        ),
        (
            auto_augment,
            functools.partial(policies.draw_auto_augment, policy="cifar10", height=8, width=8),
        ),
        (trivial_augment, policies.draw_trivial_augment),
    ],
    ids=["rand", "cutting", "auto", "trivial"],
)
def test_a_policy_carries_out_what_it_draws_with_a_key_for_each_image(noise, policy, draw):
    key = jax.random.key(1)
    got = np.asarray(policy(key, noise))
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(noise)))
    operation, strength, path = jax.jit(jax.vmap(draw))(keys)
    assert len({tuple(drawn) for drawn in np.concatenate([operation, strength], 1)}) > 8
    expected = noise
    for layer in range(operation.shape[1]):
        expected = apply(expected, operation[:, layer], strength[:, layer], path[:, layer])
    np.testing.assert_allclose(got, expected, atol=1e-3)
    assert got.min() >= 0 and got.max() <= 255 and np.abs(got - noise).mean() > 5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.bfloat16])
def test_images_of_any_type_become_float32(noise, dtype):
    images = jnp.asarray(noise).astype(dtype)
    got = trivial_augment(jax.random.key(1), images)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, trivial_augment(jax.random.key(1), images.astype(jnp.float32)))


def test_rand_augment_of_probability_0_changes_nothing(noise):
    np.testing.assert_array_equal(rand_augment(jax.random.key(0), noise, 0.0), noise)


def test_an_image_does_not_depend_on_the_rest_of_its_batch(noise):
    full = rand_augment(jax.random.key(1), noise)
    beside_others = rand_augment(jax.random.key(1), np.concatenate([noise[:3], 255 - noise[3:]]))
    np.testing.assert_array_equal(full[:3], beside_others[:3])
    assert np.abs(rand_augment(jax.random.key(2), noise) - full).mean() > 5


@pytest.mark.slow
def test_eight_devices_make_the_images_that_one_makes_and_exchange_nothing(noise, mesh8):
    key, split = jax.random.key(1), NamedSharding(mesh8, PartitionSpec(mesh.BATCH_AXES))
    images = jax.device_put(noise, split)
    shared = jax.jit(rand_augment, out_shardings=split).lower(key, images).compile()
    got = shared(key, images)
    assert len(got.sharding.device_set) == 8
    np.testing.assert_allclose(got, rand_augment(key, noise), atol=1e-3)
    program = shared.as_text()
    assert not any(exchange in program for exchange in ("all-gather", "all-reduce", "all-to-all", "collective"))
