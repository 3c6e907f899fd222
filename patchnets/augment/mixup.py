"""Mix the examples of a batch on the device: mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899).

The partner of an example is the one at its position in the reversed batch. Both compute
weight * image + (1 - weight) * partner: mixup with one weight for all pixels, CutMix with 0 inside a box and 1 outside.
Targets are mixed with the mean weight of the pixels, which keeps their sums.

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
    """Sample Beta(alpha, alpha) from two uniform numbers in [0, 1), without rejection.

    For T of Student's t distribution with 2 alpha degrees of freedom, T / sqrt(2 alpha + T^2) is 2 Beta - 1; T is
    computed from a point in a circle, as normal numbers are (Bailey, Polar generation of random variates with the
    t-distribution, 1994).
    """
    power = uniform[..., 0] ** (1 / alpha)
    cosine = jnp.cos(2 * jnp.pi * uniform[..., 1])
    return 0.5 + 0.5 * cosine / jnp.sqrt(power / (1 - power) + cosine**2)


def mixup(
    key: Key[Array, ""], images: Images, targets: Targets, *, alpha: float, mode: str = "batch"
) -> tuple[Images, Targets]:
    """Average images and targets with their partners', with a weight from Beta(alpha, alpha).

    Args:
      key: key of the batch.
      images: preprocessed images.
      targets: class probabilities, after label smoothing.
      alpha: parameter of the Beta distribution, above 0.
      mode: "batch" for one weight per batch, "example" for one per example.
    """
    return mix(key, images, targets, mixup=alpha, cutmix=0.0, mode=mode)


def cutmix(
    key: Key[Array, ""], images: Images, targets: Targets, *, alpha: float, mode: str = "batch"
) -> tuple[Images, Targets]:
    """Paste a box of the partner into each image; arguments as for `mixup`.

    The box has the aspect ratio of the image and a share of its area from Beta(alpha, alpha). Its center is uniform,
    and it is clipped to the image; targets are mixed by the share of pasted pixels.
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
    """Mix each batch or example by mixup or CutMix, or leave it unchanged.

    Args:
      key: key of the batch.
      images: preprocessed images.
      targets: class probabilities, after label smoothing.
      mixup: alpha of mixup's weights; 0 disables it.
      cutmix: alpha of CutMix's weights; 0 disables it.
      switch: probability of CutMix if both are enabled.
      probability: probability of mixing at all.
      mode: sample everything once per "batch" or once per "example".
      mask: 0 for examples that do not count, such as unreadable records; nothing is mixed with them.

    Raises:
      UserError: unknown `mode`.

    """
    if mode not in MODES:
        raise UserError(f"mix_mode must be {' or '.join(map(repr, MODES))}, got {mode!r}")
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
    """Return 1 inside a box with a share `share` of the area and the image's aspect ratio, else 0.

    `center` is in [0, 1). Sides and their halves are rounded down to whole pixels, as in the published code.
    """

    def covered(axis: int, size: int) -> Array:
        half = jnp.floor(jnp.floor(size * jnp.sqrt(share)) / 2)
        offset = jnp.arange(size) - jnp.floor(center[:, axis] * size)[:, None]
        return (offset >= -half[:, None]) & (offset < half[:, None])

    inside = covered(0, height)[:, :, None] & covered(1, width)[:, None, :]
    return inside.astype(jnp.float32)
