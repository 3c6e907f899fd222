"""What a grad_fn takes and returns, and a batch worked through in parts, one after another.

A grad_fn is what `jax.value_and_grad(loss_fn, has_aux=True)` returns:

    (loss, aux), grads = grad_fn(params, batch_stats, inputs, dropout_key, num_valid)

`num_valid`, by default the number of examples of `inputs` that are not masked out, is what the losses' sum is divided
by: microbatches of one batch share that of the batch, so that their gradients add up to the batch's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Inputs(NamedTuple):
    """A batch as the network and the loss take it. Masked examples count for nothing."""

    images: Float[Array, "batch height width channels"]
    targets: Float[Array, "batch classes"]
    mask: Float[Array, " batch"]


class Aux(NamedTuple):
    """What a forward pass returns besides the loss."""

    losses: Float[Array, " batch"]
    logits: Float[Array, "batch classes"]
    batch_stats: Any


GradFn = Callable[..., tuple[tuple[Array, Aux], Any]]


def count_valid(mask: Float[Array, " batch"]) -> Float[Array, ""]:
    """The number of examples not masked out; 1 where there are none, as when no record of a batch could be read."""
    return jnp.maximum(mask.sum(), 1.0)


def mean_loss(losses: Float[Array, " batch"], mask: Float[Array, " batch"], num_valid: Array) -> Float[Array, ""]:
    """The sum of the losses not masked out, over `num_valid`."""
    return (losses * mask).sum() / num_valid


def scan_microbatches(
    grad_fn: GradFn, params: Any, batch_stats: Any, microbatches: Inputs, dropout_keys: Array, num_valid: Array
) -> tuple[Any, Aux]:
    """Returns the sum of the microbatches' gradients, and losses and logits with a first axis for the microbatches.

    Args:
      microbatches: with a first axis for the microbatches.
      dropout_keys: one for each microbatch.
      num_valid: of the whole batch.
    """

    def step(carry: tuple[Any, Any], microbatch: tuple[Inputs, Array]) -> tuple[tuple[Any, Any], tuple[Array, Array]]:
        total, stats = carry
        (_, aux), grads = grad_fn(params, stats, *microbatch, num_valid)
        return (jax.tree.map(jnp.add, total, grads), aux.batch_stats), (aux.losses, aux.logits)

    zeros = jax.tree.map(jnp.zeros_like, params)
    (grads, stats), (losses, logits) = jax.lax.scan(step, (zeros, batch_stats), (microbatches, dropout_keys))
    return grads, Aux(losses, logits, stats)
