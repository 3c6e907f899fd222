"""Operations of augmentation policies: one operation per image of a batch, all applied together.

One table lookup, one blend and one warp per pixel serve the whole batch, for any number of operations. Images are
float32 levels in [0, 255].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from patchnets.augment import color, geometry
from patchnets.augment.color import Images, PerImage, Tables, expand

# Operations by number, with the meaning of their strength.
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
TABLES = OPERATIONS[1:9]  # operations that are a table of levels
BLENDS = OPERATIONS[9:11]
WARPS = OPERATIONS[11:16]
FACTORS = ("brightness", "contrast", "color", "sharpness")

Places = Float[Array, "batch 2"]  # (y, x) as shares of height and width; only cutout uses it


def apply_operations(
    images: Images, operation: Int[Array, " batch"], strength: PerImage, position: Places, *, fill: float = 128.0
) -> Images:
    """Apply one operation to each image: number `operation` of `OPERATIONS`, at `strength` and `position`.

    Table operations round levels first; others keep fractions. Areas uncovered by a warp, and the square of cutout, get
    the level `fill`.
    """
    # A loop keeps XLA from fusing the steps. In one kernel, everything before the warp would be recomputed for each
    # neighbor of a pixel, which is several times slower on a CPU.
    steps = [look_up, blend, warp_or_cut]
    step = lambda i, images: jax.lax.switch(i, steps, images, operation, strength, position, fill)
    return jax.lax.fori_loop(0, len(steps), step, images)


def look_up(
    images: Images, operation: Int[Array, " batch"], strength: PerImage, position: Places, fill: float
) -> Images:
    """Apply the operations that are tables."""
    levels = color.whole_levels(images)
    looked_up = color.lookup(levels, tables(color.histogram(levels), operation, strength))
    return jnp.where(expand(is_one_of(operation, TABLES)), looked_up, images)


def blend(images: Images, operation: Int[Array, " batch"], factor: PerImage, position: Places, fill: float) -> Images:
    """Apply color (which leaves gray images unchanged) and sharpness."""
    sharpened = expand(operation == NUMBER["sharpness"])
    degenerate = jnp.where(sharpened, color.smooth(images), color.gray_levels(images))
    return jnp.where(expand(is_one_of(operation, BLENDS)), color.blend(degenerate, images, factor), images)


def warp_or_cut(
    images: Images, operation: Int[Array, " batch"], strength: PerImage, position: Places, fill: float
) -> Images:
    """Apply the geometric operations and cutout."""
    height, width = images.shape[1:3]
    warped = geometry.warp(images, affine_matrices(operation, strength, height, width), fill=fill)
    cut = (operation == NUMBER["cutout"])[:, None, None] & cutout_mask(strength, position, height, width)
    return jnp.where(cut[..., None], fill, jnp.where(expand(is_one_of(operation, WARPS)), warped, images))


def cutout_mask(half: PerImage, position: Places, height: int, width: int) -> Bool[Array, "batch height width"]:
    """Return the pixels in each image's square of side 2 `half`, centered on the upper left corner of a pixel."""
    y, x = jnp.arange(height) - one_of(height, position[:, :1]), jnp.arange(width) - one_of(width, position[:, 1:])
    rows, columns = ((at >= -half[:, None]) & (at < half[:, None]) for at in (y, x))
    return rows[:, :, None] & columns[:, None, :]


def is_one_of(operation: Int[Array, " batch"], names: tuple[str, ...]) -> Bool[Array, " batch"]:
    """Return which images have one of the named operations."""
    return jnp.array([name in names for name in OPERATIONS])[operation]


def tables(counts: Tables, operation: Int[Array, " batch"], strength: PerImage) -> Tables:
    """Return the level table of each image and channel, given its histogram `counts`."""
    level, strength = color.level_axis(), strength[:, None, None]
    mean = color.mean_gray(counts)[:, None, None]
    results = {
        "autocontrast": color.stretch_table(counts),
        "equalize": color.equalize_table(counts),
        "invert": 255 - level,
        "posterize": color.posterize_levels(level, strength),
        # Levels are integers; the offset absorbs rounding errors of the threshold.
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
    """Return affine maps from a pixel's (y, x, 1), relative to the center, to the source of its value.

    Rotation is about the center. Shear fixes the top row or the left column, as Pillow's AFFINE does with the
    coefficients that AutoAugment and its successors use. Other operations get the identity.
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
    """Return which of `count` equal parts of [0, 1] contains each share."""
    return jnp.minimum((share * count).astype(jnp.int32), count - 1)
