"""Augmentation policies on the device: RandAugment, AutoAugment and TrivialAugment.

Each samples operations and strengths for every image of a batch from the image's own key; `ops.py` applies them to the
batch together. Images are levels in [0, 255] of any dtype and become float32.

Differences from torchvision: areas uncovered by a warp are filled with gray 128, as in timm and TensorFlow
(torchvision: black), and warps are bilinear (torchvision's default: nearest).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from patchnets.augment import geometry
from patchnets.augment.autoaugment_tables import SUB_POLICIES
from patchnets.augment.color import Images
from patchnets.augment.ops import FACTORS, NUMBER, OPERATIONS, apply_operations, is_one_of, one_of
from patchnets.errors import UserError

TRIVIAL_AUGMENT = tuple(name for name in OPERATIONS if name not in ("invert", "solarize_add", "cutout"))
RAND_AUGMENT = {"timm": OPERATIONS[1:16], "torchvision": TRIVIAL_AUGMENT, "tensorflow": OPERATIONS[1:]}  # by ranges

AnyImages = Num[Array, "batch height width channels"]
# Operations, their strengths and places.
Drawn = tuple[Int[Array, "*batch layers"], Float[Array, "*batch layers"], Float[Array, "*batch layers 2"]]


# Sampling. The strength of an operation is a middle plus or minus a swing, at random.


def rand_augment(
    key: Array,
    images: AnyImages,
    *,
    num_ops: int = 2,
    magnitude: float = 9.0,
    magnitude_std: float = 0.0,
    probability: float = 1.0,
    variant: str = "timm",
    fill: float = 128.0,
) -> Images:
    """Apply RandAugment (arXiv 1909.13719): `num_ops` operations, uniformly sampled, at the same magnitude.

    `variant` selects the operations and strengths:
      "timm": 15 operations whose strength increases with the magnitude ("inc1"): at 10 AutoAugment's strongest, and
        linearly beyond, up to the limit of an operation. timm's "rand-m9-mstd0.5-inc1" is magnitude 9, magnitude_std
        0.5, probability 0.5: each operation is skipped half of the time.
      "torchvision": 14 operations, including the identity, without invert and solarize_add; AutoAugment's strongest at
        30.
      "tensorflow": the original's, as in big_vision: 16 operations, with cutout. At 10, cutout and translations reach
        40 and 100 pixels whatever the size, factors are 1.9; at 0 they are 0.1, posterize and solarize strongest.

    Raises:
      UserError: unknown `variant`.
    """
    if variant not in RAND_AUGMENT:
        raise UserError(f"randaugment_variant={variant!r} is unknown; use one of {', '.join(RAND_AUGMENT)}")
    height, width = images.shape[1:3]
    draw = lambda k: draw_rand_augment(
        k, height, width, num_ops, magnitude, magnitude_std, probability, variant=variant
    )
    return apply_layers(images, jax.vmap(draw)(geometry.example_keys(key, images.shape[0])), fill)


def draw_rand_augment(
    key: Array,
    height: int,
    width: int,
    num_ops: int,
    magnitude: float,
    magnitude_std: float,
    probability: float,
    *,
    variant: str,
) -> Drawn:
    """Sample one image's operations, strengths and places. Magnitudes are normal, clipped to [0, strongest].

    The strongest is 30 for torchvision, else 10, or `magnitude` if that is larger.
    """
    # Never 0, whose normal quantile is infinite. One draw for all, because each draw takes long to compile.
    which, magnitude_draw, side, chance, *position = jax.random.uniform(key, (6, num_ops), minval=1e-7)
    names = RAND_AUGMENT[variant]
    choice = one_of(len(names), which)
    bins = 30.0 if variant == "torchvision" else 10.0
    strongest = bins if variant == "torchvision" else jnp.maximum(bins, magnitude)
    share = jnp.clip(magnitude + magnitude_std * jax.scipy.special.ndtri(magnitude_draw), 0.0, strongest) / bins
    by_name = rand_augment_ranges(share, height, width, variant=variant)
    middle, swing = (
        jnp.stack([jnp.broadcast_to(by_name[name][i], (num_ops,)) for name in names])[choice, jnp.arange(num_ops)]
        for i in (0, 1)
    )
    strength = middle + jnp.where(side < 0.5, -swing, swing)
    operation = jnp.array([NUMBER[name] for name in names])[choice]
    if variant == "timm":  # where factors below 0, beyond magnitude 10, would invert images
        strength = jnp.where(is_one_of(operation, FACTORS), jnp.maximum(strength, 0.1), strength)
    return jnp.where(chance < probability, operation, NUMBER["identity"]), strength, jnp.stack(position, -1)


def rand_augment_ranges(
    share: Float[Array, " layers"], height: int, width: int, *, variant: str
) -> dict[str, tuple[Array | float, Array | float]]:
    """Return (middle, swing) of each operation's strength at a `share` of AutoAugment's strongest magnitude."""
    if variant == "torchvision":
        return auto_augment_ranges(share, height, width)
    # Round down; the small offset absorbs rounding errors.
    rounded_down = lambda most: jnp.floor(most * share + 1e-4)
    bits, threshold = rounded_down(4), rounded_down(256)
    if variant == "timm":
        bits, threshold = 4 - bits, 256 - threshold
    factor = (1.0, 0.9 * share) if variant == "timm" else (0.1 + 1.8 * share, 0.0)
    reach = (0.45 * height, 0.45 * width) if variant == "timm" else (100.0, 100.0)
    return {
        "autocontrast": (0.0, 0.0),
        "equalize": (0.0, 0.0),
        "invert": (0.0, 0.0),
        "posterize": (jnp.clip(bits, 0, 8), 0.0),
        "solarize": (jnp.clip(threshold, 0, 256), 0.0),
        "solarize_add": (rounded_down(110), 0.0),
        **dict.fromkeys(FACTORS, factor),
        "rotate": (0.0, 30 * share),
        "shear_x": (0.0, 0.3 * share),
        "shear_y": (0.0, 0.3 * share),
        "translate_x": (0.0, reach[1] * share),
        "translate_y": (0.0, reach[0] * share),
        "cutout": (rounded_down(40), 0.0),
    }


def auto_augment(key: Array, images: AnyImages, *, policy: str, fill: float = 128.0) -> Images:
    """Apply AutoAugment (arXiv 1805.09501): one of the 25 sub-policies of "cifar10" or "imagenet" per image.

    Ranges are the paper's (table 6), read as torchvision reads them: at level 9 of 9 a factor of 1 +- 0.9, 4 bits kept
    (8 at level 0), everything solarized (at level 0 only 255), 30 degrees, a slope of 0.3, 150/331 of the size.

    Raises:
      UserError: unknown `policy`.
    """
    if policy not in SUB_POLICIES:
        raise UserError(f"AutoAugment policy {policy!r} is unknown; use {' or '.join(SUB_POLICIES)}")
    height, width = images.shape[1:3]
    draw = lambda k: draw_auto_augment(k, policy, height, width)
    return apply_layers(images, jax.vmap(draw)(geometry.example_keys(key, images.shape[0])), fill)


def draw_auto_augment(key: Array, policy: str, height: int, width: int) -> Drawn:
    """Sample one image's two operations (the identity if skipped), their strengths, and unused places."""
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
    """Return (middle, swing) of each operation's strength at a `share` of AutoAugment's strongest magnitude."""
    return strength_table(share, 0.3, (150 / 331 * height, 150 / 331 * width), 30.0, 0.9, 4)


def trivial_augment(key: Array, images: AnyImages, *, fill: float = 128.0) -> Images:
    """Apply TrivialAugment Wide (arXiv 2103.10158): one of 14 operations per image, at one of 31 strengths.

    Ranges as in torchvision: at the strongest a factor of 1 +- 0.99, 2 bits kept (8 at the weakest), everything
    solarized, 135 degrees, a slope of 0.99, 32 pixels whatever the size.
    """
    draw = jax.vmap(draw_trivial_augment)
    return apply_layers(images, draw(geometry.example_keys(key, images.shape[0])), fill)


def draw_trivial_augment(key: Array) -> Drawn:
    """Sample one image's operation, its strength, and an unused place."""
    which, grade, side = jax.random.uniform(key, (3, 1))
    ranges = [strength_table(share, 0.99, (32, 32), 135.0, 0.99, 6) for share in np.arange(31) / 30]
    numbers = [[(NUMBER[name], *by_name[name]) for by_name in ranges] for name in TRIVIAL_AUGMENT]
    drawn = jnp.array(numbers, jnp.float32)[one_of(len(TRIVIAL_AUGMENT), which), one_of(len(ranges), grade)]
    operation, middle, swing = drawn.T
    return operation.astype(jnp.int32), middle + jnp.where(side < 0.5, -swing, swing), jnp.zeros((1, 2))


def strength_table(
    share: np.float64 | Array, slope: float, reach: tuple[float, float], degrees: float, factor: float, bits: int
) -> dict[str, tuple[Array | float, Array | float]]:
    """Return (middle, swing) of each operation's strength at a `share` of its range, as in torchvision.

    The range ends at a shear of `slope`, a translation of `reach` (height, width) in whole pixels, a rotation of
    `degrees`, a factor of 1 +- `factor`, and `bits` fewer than 8.
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
    """Apply the operations of every image in sequence, on float32 levels."""
    layer = lambda images, drawn_layer: (apply_operations(images, *drawn_layer, fill=fill), None)
    layers = tuple(values.swapaxes(0, 1) for values in drawn)
    return jax.lax.scan(layer, images.astype(jnp.float32), layers)[0]
