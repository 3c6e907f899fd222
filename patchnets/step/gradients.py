"""Wrappers round a grad_fn: gradient accumulation, sharpness-aware minimization, frozen parameters.

A grad_fn is `jax.value_and_grad(loss_fn, has_aux=True)` of the training step (parallel/microbatches.py), and each
wrapper returns another of the same signature, so that they compose.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from patchnets.parallel.microbatches import Aux, GradFn, Inputs, count_valid, mean_loss, scan_microbatches


def accumulate_grads(grad_fn: GradFn, n: int) -> GradFn:
    """Works a batch through in `n` microbatches, one after another, for the memory of one.

    The gradient is that of the whole batch, where the network treats examples apart. BatchNorm sees each microbatch by
    itself, and dropout draws a mask for each. Microbatch j holds the examples j, j + n, ...: a share of every device's.
    """
    if n == 1:
        return grad_fn

    def accumulated(
        params: Any, batch_stats: Any, inputs: Inputs, dropout_key: Array, num_valid: Array | None = None
    ) -> tuple[tuple[Array, Aux], Any]:
        num_valid = count_valid(inputs.mask) if num_valid is None else num_valid
        split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, n, *x.shape[1:]), 1, 0), inputs)
        keys = jax.vmap(lambda i: jax.random.fold_in(dropout_key, i))(jnp.arange(n))
        grads, aux = scan_microbatches(grad_fn, params, batch_stats, split, keys, num_valid)
        losses, logits = (jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]) for x in (aux.losses, aux.logits))
        return (mean_loss(losses, inputs.mask, num_valid), Aux(losses, logits, aux.batch_stats)), grads

    return accumulated


def sharpness_aware(grad_fn: GradFn, rho: float) -> GradFn:
    """Takes the gradient where, to first order, the loss is highest within `rho` of the parameters, by the 2-norm (SAM,
    arXiv 2010.01412, algorithm 1). Loss and aux are those of the pass at the parameters themselves."""

    def sharpness_aware_grads(params: Any, *args: Any) -> tuple[tuple[Array, Aux], Any]:
        (loss, aux), grads = grad_fn(params, *args)
        scale = rho / jnp.maximum(optax.global_norm(grads), 1e-12)
        _, grads = grad_fn(jax.tree.map(lambda p, g: p + scale * g, params, grads), *args)
        return (loss, aux), grads

    return sharpness_aware_grads


def zero_frozen_grads(grad_fn: GradFn, frozen: Any) -> GradFn:
    """Sets the gradients of frozen parameters to zero; `frozen` is a tree of booleans like the parameters."""

    def unfrozen_grads(params: Any, *args: Any) -> tuple[tuple[Array, Aux], Any]:
        value, grads = grad_fn(params, *args)
        return value, jax.tree.map(lambda grad, stays: jnp.zeros_like(grad) if stays else grad, grads, frozen)

    return unfrozen_grads
