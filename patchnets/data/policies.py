"""Augmentation policies on the device: RandAugment, AutoAugment and TrivialAugment.

Each draws an operation and its strength for every image of a batch, several times over. What is drawn is arrays, and
`apply_operations` carries them out together: one table lookup, one blend and one warp a pixel for the whole batch,
however many operations there are. Every image draws from its own key. Images are levels in [0, 255] of any type and
become float32.

Two things are not torchvision's: what a warp uncovers is filled with gray 128, as in timm and TensorFlow (torchvision:
black), and warps are bilinear (torchvision's default: the nearest pixel).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from patchnets.data import geometry, photometric
from patchnets.data.photometric import Images, PerImage, Tables, beside
from patchnets.data.sub_policies import SUB_POLICIES
from patchnets.errors import UserError

# Every operation, by its number here, and the meaning of its strength.
OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "invert",
    "posterize",  # bits kept
    "solarize",  # lowest level that is inverted
    "solarize_add",  # added to levels below 128
    "brightness",  # a factor, as for the next three
    "contrast",
    "color",
    "sharpness",
    "rotate",  # degrees, counter-clockwise
    "shear_x",  # slope, as for the next
    "shear_y",
    "translate_x",  # pixels, to the left
    "translate_y",  # pixels, up
    "cutout",  # pixels, half the side of the square
)
NUMBER = {name: i for i, name in enumerate(OPERATIONS)}
TABLES = OPERATIONS[1:9]  # those that a table of levels carries out
BLENDS = OPERATIONS[9:11]
WARPS = OPERATIONS[11:16]
FACTORS = ("brightness", "contrast", "color", "sharpness")
TRIVIAL_AUGMENT = tuple(name for name in OPERATIONS if name not in ("invert", "solarize_add", "cutout"))
RAND_AUGMENT = {"timm": OPERATIONS[1:16], "torchvision": TRIVIAL_AUGMENT, "tensorflow": OPERATIONS[1:]}  # by ranges

AnyImages = Num[Array, "batch height width channels"]
Places = Float[Array, "batch 2"]  # (y, x) as shares of height and width, which cutout alone looks at
# Operations, their strengths and places.
Drawn = tuple[Int[Array, "*batch layers"], Float[Array, "*batch layers"], Float[Array, "*batch layers 2"]]


def apply_operations(
    images: Images, operation: Int[Array, " batch"], strength: PerImage, place: Places, *, fill: float = 128.0
) -> Images:
    """Carries out one operation on each image: number `operation` of `OPERATIONS`, at `strength` and `place`.

    Levels that operations of a table look at are rounded first; others keep their fractions. What a warp uncovers and
    the square of cutout are filled with the level `fill`.
    """
    # One after the other in a loop, the steps of which are not fused. In one kernel, what comes before the warp would
    # be computed anew for each neighbour of a pixel: several times slower on a CPU.
    steps = [look_up, blend, warp_or_cut]
    step = lambda i, images: jax.lax.switch(i, steps, images, operation, strength, place, fill)
    return jax.lax.fori_loop(0, len(steps), step, images)


def look_up(images: Images, operation: Int[Array, " batch"], strength: PerImage, place: Places, fill: float) -> Images:
    """Carries out the operations that are tables."""
    levels = photometric.whole_levels(images)
    found = photometric.lookup(levels, tables(photometric.histogram(levels), operation, strength))
    return jnp.where(beside(is_one_of(operation, TABLES)), found, images)


def blend(images: Images, operation: Int[Array, " batch"], factor: PerImage, place: Places, fill: float) -> Images:
    """Carries out colour, which leaves gray images as they are, and sharpness."""
    sharpened = beside(operation == NUMBER["sharpness"])
    degenerate = jnp.where(sharpened, photometric.smooth(images), photometric.gray_levels(images))
    return jnp.where(beside(is_one_of(operation, BLENDS)), photometric.blend(degenerate, images, factor), images)


def warp_or_cut(
    images: Images, operation: Int[Array, " batch"], strength: PerImage, place: Places, fill: float
) -> Images:
    """Carries out the geometric operations and cutout."""
    height, width = images.shape[1:3]
    warped = geometry.warp(images, affine_matrices(operation, strength, height, width), fill=fill)
    cut = (operation == NUMBER["cutout"])[:, None, None] & squares(strength, place, height, width)
    return jnp.where(cut[..., None], fill, jnp.where(beside(is_one_of(operation, WARPS)), warped, images))


def squares(half: PerImage, place: Places, height: int, width: int) -> Bool[Array, "batch height width"]:
    """Which pixels lie in each image's square: of side 2 `half`, centred on the upper left corner of a pixel."""
    y, x = jnp.arange(height) - one_of(height, place[:, :1]), jnp.arange(width) - one_of(width, place[:, 1:])
    rows, columns = ((at >= -half[:, None]) & (at < half[:, None]) for at in (y, x))
    return rows[:, :, None] & columns[:, None, :]


def is_one_of(operation: Int[Array, " batch"], names: tuple[str, ...]) -> Bool[Array, " batch"]:
    """Which images have one of these operations."""
    return jnp.array([name in names for name in OPERATIONS])[operation]


def tables(counts: Tables, operation: Int[Array, " batch"], strength: PerImage) -> Tables:
    """What each level becomes, in each image and channel with the histogram `counts`."""
    level, strength = photometric.level_axis(), strength[:, None, None]
    mean = photometric.mean_gray(counts)[:, None, None]
    results = {
        "autocontrast": photometric.stretch_table(counts),
        "equalize": photometric.equalize_table(counts),
        "invert": 255 - level,
        "posterize": photometric.posterize_levels(level, strength),
        # Levels are whole: no rounding error of a threshold leaves one out.
        "solarize": photometric.solarize_levels(level, strength - 1e-3),
        "solarize_add": jnp.where(level < 128, jnp.minimum(level + strength, 255), level),
        "brightness": jnp.clip(strength * level, 0, 255),
        "contrast": jnp.clip(mean + strength * (level - mean), 0, 255),
    }
    table = jnp.broadcast_to(level, counts.shape)
    for name, result in results.items():
        table = jnp.where((operation == NUMBER[name])[:, None, None], result, table)
    return table


def affine_matrices(
    operation: Int[Array, " batch"], strength: PerImage, height: int, width: int
) -> Float[Array, "batch 2 3"]:
    """From a pixel's (y, x, 1), relative to the centre, to where its value comes from; the identity if it stays.

    Rotation is about the centre; shearing keeps the top row or the left column in place, as Pillow's AFFINE does with
    the coefficients that AutoAugment and its successors give it.
    """

    def only(name: str, value: Array) -> Array:
        return jnp.where(operation == NUMBER[name], value, 0.0)

    angle = only("rotate", strength * (jnp.pi / 180))
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    shear_x, shear_y = only("shear_x", strength), only("shear_y", strength)
    across = only("translate_x", strength) + shear_x * (height / 2)
    down = only("translate_y", strength) + shear_y * (width / 2)
    rows = jnp.stack([cosine, sine + shear_y, down], -1)
    columns = jnp.stack([shear_x - sine, cosine, across], -1)
    return jnp.stack([rows, columns], -2)


# What is drawn. An operation's strengths are given by a middle and a swing, which is added or taken away at random.


def rand_augment(
    key: Array,
    images: AnyImages,
    *,
    layers: int = 2,
    magnitude: float = 9.0,
    magnitude_std: float = 0.0,
    probability: float = 1.0,
    ranges: str = "timm",
    fill: float = 128.0,
) -> Images:
    """RandAugment (arXiv 1909.13719): `layers` times one operation, all alike likely, at the same magnitude.

    `ranges`, which is whose operations and strengths:
      "timm": 15 operations, each the stronger the higher the magnitude ("inc1"): at 10 AutoAugment's strongest, and on
        linearly beyond, up to what an operation allows. timm's "rand-m9-mstd0.5-inc1" is magnitude 9, magnitude_std
        0.5, probability 0.5: each operation is left out half of the time.
      "torchvision": 14 operations, with the identity, without invert and solarize_add; AutoAugment's strongest at 30.
      "tensorflow": the original's, as in big_vision: 16 operations, with cutout. At 10, cutout and translations reach
        40 and 100 pixels whatever the size, factors are 1.9; at 0 they are 0.1, posterize and solarize strongest.

    Raises:
      UserError: there are no such ranges.
    """
    if ranges not in RAND_AUGMENT:
        raise UserError(f"RandAugment ranges {ranges!r}: there are none of that name; use {' or '.join(RAND_AUGMENT)}")
    height, width = images.shape[1:3]
    draw = lambda k: draw_rand_augment(k, height, width, layers, magnitude, magnitude_std, probability, ranges=ranges)
    return apply_layers(images, jax.vmap(draw)(geometry.example_keys(key, images.shape[0])), fill)


def draw_rand_augment(
    key: Array,
    height: int,
    width: int,
    layers: int,
    magnitude: float,
    magnitude_std: float,
    probability: float,
    *,
    ranges: str,
) -> Drawn:
    """One image's operations, strengths and places; magnitudes are normal, clipped to what is weakest and strongest.

    The strongest is 30 with torchvision's ranges, else 10, or `magnitude` where that is above.
    """
    # Never 0, which as a normal number would be infinite. All at once, as each draw takes long to compile.
    which, where, side, chance, *place = jax.random.uniform(key, (6, layers), minval=1e-7)
    names = RAND_AUGMENT[ranges]
    choice = one_of(len(names), which)
    bins = 30.0 if ranges == "torchvision" else 10.0
    strongest = bins if ranges == "torchvision" else jnp.maximum(bins, magnitude)
    share = jnp.clip(magnitude + magnitude_std * jax.scipy.special.ndtri(where), 0.0, strongest) / bins
    by_name = rand_augment_ranges(share, height, width, ranges=ranges)
    middle, swing = (
        jnp.stack([jnp.broadcast_to(by_name[name][i], (layers,)) for name in names])[choice, jnp.arange(layers)]
        for i in (0, 1)
    )
    strength = middle + jnp.where(side < 0.5, -swing, swing)
    operation = jnp.array([NUMBER[name] for name in names])[choice]
    if ranges == "timm":  # where factors below 0, beyond magnitude 10, would turn images over
        strength = jnp.where(is_one_of(operation, FACTORS), jnp.maximum(strength, 0.1), strength)
    return jnp.where(chance < probability, operation, NUMBER["identity"]), strength, jnp.stack(place, -1)


def one_of(count: int, share: Array) -> Array:
    """Which of `count` equal parts of [0, 1] each share lies in."""
    return jnp.minimum((share * count).astype(jnp.int32), count - 1)


def rand_augment_ranges(
    share: Float[Array, " layers"], height: int, width: int, *, ranges: str
) -> dict[str, tuple[Array | float, Array | float]]:
    """(middle, swing) of each operation's strength at a `share` of AutoAugment's strongest magnitude."""
    if ranges == "torchvision":
        return auto_augment_ranges(share, height, width)
    # Whole numbers are rounded down; the little added keeps what is whole but for rounding errors.
    whole = lambda most: jnp.floor(most * share + 1e-4)
    bits, threshold = whole(4), whole(256)
    if ranges == "timm":
        bits, threshold = 4 - bits, 256 - threshold
    factor = (1.0, 0.9 * share) if ranges == "timm" else (0.1 + 1.8 * share, 0.0)
    reach = (0.45 * height, 0.45 * width) if ranges == "timm" else (100.0, 100.0)
    return {
        "autocontrast": (0.0, 0.0),
        "equalize": (0.0, 0.0),
        "invert": (0.0, 0.0),
        "posterize": (jnp.clip(bits, 0, 8), 0.0),
        "solarize": (jnp.clip(threshold, 0, 256), 0.0),
        "solarize_add": (whole(110), 0.0),
        **dict.fromkeys(FACTORS, factor),
        "rotate": (0.0, 30 * share),
        "shear_x": (0.0, 0.3 * share),
        "shear_y": (0.0, 0.3 * share),
        "translate_x": (0.0, reach[1] * share),
        "translate_y": (0.0, reach[0] * share),
        "cutout": (whole(40), 0.0),
    }


def auto_augment(key: Array, images: AnyImages, *, policy: str, fill: float = 128.0) -> Images:
    """AutoAugment (arXiv 1805.09501): one of the 25 sub-policies found on "cifar10" or "imagenet" for each image.

    Ranges are the paper's (table 6), read as torchvision reads them: at level 9 of 9 a factor of 1 +- 0.9, 4 bits kept
    (8 at level 0), everything solarized (at level 0 only 255), 30 degrees, a slope of 0.3, 150/331 of the size.

    Raises:
      UserError: there is no such policy.
    """
    if policy not in SUB_POLICIES:
        raise UserError(f"AutoAugment policy {policy!r}: there is none of that name; use {' or '.join(SUB_POLICIES)}")
    height, width = images.shape[1:3]
    draw = lambda k: draw_auto_augment(k, policy, height, width)
    return apply_layers(images, jax.vmap(draw)(geometry.example_keys(key, images.shape[0])), fill)


def draw_auto_augment(key: Array, policy: str, height: int, width: int) -> Drawn:
    """One image's two operations, each the identity if it is left out, their strengths, and places of no use."""
    sub_policies = SUB_POLICIES[policy]
    which, sides, chances = jnp.split(jax.random.uniform(key, (5,)), (1, 3))
    ranges = [auto_augment_ranges(share, height, width) for share in np.arange(10) / 9]
    numbers = [[(NUMBER[name], p, *ranges[level][name]) for name, p, level in pair] for pair in sub_policies]
    pair = jnp.array(numbers, jnp.float32)[one_of(len(sub_policies), which[0])]
    operation, probability, middle, swing = pair.T
    strength = middle + jnp.where(sides < 0.5, -swing, swing)
    operation = jnp.where(chances < probability, operation.astype(jnp.int32), NUMBER["identity"])
    return operation, strength, jnp.zeros((2, 2))


def auto_augment_ranges(
    share: np.float64 | Array, height: int, width: int
) -> dict[str, tuple[Array | float, Array | float]]:
    """(middle, swing) of each operation's strength at a `share` of AutoAugment's strongest magnitude."""
    return graded(share, 0.3, (150 / 331 * height, 150 / 331 * width), 30.0, 0.9, 4)


def trivial_augment(key: Array, images: AnyImages, *, fill: float = 128.0) -> Images:
    """TrivialAugment Wide (arXiv 2103.10158): one of 14 operations for each image, at one of 31 strengths.

    Ranges as in torchvision: at the strongest a factor of 1 +- 0.99, 2 bits kept (8 at the weakest), everything
    solarized, 135 degrees, a slope of 0.99, 32 pixels whatever the size.
    """
    draw = jax.vmap(draw_trivial_augment)
    return apply_layers(images, draw(geometry.example_keys(key, images.shape[0])), fill)


def draw_trivial_augment(key: Array) -> Drawn:
    """One image's operation, its strength, and a place of no use."""
    which, grade, side = jax.random.uniform(key, (3, 1))
    ranges = [graded(share, 0.99, (32, 32), 135.0, 0.99, 6) for share in np.arange(31) / 30]
    numbers = [[(NUMBER[name], *by_name[name]) for by_name in ranges] for name in TRIVIAL_AUGMENT]
    drawn = jnp.array(numbers, jnp.float32)[one_of(len(TRIVIAL_AUGMENT), which), one_of(len(ranges), grade)]
    operation, middle, swing = drawn.T
    return operation.astype(jnp.int32), middle + jnp.where(side < 0.5, -swing, swing), jnp.zeros((1, 2))


def graded(
    share: np.float64 | Array, slope: float, reach: tuple[float, float], degrees: float, factor: float, bits: int
) -> dict[str, tuple[Array | float, Array | float]]:
    """(middle, swing) of each operation's strength at a `share` of its range, as torchvision grades them.

    The range ends at a shear of `slope`, a translation by `reach` (height, width) in pixels, of which whole ones count,
    a rotation by `degrees`, a factor of 1 +- `factor`, and `bits` fewer than 8.
    """
    return {
        **dict.fromkeys(("identity", "autocontrast", "equalize", "invert"), (0.0, 0.0)),
        "posterize": (8 - (bits * share).round(), 0.0),
        "solarize": (255 * (1 - share), 0.0),
        **dict.fromkeys(FACTORS, (1.0, factor * share)),
        "rotate": (0.0, degrees * share),
        "shear_x": (0.0, slope * share),
        "shear_y": (0.0, slope * share),
        "translate_x": (0.0, (reach[1] * share + 1e-4) // 1),
        "translate_y": (0.0, (reach[0] * share + 1e-4) // 1),
    }


def apply_layers(images: AnyImages, drawn: Drawn, fill: float) -> Images:
    """One operation of every image after the other, on float32 levels."""
    layer = lambda images, one: (apply_operations(images, *one, fill=fill), None)
    layers = tuple(values.swapaxes(0, 1) for values in drawn)
    return jax.lax.scan(layer, images.astype(jnp.float32), layers)[0]
