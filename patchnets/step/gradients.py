"""Wrappers of a grad_fn: gradient accumulation, sharpness-aware minimization, frozen parameters.

A grad_fn is `jax.value_and_grad(loss_fn, has_aux=True)` of the training step (parallel/grad_fn.py). Each wrapper
returns a function of the same signature, so that they compose.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from patchnets.parallel.grad_fn import Aux, GradFn, Inputs, count_valid, mean_loss, scan_microbatches


def accumulate_grads(grad_fn: GradFn, n: int) -> GradFn:
    """Accumulate gradients over `n` sequential microbatches, with the memory of one.

    The gradient is that of the whole batch if the network treats examples independently. BatchNorm normalizes each
    microbatch separately, and dropout draws one mask per microbatch. Microbatch j holds the examples j, j + n, ..., so
    that every device holds an equal share of it.
    """
    if n == 1:
        return grad_fn

    def accumulated(
        params: Any, batch_stats: Any, inputs: Inputs, dropout_key: Array, num_valid: Array | None = None
    ) -> tuple[tuple[Array, Aux], Any]:
        num_valid = count_valid(inputs.mask) if num_valid is None else num_valid
        microbatches = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, n, *x.shape[1:]), 1, 0), inputs)
        keys = jax.vmap(lambda i: jax.random.fold_in(dropout_key, i))(jnp.arange(n))
        grads, aux = scan_microbatches(grad_fn, params, batch_stats, microbatches, keys, num_valid)
        losses, logits = (jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]) for x in (aux.losses, aux.logits))
        return (mean_loss(losses, inputs.mask, num_valid), Aux(losses, logits, aux.batch_stats)), grads

    return accumulated


def sharpness_aware(grad_fn: GradFn, rho: float) -> GradFn:
    """Take the gradient at the point of highest loss, to first order, within 2-norm distance `rho` of the parameters
    (SAM, arXiv 2010.01412, algorithm 1). Loss and aux are those at the parameters."""

    def sharpness_aware_grads(params: Any, *args: Any) -> tuple[tuple[Array, Aux], Any]:
        (loss, aux), grads = grad_fn(params, *args)
        scale = rho / jnp.maximum(optax.global_norm(grads), 1e-12)
        _, grads = grad_fn(jax.tree.map(lambda p, g: p + scale * g, params, grads), *args)
        return (loss, aux), grads

    return sharpness_aware_grads


def zero_frozen_grads(grad_fn: GradFn, frozen: Any) -> GradFn:
    """Set the gradients of frozen parameters to zero; `frozen` is a tree of booleans like the parameters."""

    def unfrozen_grads(params: Any, *args: Any) -> tuple[tuple[Array, Aux], Any]:
        value, grads = grad_fn(params, *args)
        return value, jax.tree.map(lambda grad, freeze: jnp.zeros_like(grad) if freeze else grad, grads, frozen)

    return unfrozen_grads
