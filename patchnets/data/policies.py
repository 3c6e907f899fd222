"""Augmentation policies on the device: RandAugment, AutoAugment and TrivialAugment.

Each draws an operation and its strength for every image of a batch, several times over. What is drawn is two arrays,
and `apply_operations` carries them out together: one table lookup, one blend and one warp a pixel for the whole batch,
however many operations there are. Every image draws from its own key. Images are float32 levels in [0, 255].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from patchnets.data import geometry, photometric
from patchnets.data.photometric import Images, PerImage, Tables, beside
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
)
NUMBER = {name: i for i, name in enumerate(OPERATIONS)}
TABLES = OPERATIONS[1:9]  # those that a table of levels carries out
BLENDS = OPERATIONS[9:11]
WARPS = OPERATIONS[11:]
FACTORS = ("brightness", "contrast", "color", "sharpness")
RAND_AUGMENT = OPERATIONS[1:]
TRIVIAL_AUGMENT = tuple(name for name in OPERATIONS if name not in ("invert", "solarize_add"))

Drawn = tuple[Int[Array, "*batch layers"], Float[Array, "*batch layers"]]  # operations and their strengths

# Sub-policies: two operations one after the other, each with its probability and its level of 0 to 9, which means
# nothing to operations without a strength. arXiv 1805.09501, table 7 (CIFAR-10) and table 9 (ImageNet).
# fmt: off
SUB_POLICIES = {
    "cifar10": (
        (("invert", 0.1, 7), ("contrast", 0.2, 6)), (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
        (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)), (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
        (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)), (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
        (("color", 0.4, 3), ("brightness", 0.6, 7)), (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
        (("equalize", 0.6, 5), ("equalize", 0.5, 1)), (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
        (("color", 0.7, 7), ("translate_x", 0.5, 8)), (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
        (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)), (("brightness", 0.9, 6), ("color", 0.2, 8)),
        (("solarize", 0.5, 2), ("invert", 0.0, 3)), (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
        (("equalize", 0.2, 8), ("equalize", 0.6, 4)), (("color", 0.9, 9), ("equalize", 0.6, 6)),
        (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)), (("brightness", 0.1, 3), ("color", 0.7, 0)),
        (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)), (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
        (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)), (("equalize", 0.8, 8), ("invert", 0.1, 3)),
        (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
    ),
    "imagenet": (
        (("posterize", 0.4, 8), ("rotate", 0.6, 9)), (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
        (("equalize", 0.8, 8), ("equalize", 0.6, 3)), (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
        (("equalize", 0.4, 7), ("solarize", 0.2, 4)), (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
        (("solarize", 0.6, 3), ("equalize", 0.6, 7)), (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
        (("rotate", 0.2, 3), ("solarize", 0.6, 8)), (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
        (("rotate", 0.8, 8), ("color", 0.4, 0)), (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
        (("equalize", 0.0, 7), ("equalize", 0.8, 8)), (("invert", 0.6, 4), ("equalize", 1.0, 8)),
        (("color", 0.6, 4), ("contrast", 1.0, 8)), (("rotate", 0.8, 8), ("color", 1.0, 2)),
        (("color", 0.8, 8), ("solarize", 0.8, 7)), (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
        (("shear_x", 0.6, 5), ("equalize", 1.0, 9)), (("color", 0.4, 0), ("equalize", 0.6, 3)),
        (("equalize", 0.4, 7), ("solarize", 0.2, 4)), (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
        (("invert", 0.6, 4), ("equalize", 1.0, 8)), (("color", 0.6, 4), ("contrast", 1.0, 8)),
        (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    ),
}
# fmt: on


def apply_operations(
    images: Images, operation: Int[Array, " batch"], strength: PerImage, *, fill: float = 128.0
) -> Images:
    """Carries out one operation on each image: number `operation` of `OPERATIONS`, at `strength`.

    Levels that operations of a table look at are rounded first; others keep their fractions. What a warp uncovers is
    filled with the level `fill`.
    """
    # One after the other in a loop, the steps of which are not fused. In one kernel, what comes before the warp would
    # be computed anew for each neighbour of a pixel: several times slower on a CPU.
    steps = [look_up, blend, warp]
    step = lambda i, images: jax.lax.switch(i, steps, images, operation, strength, fill)
    return jax.lax.fori_loop(0, len(steps), step, images)


def look_up(images: Images, operation: Int[Array, " batch"], strength: PerImage, fill: float) -> Images:
    """Carries out the operations that are tables."""
    levels = photometric.whole_levels(images)
    found = photometric.lookup(levels, tables(photometric.histogram(levels), operation, strength))
    return jnp.where(beside(is_one_of(operation, TABLES)), found, images)


def blend(images: Images, operation: Int[Array, " batch"], factor: PerImage, fill: float) -> Images:
    """Carries out colour, which leaves gray images as they are, and sharpness."""
    sharpened = beside(operation == NUMBER["sharpness"])
    degenerate = jnp.where(sharpened, photometric.smooth(images), photometric.gray_levels(images))
    return jnp.where(beside(is_one_of(operation, BLENDS)), photometric.blend(degenerate, images, factor), images)


def warp(images: Images, operation: Int[Array, " batch"], strength: PerImage, fill: float) -> Images:
    """Carries out the geometric operations."""
    warped = geometry.warp(images, affine_matrices(operation, strength, *images.shape[1:3]), fill=fill)
    return jnp.where(beside(is_one_of(operation, WARPS)), warped, images)


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
        "solarize": photometric.solarize_levels(level, strength),
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
    images: Images,
    *,
    layers: int = 2,
    magnitude: float = 9.0,
    magnitude_std: float = 0.0,
    probability: float = 1.0,
    increasing: bool = True,
    fill: float = 128.0,
) -> Images:
    """RandAugment (arXiv 1909.13719): `layers` times one of 15 operations, all alike likely, at the same magnitude.

    Magnitude 10 is the strongest of AutoAugment; beyond it strengths go on linearly up to what an operation allows.
    `increasing` as timm's "inc1", where every operation grows stronger with the magnitude; otherwise as TensorFlow's
    original, where posterize and solarize grow weaker and factors go from 0.1 to 1.9. timm's "rand-m9-mstd0.5-inc1" is
    magnitude 9, magnitude_std 0.5, probability 0.5: each operation is left out half of the time.
    """
    height, width = images.shape[1:3]
    draw = lambda k: draw_rand_augment(
        k, height, width, layers, magnitude, magnitude_std, probability, increasing=increasing
    )
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
    increasing: bool,
) -> Drawn:
    """One image's operations and strengths; magnitudes are normal, clipped to [0, 10] or to [0, magnitude] above."""
    # Never 0, which as a normal number would be infinite. All at once, as each draw takes long to compile.
    which, where, side, chance = jax.random.uniform(key, (4, layers), minval=1e-7)
    choice = one_of(len(RAND_AUGMENT), which)
    drawn = magnitude + magnitude_std * jax.scipy.special.ndtri(where)
    share = jnp.clip(drawn, 0.0, jnp.maximum(10.0, magnitude)) / 10
    ranges = rand_augment_ranges(share, height, width, increasing=increasing)
    middle, swing = (
        jnp.stack([jnp.broadcast_to(ranges[name][i], (layers,)) for name in RAND_AUGMENT])[choice, jnp.arange(layers)]
        for i in (0, 1)
    )
    strength = middle + jnp.where(side < 0.5, -swing, swing)
    factor = jnp.array([name in FACTORS for name in RAND_AUGMENT])[choice]
    strength = jnp.where(factor, jnp.maximum(strength, 0.1), strength)  # as timm: beyond 10 it would turn images over
    operation = jnp.array([NUMBER[name] for name in RAND_AUGMENT])[choice]
    return jnp.where(chance < probability, operation, NUMBER["identity"]), strength


def one_of(count: int, share: Array) -> Array:
    """Which of `count` equal parts of [0, 1] each share lies in."""
    return jnp.minimum((share * count).astype(jnp.int32), count - 1)


def rand_augment_ranges(
    share: Float[Array, " layers"], height: int, width: int, *, increasing: bool
) -> dict[str, tuple[Array | float, Array | float]]:
    """(middle, swing) of each operation's strength at a `share` of magnitude 10, translations in pixels."""
    # Whole numbers are rounded down; the little added keeps what is whole but for rounding errors.
    whole = lambda most: jnp.floor(most * share + 1e-4)
    bits, threshold = whole(4), whole(256)
    if increasing:
        bits, threshold = 4 - bits, 256 - threshold
    factor = (1.0, 0.9 * share) if increasing else (0.1 + 1.8 * share, 0.0)
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
        "translate_x": (0.0, 0.45 * width * share),
        "translate_y": (0.0, 0.45 * height * share),
    }


def auto_augment(key: Array, images: Images, *, policy: str, fill: float = 128.0) -> Images:
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
    """One image's two operations, each the identity if it is left out, and their strengths."""
    sub_policies = SUB_POLICIES[policy]
    which, sides, chances = jnp.split(jax.random.uniform(key, (5,)), (1, 3))
    ranges = [graded(level / 9, 0.3, (150 / 331 * height, 150 / 331 * width), 30.0, 0.9, 4) for level in range(10)]
    numbers = [[(NUMBER[name], p, *ranges[level][name]) for name, p, level in pair] for pair in sub_policies]
    pair = jnp.array(numbers, jnp.float32)[one_of(len(sub_policies), which[0])]
    operation, probability, middle, swing = pair.T
    strength = middle + jnp.where(sides < 0.5, -swing, swing)
    return jnp.where(chances < probability, operation.astype(jnp.int32), NUMBER["identity"]), strength


def trivial_augment(key: Array, images: Images, *, fill: float = 128.0) -> Images:
    """TrivialAugment Wide (arXiv 2103.10158): one of 14 operations for each image, at one of 31 strengths.

    Ranges as in torchvision: at the strongest a factor of 1 +- 0.99, 6 bits kept (8 at the weakest), everything
    solarized, 135 degrees, a slope of 0.99, 32 pixels whatever the size.
    """
    draw = jax.vmap(draw_trivial_augment)
    return apply_layers(images, draw(geometry.example_keys(key, images.shape[0])), fill)


def draw_trivial_augment(key: Array) -> Drawn:
    """One image's operation and its strength."""
    which, grade, side = jax.random.uniform(key, (3, 1))
    ranges = [graded(i / 30, 0.99, (32, 32), 135.0, 0.99, 2) for i in range(31)]
    numbers = [[(NUMBER[name], *by_name[name]) for by_name in ranges] for name in TRIVIAL_AUGMENT]
    drawn = jnp.array(numbers, jnp.float32)[one_of(len(TRIVIAL_AUGMENT), which), one_of(len(ranges), grade)]
    operation, middle, swing = drawn.T
    return operation.astype(jnp.int32), middle + jnp.where(side < 0.5, -swing, swing)


def graded(
    share: float, slope: float, reach: tuple[float, float], degrees: float, factor: float, bits: int
) -> dict[str, tuple[float, float]]:
    """(middle, swing) of each operation's strength at a `share` of its range, as torchvision grades them.

    The range ends at a shear of `slope`, a translation by `reach` (height, width) in pixels, of which whole ones count,
    a rotation by `degrees`, a factor of 1 +- `factor`, and `bits` fewer than 8.
    """
    still = dict.fromkeys(("identity", "autocontrast", "equalize", "invert"), (0.0, 0.0))
    return still | {
        "posterize": (8.0 - round(bits * share), 0.0),
        "solarize": (255 * (1 - share), 0.0),
        **dict.fromkeys(FACTORS, (1.0, factor * share)),
        "rotate": (0.0, degrees * share),
        "shear_x": (0.0, slope * share),
        "shear_y": (0.0, slope * share),
        "translate_x": (0.0, float(int(reach[1] * share))),
        "translate_y": (0.0, float(int(reach[0] * share))),
    }


def apply_layers(images: Images, drawn: Drawn, fill: float) -> Images:
    """One operation of every image after the other."""
    layer = lambda images, one: (apply_operations(images, *one, fill=fill), None)
    return jax.lax.scan(layer, images, tuple(values.T for values in drawn))[0]
