"""Make what the compiled steps compute from plain arguments: `make_task`."""

import functools
from typing import Any

import flax.linen as nn
import optax
from jax.sharding import Mesh

from patchnets.augment import mixup, random_erasing
from patchnets.augment.preprocess import Augment, Preprocess
from patchnets.parallel import cpu, sharding
from patchnets.parallel.grad_fn import GradFn
from patchnets.step.gradients import accumulate_grads, sharpness_aware, zero_frozen_grads
from patchnets.step.losses import LOSSES
from patchnets.step.train_step import Erase, LogitsFn, Mix, Task


def make_task(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    *,
    mesh: Mesh,
    seed: int,
    loss: str,
    label_smoothing: float,
    augment: Augment,
    ema_decay: float | None,
    grad_accum_steps: int,
    frozen: Any,
    sam_rho: float | None,
    num_microbatches: int,
    num_eval_microbatches: int,
) -> Task:
    """Return what the compiled steps compute.

    Args:
      loss: softmax or sigmoid.
      frozen: tree like the parameters, true for those that are not trained; None if all are.
      num_microbatches, num_eval_microbatches: parts into which a CPU splits a batch of training and of evaluation.
    """
    loss_fn = LOSSES[loss]
    return Task(
        model,
        optimizer,
        preprocess,
        seed,
        label_smoothing=label_smoothing,
        mix=make_mix(augment),
        erase=make_erase(augment),
        loss=loss_fn if num_microbatches > 1 else sharding.batch_sharded_loss(loss_fn, mesh),
        ema_decay=ema_decay,
        wrap_grad_fn=functools.partial(
            wrap_grad_fn,
            mesh=mesh,
            num_microbatches=num_microbatches,
            grad_accum_steps=grad_accum_steps,
            frozen=frozen,
            sam_rho=sam_rho,
        ),
        wrap_logits_fn=functools.partial(wrap_logits_fn, mesh=mesh, num_microbatches=num_eval_microbatches),
    )


def wrap_grad_fn(
    grad_fn: GradFn,
    *,
    mesh: Mesh | None,
    num_microbatches: int = 1,
    grad_accum_steps: int = 1,
    frozen: Any = None,
    sam_rho: float | None = None,
) -> GradFn:
    """Wrap a training step's grad_fn for microbatches, accumulation, frozen parameters and SAM."""
    if mesh is not None and num_microbatches > 1:
        grad_fn = cpu.per_device_microbatch_grads(grad_fn, num_microbatches, mesh)
    else:
        grad_fn = grad_fn if mesh is None else sharding.batch_sharded_grads(grad_fn, mesh)
        grad_fn = accumulate_grads(grad_fn, grad_accum_steps)
    grad_fn = grad_fn if frozen is None else zero_frozen_grads(grad_fn, frozen)
    return grad_fn if sam_rho is None else sharpness_aware(grad_fn, sam_rho)


def wrap_logits_fn(logits_fn: LogitsFn, *, mesh: Mesh | None, num_microbatches: int) -> LogitsFn:
    """Wrap an evaluation step's logits_fn for microbatches and sharding."""
    if mesh is None:
        return logits_fn
    if num_microbatches > 1:
        return cpu.per_device_microbatch_logits(logits_fn, num_microbatches, mesh)
    return sharding.batch_sharded_logits(logits_fn, mesh)


def make_mix(augment: Augment) -> Mix | None:
    """Return the function that applies mixup and CutMix; None for neither."""
    if not augment.mixup and not augment.cutmix:
        return None
    return functools.partial(
        mixup.mix,
        mixup=augment.mixup,
        cutmix=augment.cutmix,
        switch=augment.mix_switch_prob,
        probability=augment.mix_prob,
        mode=augment.mix_mode,
    )


def make_erase(augment: Augment) -> Erase | None:
    """Return the function that applies random erasing; None without it."""
    probability, mode = augment.random_erasing_prob, augment.random_erasing_mode
    return functools.partial(random_erasing.random_erasing, probability=probability, mode=mode) if probability else None
