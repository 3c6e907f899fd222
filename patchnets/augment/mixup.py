"""Mixing the examples of a batch with each other, on the device: mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899).

The partner of an example is the one at its place in the reversed batch. Both write an image as
weight * image + (1 - weight) * partner: mixup with one weight for all of its pixels, CutMix with 0 in a box and 1
elsewhere. Targets are mixed with the mean weight of the pixels, so that their sums stay.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from patchnets.augment.geometry import example_keys
from patchnets.errors import UserError

Images = Float[Array, "batch height width channels"]
Targets = Float[Array, "batch classes"]
MODES = ("batch", "example")


def beta_weight(uniform: Float[Array, "*shape 2"], alpha: float) -> Float[Array, "*shape"]:
    """Beta(alpha, alpha) from two numbers each that are uniform in [0, 1), without rejection.

    T / sqrt(2 alpha + T^2) of Student's t with 2 alpha degrees of freedom is 2 Beta - 1, and t comes from a point in a
    circle as normal numbers do (Bailey, Polar generation of random variates with the t-distribution, 1994).
    """
    power = uniform[..., 0] ** (1 / alpha)
    cosine = jnp.cos(2 * jnp.pi * uniform[..., 1])
    return 0.5 + 0.5 * cosine / jnp.sqrt(power / (1 - power) + cosine**2)


def mixup(
    key: Key[Array, ""], images: Images, targets: Targets, *, alpha: float, mode: str = "batch"
) -> tuple[Images, Targets]:
    """Images and targets averaged with their partners', with a weight from Beta(alpha, alpha).

    Args:
      key: of the batch.
      images: prepared.
      targets: probabilities, label smoothing included.
      alpha: above 0.
      mode: one weight for the "batch", or one for each "example".
    """
    return mix(key, images, targets, mixup=alpha, cutmix=0.0, mode=mode)


def cutmix(
    key: Key[Array, ""], images: Images, targets: Targets, *, alpha: float, mode: str = "batch"
) -> tuple[Images, Targets]:
    """A box of the partner pasted into each image; arguments as for `mixup`.

    The box has the shape of the image and a share of its area from Beta(alpha, alpha). Its center is uniform, and what
    lies outside the image is cut off; targets are mixed by the share of pixels that were pasted.
    """
    return mix(key, images, targets, mixup=0.0, cutmix=alpha, mode=mode)


def mix(
    key: Key[Array, ""],
    images: Images,
    targets: Targets,
    *,
    mixup: float,
    cutmix: float,
    switch: float = 0.5,
    probability: float = 1.0,
    mode: str = "batch",
    mask: Float[Array, " batch"] | None = None,
) -> tuple[Images, Targets]:
    """Each batch, or example, mixed by mixup or by CutMix, or left as it is.

    Args:
      key: of the batch.
      images: prepared.
      targets: probabilities, label smoothing included.
      mixup: alpha of mixup's weights; 0 for none.
      cutmix: alpha of CutMix's; 0 for none.
      switch: where both are on, the probability of CutMix.
      probability: that anything is mixed.
      mode: everything is drawn once a "batch", or for each "example".
      mask: 0 for examples that do not count, such as records that could not be read: nothing is mixed with them.

    Raises:
      UserError: `mode` is neither.
    """
    if mode not in MODES:
        raise UserError(f"mixing per {mode!r}: there is no such thing; use {' or '.join(MODES)}")
    if mixup <= 0 and cutmix <= 0:
        return images, targets
    batch, height, width, _ = images.shape
    keys = example_keys(key, batch) if mode == "example" else key[None]
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (6,)))(keys)
    mixed, cut = drawn[:, 0] < probability, drawn[:, 1] < (switch if mixup > 0 else 1.0)
    weights = jnp.ones((len(keys), height, width))
    if mixup > 0:
        weights *= beta_weight(drawn[:, 2:4], mixup)[:, None, None]
    if cutmix > 0:
        kept = beta_weight(drawn[:, 2:4], cutmix)
        outside = 1.0 - box(1 - kept, drawn[:, 4:], height, width)
        weights = jnp.where(cut[:, None, None], outside, weights)
    if mask is not None:
        mixed = mixed & (mask[::-1] > 0)
    weights = jnp.where(mixed[:, None, None], weights, 1.0)
    share, weights = weights.mean((1, 2))[:, None], weights[..., None]
    return (
        weights * images + (1 - weights) * images[::-1],
        share * targets + (1 - share) * targets[::-1],
    )


def box(
    share: Float[Array, " n"], center: Float[Array, "n 2"], height: int, width: int
) -> Float[Array, "n height width"]:
    """1 in a box of this share of the area and of the image's shape, else 0; `center` is uniform in [0, 1).

    Sides are cut down to whole pixels, and halves of them too, as in the published code.
    """

    def covered(axis: int, size: int) -> Array:
        half = jnp.floor(jnp.floor(size * jnp.sqrt(share)) / 2)
        place = jnp.arange(size) - jnp.floor(center[:, axis] * size)[:, None]
        return (place >= -half[:, None]) & (place < half[:, None])

    inside = covered(0, height)[:, :, None] & covered(1, width)[:, None, :]
    return inside.astype(jnp.float32)
