"""Color augmentation on the device, for float32 images [batch, height, width, channels] with levels in [0, 255].

Channels are 1 (gray) or 3 (red, green, blue). Every operation has two forms: one takes a strength for
each image, and agrees with Pillow to less than a level (Pillow truncates fractions, here they are kept); the other
samples the strength of each image from its own key, so that it does not depend on the rest of the batch.

There are three kinds of operations. Some map levels to levels, given the histogram of the image; for a batch in which
every image has its own operation, they are one table lookup per pixel (`lookup`). Some blend with a degenerate image
(`blend`): towards it for factors below 1, away from it above. Hue is neither.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from patchnets.augment import geometry

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in ITU-R Recommendation 601-2
LEVELS = 256

Images = Float[Array, "batch height width channels"]
PerImage = Float[Array, " batch"]
Tables = Float[Array, "batch channels 256"]


# Building blocks of operations and policies.


def uniform(key: Array, batch: int, low: float, high: float) -> PerImage:
    """Sample a number from [low, high] for each image."""
    return jax.vmap(lambda k: jax.random.uniform(k, minval=low, maxval=high))(geometry.example_keys(key, batch))


def expand(values: Array) -> Array:
    """Reshape [batch] to [batch, 1, 1, 1], to broadcast over images."""
    return jnp.reshape(values, (-1, 1, 1, 1))


def luma(images: Images) -> Float[Array, "batch height width 1"]:
    """Convert color images to gray; gray images are returned unchanged."""
    if images.shape[-1] == 1:
        return images
    red, green, blue = images[..., 0:1], images[..., 1:2], images[..., 2:3]  # much faster than a sum over the last axis
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def gray_levels(images: Images) -> Float[Array, "batch height width 1"]:
    """Convert color images to gray in whole levels, as Pillow does; gray images are returned unchanged."""
    return images if images.shape[-1] == 1 else jnp.round(luma(images))


def smooth(images: Images) -> Images:
    """Smooth with weights 5/13 for a pixel and 1/13 for its eight neighbors, in whole levels (Pillow's SMOOTH). Border
    pixels are unchanged."""
    _, height, width, channels = images.shape
    lines = images.reshape(-1, height, width * channels)  # neighbors in a row are `channels` apart
    padded = jnp.pad(lines, ((0, 0), (1, 1), (channels, channels)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    box = rows[..., : -2 * channels] + rows[..., channels:-channels] + rows[..., 2 * channels :]
    y, x = jnp.arange(height)[:, None], jnp.arange(width * channels) // channels
    inside = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    return jnp.where(inside, jnp.round((box + 4 * lines) * (1 / 13)), lines).reshape(images.shape)


def blend(degenerate: Array, images: Images, factor: PerImage) -> Images:
    """Blend: degenerate + factor (images - degenerate), clipped to [0, 255]."""
    return jnp.clip(degenerate + expand(factor) * (images - degenerate), 0, 255)


def whole_levels(images: Images) -> Int[Array, "batch height width channels"]:
    """Round to the nearest levels from 0 to 255."""
    return jnp.clip(jnp.round(images), 0, 255).astype(jnp.int32)


def histogram(levels: Int[Array, "batch height width channels"]) -> Tables:
    """Count the pixels of each level, for every image and channel.

    Scatter-adds ones, which was by far the fastest on a CPU (comparing with every level, sorting and products of
    one-hot matrices took 15 to 300 times as long). The counts of each image stay on its device.

    """
    batch, channels = levels.shape[0], levels.shape[-1]
    slots = (levels + LEVELS * jnp.arange(channels)).reshape(batch, -1)
    count = lambda s: jnp.zeros(channels * LEVELS, jnp.int32).at[s].add(1, mode="promise_in_bounds")
    return jax.vmap(count)(slots).reshape(batch, channels, LEVELS).astype(jnp.float32)


def lookup(levels: Int[Array, "batch height width channels"], tables: Tables) -> Images:
    """Replace every level by its entry in the table of its image and channel."""
    batch, _, _, channels = levels.shape
    places = levels.reshape(batch, -1, channels)
    looked_up = jnp.take_along_axis(tables.swapaxes(1, 2), places, axis=1, mode="promise_in_bounds")
    return looked_up.reshape(levels.shape)


# Tables. `counts` is a histogram; `level` the levels 0 to 255; strengths are [batch].


def level_axis() -> Float[Array, " 256"]:
    """Return the levels 0 to 255, the identity table."""
    return jnp.arange(LEVELS, dtype=jnp.float32)


def stretch_table(counts: Tables) -> Tables:
    """Table of autocontrast: map the lowest level present to 0 and the highest to 255, linearly; identity if there is
    only one level."""
    level, occurs = level_axis(), counts > 0
    low = jnp.where(occurs, level, 255).min(-1, keepdims=True)
    high = jnp.where(occurs, level, 0).max(-1, keepdims=True)
    return jnp.where(high > low, jnp.clip((level - low) * 255 / jnp.maximum(high - low, 1), 0, 255), level)


def equalize_table(counts: Tables) -> Tables:
    """Table of Pillow's equalize: the number of pixels below a level, in steps of 1/255 of the pixels without the
    highest level; identity if that step is less than one pixel or there is only one level."""
    level = level_axis()
    high = jnp.where(counts > 0, level, 0).max(-1, keepdims=True)
    highest = jnp.where(level == high, counts, 0).sum(-1, keepdims=True)
    below = jnp.cumsum(counts, -1) - counts
    step = jnp.floor((counts.sum(-1, keepdims=True) - highest + 0.5) / 255)
    # Pixel counts are integers far below 2**24; add one half so that rounding loses no level.
    equal = jnp.floor((jnp.floor(step / 2) + below + 0.5) / jnp.maximum(step, 1))
    return jnp.where(step > 0, jnp.minimum(equal, 255), level)


def mean_gray(counts: Tables) -> PerImage:
    """Return the mean of the gray image, in whole levels, from the histogram of a gray or color image."""
    means = (counts * level_axis()).sum(-1) / counts.sum(-1)
    return jnp.round(luma(means[:, None, None])[:, 0, 0, 0])


def solarize_levels(levels: Array, threshold: Array) -> Array:
    """Invert levels at or above the threshold."""
    return jnp.where(levels < threshold, levels, 255 - levels)


def posterize_levels(levels: Array, bits: Array) -> Array:
    """Keep the highest `bits` (0 to 8) of the 8 bits of whole levels, and set the others to 0."""
    unit = jnp.left_shift(1, 8 - jnp.clip(bits, 0, 8).astype(jnp.int32)).astype(jnp.float32)
    return jnp.floor(levels / unit) * unit


# With a strength for each image.


def adjust_brightness(images: Images, factor: PerImage) -> Images:
    """Multiply by `factor`: black at 0."""
    return jnp.clip(images * expand(factor), 0, 255)


def adjust_contrast(images: Images, factor: PerImage) -> Images:
    """Blend with the mean of the gray image: uniform gray at 0."""
    return blend(jnp.round(luma(images.mean((1, 2), keepdims=True))), images, factor)


def adjust_saturation(images: Images, factor: PerImage) -> Images:
    """Blend with the gray image: gray at 0. Gray images are unchanged."""
    return images if images.shape[-1] == 1 else blend(gray_levels(images), images, factor)


def adjust_sharpness(images: Images, factor: PerImage) -> Images:
    """Blend with the smoothed image: smoothed at 0, sharpened above 1."""
    return blend(smooth(images), images, factor)


def adjust_hue(images: Images, shift: PerImage) -> Images:
    """Rotate the hue by `shift` of the circle, keeping HSV's saturation and value. Gray images are unchanged."""
    if images.shape[-1] == 1:
        return images
    value, lowest = images.max(-1), images.min(-1)
    chroma = value - lowest
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    inverse = 1 / jnp.maximum(chroma, 1e-6)
    # In sixths of the circle: 0 red, 2 green, 4 blue.
    hue = jnp.where(
        value == red,
        (green - blue) * inverse,
        jnp.where(value == green, 2 + (blue - red) * inverse, 4 + (red - green) * inverse),
    )
    hue = hue + 6 * jnp.reshape(shift, (-1, 1, 1))
    # A channel is lowest within a sixth of the circle around the opposite hue, and equals the value around its own.
    distance = lambda n: (n + hue) - 6 * jnp.floor((n + hue) * (1 / 6))
    channel = lambda k: value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
    return jnp.stack([channel(distance(n)) for n in (5, 3, 1)], -1)


def solarized(images: Images, threshold: PerImage) -> Images:
    """Invert levels at or above `threshold`: nothing at 256, everything at 0."""
    return solarize_levels(images, expand(threshold))


def posterized(images: Images, bits: PerImage) -> Images:
    """Round to whole levels and keep the highest `bits` (0 to 8)."""
    return posterize_levels(jnp.round(images), expand(bits))


def equalized(images: Images) -> Images:
    """Equalize the histogram of each channel."""
    levels = whole_levels(images)
    return lookup(levels, equalize_table(histogram(levels)))


def autocontrasted(images: Images) -> Images:
    """Stretch each channel linearly to the full range; a channel with one level is unchanged."""
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    return jnp.where(high > low, (images - low) * (255 / jnp.maximum(high - low, 1e-6)), images)


def inverted(images: Images) -> Images:
    """Invert all levels."""
    return 255 - images


# Sampled from a key. `limit`: a factor from [max(0, 1 - limit), 1 + limit]; `probability`: of being applied.


def jitter_factors(key: Array, batch: int, limit: float) -> PerImage:
    """Sample factors for a limit as torchvision's ColorJitter does."""
    return uniform(key, batch, max(0.0, 1 - limit), 1 + limit)


def bernoulli_mask(key: Array, images: Images, probability: float) -> Bool[Array, "batch 1 1 1"]:
    """Sample the images that an operation is applied to."""
    return expand(uniform(key, images.shape[0], 0.0, 1.0) < probability)


def brightness(key: Array, images: Images, *, limit: float) -> Images:
    """Apply Pillow's ImageEnhance.Brightness with a factor sampled as in torchvision's ColorJitter."""
    return adjust_brightness(images, jitter_factors(key, images.shape[0], limit))


def contrast(key: Array, images: Images, *, limit: float) -> Images:
    """Apply Pillow's ImageEnhance.Contrast with a factor sampled as in torchvision's ColorJitter."""
    return adjust_contrast(images, jitter_factors(key, images.shape[0], limit))


def saturation(key: Array, images: Images, *, limit: float) -> Images:
    """Apply Pillow's ImageEnhance.Color with a factor sampled as in torchvision's ColorJitter."""
    return adjust_saturation(images, jitter_factors(key, images.shape[0], limit))


def sharpness(key: Array, images: Images, *, limit: float) -> Images:
    """Apply Pillow's ImageEnhance.Sharpness, as in AutoAugment (arXiv 1805.09501, table 6); factor as above."""
    return adjust_sharpness(images, jitter_factors(key, images.shape[0], limit))


def hue(key: Array, images: Images, *, limit: float) -> Images:
    """Rotate the hue by a share of the circle from [-limit, limit], at most 0.5, as in torchvision's ColorJitter."""
    return adjust_hue(images, uniform(key, images.shape[0], -limit, limit))


def color_jitter(
    key: Array,
    images: Images,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> Images:
    """Apply torchvision's ColorJitter: factors from [max(0, 1 - limit), 1 + limit], a hue shift from [-hue, hue].

    Brightness, contrast and saturation are applied in an order sampled for each image. Hue comes last; torchvision
    also puts it in a random position, which would cost a color conversion at each position.
    """
    batch = images.shape[0]
    order_key, *factor_keys, hue_key = jax.random.split(key, 5)
    limits = (brightness, contrast, saturation)
    if any(limits):
        strength = jnp.stack([jitter_factors(k, batch, limit) for k, limit in zip(factor_keys, limits)], -1)
        order = jax.vmap(lambda k: jax.random.permutation(k, 3))(geometry.example_keys(order_key, batch))
        strength = jnp.take_along_axis(strength, order, -1)
        for position in range(3):
            # The degenerate image is black, the mean of the gray image, or the gray image.
            which, gray = expand(order[:, position]), gray_levels(images)
            mean = jnp.round(gray.mean((1, 2, 3), keepdims=True))
            degenerate = jnp.where(which == 0, 0.0, jnp.where(which == 1, mean, gray))
            images = blend(degenerate, images, strength[:, position])
    return adjust_hue(images, uniform(hue_key, batch, -hue, hue)) if hue else images


def grayscale(key: Array, images: Images, *, probability: float) -> Images:
    """Convert to gray (Pillow's mode L) in all channels, as in SimCLR (arXiv 2002.05709, appendix A)."""
    return jnp.where(bernoulli_mask(key, images, probability), gray_levels(images), images)


def solarize(key: Array, images: Images, *, threshold: float, probability: float) -> Images:
    """Apply Pillow's ImageOps.solarize (AutoAugment, arXiv 1805.09501, table 6; BYOL, 2006.07733, appendix B)."""
    return jnp.where(bernoulli_mask(key, images, probability), solarize_levels(images, jnp.float32(threshold)), images)


def posterize(key: Array, images: Images, *, bits: int, probability: float) -> Images:
    """Apply Pillow's ImageOps.posterize, as in AutoAugment (arXiv 1805.09501, table 6)."""
    reduced = posterize_levels(jnp.round(images), jnp.float32(bits))
    return jnp.where(bernoulli_mask(key, images, probability), reduced, images)


def equalize(key: Array, images: Images, *, probability: float) -> Images:
    """Apply Pillow's ImageOps.equalize, as in AutoAugment (arXiv 1805.09501, table 6)."""
    return jnp.where(bernoulli_mask(key, images, probability), equalized(images), images)


def autocontrast(key: Array, images: Images, *, probability: float) -> Images:
    """Apply Pillow's ImageOps.autocontrast, as in AutoAugment (arXiv 1805.09501, table 6)."""
    return jnp.where(bernoulli_mask(key, images, probability), autocontrasted(images), images)


def invert(key: Array, images: Images, *, probability: float) -> Images:
    """Apply Pillow's ImageOps.invert, as in AutoAugment (arXiv 1805.09501, table 6)."""
    return jnp.where(bernoulli_mask(key, images, probability), inverted(images), images)
