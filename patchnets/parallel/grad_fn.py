"""Inputs and outputs of a grad_fn, and its gradient summed over microbatches with `lax.scan`.

A grad_fn is what `jax.value_and_grad(loss_fn, has_aux=True)` returns:

    (loss, aux), grads = grad_fn(params, batch_stats, inputs, dropout_key, num_valid)

The loss is the sum of losses divided by `num_valid`, by default the number of examples of `inputs` that are not masked
out. Microbatches are given the `num_valid` of their batch, so that their gradients add up to the gradient of the batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Inputs(NamedTuple):
    """A batch for the network and the loss. Examples with a `mask` of 0 do not count."""

    images: Float[Array, "batch height width channels"]
    targets: Float[Array, "batch classes"]
    mask: Float[Array, " batch"]


class Aux(NamedTuple):
    """Auxiliary outputs of the loss function."""

    losses: Float[Array, " batch"]
    logits: Float[Array, "batch classes"]
    batch_stats: Any


GradFn = Callable[..., tuple[tuple[Array, Aux], Any]]


def count_valid(mask: Float[Array, " batch"]) -> Float[Array, ""]:
    """Return the number of examples that are not masked out, at least 1 (no record of a batch may be readable)."""
    return jnp.maximum(mask.sum(), 1.0)


def mean_loss(losses: Float[Array, " batch"], mask: Float[Array, " batch"], num_valid: Array) -> Float[Array, ""]:
    """Return the sum of the losses that are not masked out, divided by `num_valid`."""
    return (losses * mask).sum() / num_valid


def scan_microbatches(
    grad_fn: GradFn, params: Any, batch_stats: Any, microbatches: Inputs, dropout_keys: Array, num_valid: Array
) -> tuple[Any, Aux]:
    """Return the sum of the gradients of all microbatches, and Aux with losses and logits stacked along a first axis.

    Args:
      microbatches: inputs stacked along a first axis.
      dropout_keys: one key per microbatch.
      num_valid: number of valid examples in the whole batch.
    """

    def step(carry: tuple[Any, Any], microbatch: tuple[Inputs, Array]) -> tuple[tuple[Any, Any], tuple[Array, Array]]:
        total, stats = carry
        (_, aux), grads = grad_fn(params, stats, *microbatch, num_valid)
        return (jax.tree.map(jnp.add, total, grads), aux.batch_stats), (aux.losses, aux.logits)

    zeros = jax.tree.map(jnp.zeros_like, params)
    (grads, stats), (losses, logits) = jax.lax.scan(step, (zeros, batch_stats), (microbatches, dropout_keys))
    return grads, Aux(losses, logits, stats)
