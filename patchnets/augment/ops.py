"""What policies draw from: one operation for each image of a batch, all carried out together.

One table lookup, one blend and one warp a pixel serve the whole batch, however many operations there are. Images are
float32 levels in [0, 255].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from patchnets.augment import color, geometry
from patchnets.augment.color import Images, PerImage, Tables, expand

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

Places = Float[Array, "batch 2"]  # (y, x) as shares of height and width, which cutout alone looks at


def apply_operations(
    images: Images, operation: Int[Array, " batch"], strength: PerImage, place: Places, *, fill: float = 128.0
) -> Images:
    """Carries out one operation on each image: number `operation` of `OPERATIONS`, at `strength` and `place`.

    Levels that operations of a table look at are rounded first; others keep their fractions. What a warp uncovers and
    the square of cutout are filled with the level `fill`.
    """
    # One after the other in a loop, the steps of which are not fused. In one kernel, what comes before the warp would
    # be computed anew for each neighbor of a pixel: several times slower on a CPU.
    steps = [look_up, blend, warp_or_cut]
    step = lambda i, images: jax.lax.switch(i, steps, images, operation, strength, place, fill)
    return jax.lax.fori_loop(0, len(steps), step, images)


def look_up(images: Images, operation: Int[Array, " batch"], strength: PerImage, place: Places, fill: float) -> Images:
    """Carries out the operations that are tables."""
    levels = color.whole_levels(images)
    found = color.lookup(levels, tables(color.histogram(levels), operation, strength))
    return jnp.where(expand(is_one_of(operation, TABLES)), found, images)


def blend(images: Images, operation: Int[Array, " batch"], factor: PerImage, place: Places, fill: float) -> Images:
    """Carries out color, which leaves gray images as they are, and sharpness."""
    sharpened = expand(operation == NUMBER["sharpness"])
    degenerate = jnp.where(sharpened, color.smooth(images), color.gray_levels(images))
    return jnp.where(expand(is_one_of(operation, BLENDS)), color.blend(degenerate, images, factor), images)


def warp_or_cut(
    images: Images, operation: Int[Array, " batch"], strength: PerImage, place: Places, fill: float
) -> Images:
    """Carries out the geometric operations and cutout."""
    height, width = images.shape[1:3]
    warped = geometry.warp(images, affine_matrices(operation, strength, height, width), fill=fill)
    cut = (operation == NUMBER["cutout"])[:, None, None] & cutout_mask(strength, place, height, width)
    return jnp.where(cut[..., None], fill, jnp.where(expand(is_one_of(operation, WARPS)), warped, images))


def cutout_mask(half: PerImage, place: Places, height: int, width: int) -> Bool[Array, "batch height width"]:
    """Which pixels lie in each image's square: of side 2 `half`, centered on the upper left corner of a pixel."""
    y, x = jnp.arange(height) - one_of(height, place[:, :1]), jnp.arange(width) - one_of(width, place[:, 1:])
    rows, columns = ((at >= -half[:, None]) & (at < half[:, None]) for at in (y, x))
    return rows[:, :, None] & columns[:, None, :]


def is_one_of(operation: Int[Array, " batch"], names: tuple[str, ...]) -> Bool[Array, " batch"]:
    """Which images have one of these operations."""
    return jnp.array([name in names for name in OPERATIONS])[operation]


def tables(counts: Tables, operation: Int[Array, " batch"], strength: PerImage) -> Tables:
    """What each level becomes, in each image and channel with the histogram `counts`."""
    level, strength = color.level_axis(), strength[:, None, None]
    mean = color.mean_gray(counts)[:, None, None]
    results = {
        "autocontrast": color.stretch_table(counts),
        "equalize": color.equalize_table(counts),
        "invert": 255 - level,
        "posterize": color.posterize_levels(level, strength),
        # Levels are whole: no rounding error of a threshold leaves one out.
        "solarize": color.solarize_levels(level, strength - 1e-3),
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
    """From a pixel's (y, x, 1), relative to the center, to where its value comes from; the identity if it stays.

    Rotation is about the center; shearing keeps the top row or the left column in place, as Pillow's AFFINE does with
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


def one_of(count: int, share: Array) -> Array:
    """Which of `count` equal parts of [0, 1] each share lies in."""
    return jnp.minimum((share * count).astype(jnp.int32), count - 1)
