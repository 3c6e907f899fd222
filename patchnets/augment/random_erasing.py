"""Random erasing on the device (arXiv 1708.04896)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from patchnets.augment.geometry import MAX_ATTEMPTS, example_keys, sample_boxes
from patchnets.errors import UserError

MODES = ("constant", "random", "pixel")


def random_erasing(
    key: Key[Array, ""],
    images: Float[Array, "batch height width channels"],
    *,
    probability: float,
    mode: str = "constant",
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 10 / 3),
) -> Float[Array, "batch height width channels"]:
    """Erase a rectangle of each image with probability `probability`.

    Its share of the area is uniform in `area`, its ratio of width to height log-uniform in `aspect`, and its position
    uniform. If none of ten attempts fits into the image, nothing is erased. Defaults are timm's.

    Args:
      key: key of the batch.
      images: normalized images.
      probability: probability of erasing a rectangle of an image.
      mode: fill of the rectangle: "constant" (0, the mean), "random" (one color) or "pixel" (noise); the last two are
        standard normal.
      area: least and greatest share of the area.
      aspect: least and greatest ratio of width to height.

    Raises:
      UserError: unknown `mode`.
    """
    if mode not in MODES:
        raise UserError(f"random_erasing_mode={mode!r} is unknown; use one of {', '.join(MODES)}")
    batch, height, width, channels = images.shape
    keys = jax.vmap(jax.random.split)(example_keys(key, batch))
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (2 * MAX_ATTEMPTS + 3,)))(keys[:, 0])
    largest = (height - 1, width - 1)  # never a full side, as in timm
    corner, size, fits = sample_boxes(drawn[:, 1:], (height, width), largest, area, aspect)
    erased = fits & (drawn[:, 0] < probability)

    def covered(axis: int, length: int) -> Array:
        offset = jnp.arange(length) - corner[:, axis, None]
        return (offset >= 0) & (offset < size[:, axis, None])

    inside = covered(0, height)[:, :, None] & covered(1, width)[:, None, :] & erased[:, None, None]
    filling: Array | float = 0.0
    if mode != "constant":
        shape = (height, width, channels) if mode == "pixel" else (1, 1, channels)
        filling = jax.vmap(lambda key: jax.random.normal(key, shape))(keys[:, 1])
    return jnp.where(inside[..., None], filling, images)
