"""What a prediction rests on: maps over the pixels of an image.

Attention rollout follows attention through the blocks of a ViT (Abnar and Zuidema 2020, arXiv 2005.00928, section 3.2).
SmoothGrad averages the gradient of a class's logit over noisy copies of the image (Smilkov et al. 2017, arXiv
1706.03825, section 2), for any network. Neither proves what a network looks at; both show where to look first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from patchnets import prng
from patchnets.models.intermediates import capture_intermediates

# Of SmoothGrad. The paper recommends noise of 10 to 20 % of an image's range (section 3.2); more than 50 samples show
# little more.
SAMPLES = 50
NOISE = 0.15
SEED = 0
CAP = 99.0  # percentile of a map that becomes 1, for a few pixels have far larger gradients (section 3.1)


def rollout_maps(
    network: nn.Module,
    variables: Mapping[str, Any],
    inputs: Float[Array, "batch size size channels"],
    classes: Int[Array, " batch"],
) -> Float[Array, "batch size size"]:
    """Return how much of each patch reaches the head by attention, from 0 to 1, enlarged to pixels (bilinear).

    It reaches the head by the class token, by the mean over tokens, or by attention pooling, as the network has it.
    """
    del classes  # attention is the same for all of them
    captured = capture_intermediates(network, variables, inputs)
    blocks = sum(name.endswith("/mixing") for name in captured)
    joint = attention_rollout([captured[f"block_{i}/mixing"] for i in range(blocks)])
    patches = captured["stem"].shape[1]
    if "pooling" in captured:
        shares = (captured["pooling"].astype(jnp.float32).mean(axis=1) @ joint)[:, 0]
    elif joint.shape[1] > patches:  # a class token precedes them
        shares = joint[:, 0]
    else:
        shares = joint.mean(axis=1)
    rows = round(patches**0.5)  # images are squares
    grid = shares[:, -patches:].reshape(-1, rows, rows)
    return to_unit_range(jax.image.resize(grid, (len(grid), *inputs.shape[1:3]), "bilinear"))


def attention_rollout(
    attention: Sequence[Float[Array, "batch heads tokens tokens"]],
) -> Float[Array, "batch tokens tokens"]:
    """Return the share of each input token in each output token: the product of (A + I) / 2 over the blocks, the last
    one first, A being a block's attention weights averaged over heads (equation 1 and section 3.2)."""
    identity = jnp.eye(attention[0].shape[-1])
    joint = identity
    for weights in attention:
        joint = (weights.astype(jnp.float32).mean(axis=1) + identity) / 2 @ joint
    return jnp.broadcast_to(joint, (len(attention[0]), *identity.shape))


def smoothgrad_maps(
    network: nn.Module,
    variables: Mapping[str, Any],
    inputs: Float[Array, "batch size size channels"],
    classes: Int[Array, " batch"],
) -> Float[Array, "batch size size"]:
    """Return the sum over channels of the absolute gradients of SmoothGrad, from 0 to 1."""
    logits_fn = lambda images: jnp.asarray(network.apply(variables, images, train=False))
    grads = smoothgrad(logits_fn, inputs, classes, prng.key(SEED, prng.RngStream.EXPLAIN))
    return to_unit_range(jnp.abs(grads).sum(axis=-1), CAP)


def smoothgrad(
    logits_fn: Callable[[Array], Array],
    inputs: Float[Array, "batch size size channels"],
    classes: Int[Array, " batch"],
    key: Array,
    *,
    samples: int = SAMPLES,
    noise: float = NOISE,
) -> Float[Array, "batch size size channels"]:
    """Return the gradients of the logits of `classes` with respect to the inputs, averaged over noisy inputs.

    Args:
      logits_fn: inputs -> logits (batch, classes), each image by itself.
      inputs: images as the network gets them.
      classes: for each image, the class whose logit is differentiated.
      key: of the noise, which is the same for every image, so that a map does not depend on the rest of the batch.
      samples: noisy copies of each image.
      noise: standard deviation of the noise, as a share of an image's largest minus its smallest value.
    """
    span = inputs.max(axis=(1, 2, 3), keepdims=True) - inputs.min(axis=(1, 2, 3), keepdims=True)

    def scores(images: Array) -> Array:
        return jnp.take_along_axis(logits_fn(images).astype(jnp.float32), classes[:, None], axis=1).sum()

    def add_sample(total: Array, key: Array) -> tuple[Array, None]:
        noisy = inputs + noise * span * jax.random.normal(key, inputs.shape[1:])
        return total + jax.grad(scores)(noisy), None

    total, _ = jax.lax.scan(add_sample, jnp.zeros_like(inputs), jax.random.split(key, samples))
    return total / samples


def to_unit_range(maps: Float[Array, "batch height width"], cap: float = 100.0) -> Float[Array, "batch height width"]:
    """Return each map from its least value, 0, to its percentile `cap`, 1; a constant one becomes 0.

    Where that percentile is the least value itself, the largest takes its place.
    """
    low, top = (f(maps, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    high = jnp.percentile(maps, cap, axis=(1, 2), keepdims=True)
    high = jnp.where(high > low, high, top)
    return jnp.clip((maps - low) / jnp.where(high > low, high - low, 1.0), 0.0, 1.0)


METHODS = {"rollout": rollout_maps, "smoothgrad": smoothgrad_maps}
