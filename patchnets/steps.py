"""The training step and the evaluation step: pure functions, compiled in one place, several steps a dispatch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Int32, Shaped

from patchnets import keys, sharding
from patchnets.feeds import Batch
from patchnets.losses import (
    Inputs,
    Measured,
    accumulated_gradient,
    gradient_in_groups,
    sharpness_aware,
    smoothed,
    softmax_cross_entropy,
)
from patchnets.metrics import EvalMetrics, TrainMetrics, in_top_k
from patchnets.train_state import TrainState

# A feed's own: (operands, step) -> batch
BatchOf = Callable[[Any, Int[Array, ""]], Batch]
Mix = Callable[..., tuple[Array, Array]]  # (key, images, targets, mask=) -> images and targets; data/mixing.py
Erase = Callable[[Array, Array], Array]  # (key, images) -> images; data/erasing.py


@dataclasses.dataclass(frozen=True)
class Task:
    """What stays the same from step to step.

    Attributes:
      preprocess: (uint8 images, key or None) -> float32 inputs; data/preprocess.py.
      mix: mixup and CutMix of a batch; None for neither.
      erase: random erasing, after mixing; None for none.
      loss: of each example, from logits and soft targets; losses.py.
      accumulate: in how many parts a batch is worked through.
      groups: in how many groups each of which stays in a processor's cache (processors.py), over the devices of `mesh`.
      eval_groups: the same, in evaluation.
      sam_radius: of sharpness-aware minimisation; None for the plain gradient.
      frozen: tree of those parameters that stay as they are, and whose gradient is not asked for; None for none.
      ema_decay: of the running mean of the parameters by which the network is evaluated; None for none.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    preprocess: Callable[..., Array]
    seed: int
    label_smoothing: float = 0.0
    mix: Mix | None = None
    erase: Erase | None = None
    loss: Callable[..., Array] = softmax_cross_entropy
    accumulate: int = 1
    groups: int = 1
    eval_groups: int = 1
    mesh: Mesh | None = None
    sam_radius: float | None = None
    frozen: Any = None
    ema_decay: float | None = None

    def key(self, purpose: keys.Purpose, step: Array) -> Array:
        return keys.key(self.seed, purpose, step)

    def inputs(self, batch: Batch, step: Array) -> Inputs:
        """The augmented images of a training step, and their targets."""
        images = self.preprocess(batch["image"], self.key(keys.Purpose.AUGMENT, step))
        targets = smoothed(batch["label"], self.model.num_classes, self.label_smoothing)
        if self.mix is not None:
            images, targets = self.mix(self.key(keys.Purpose.MIX, step), images, targets, mask=batch["mask"])
        if self.erase is not None:
            images = self.erase(self.key(keys.Purpose.ERASE, step), images)
        return Inputs(images, targets, batch["mask"])

    def loss_of_split(self, logits: Array, targets: Array) -> Array:
        """`loss`, of logits that stay split by examples, where the head's parameters are split by classes."""
        return self.loss(logits if self.mesh is None else sharding.shard_batch(logits, self.mesh), targets)

    def gradient(self, state: TrainState, inputs: Inputs) -> tuple[Any, Measured]:
        """The gradient of the mean loss over the examples that are not masked out."""
        dropout_key = self.key(keys.Purpose.DROPOUT, state.step)

        def at(params: Any) -> tuple[Any, Measured]:
            if self.groups > 1 and self.mesh is not None:
                grads, measured = gradient_in_groups(
                    self.model, self.loss, params, state.batch_stats, inputs, dropout_key, self.groups, self.mesh
                )
            else:
                with sharding.layers_split_by_examples(self.mesh, len(inputs.mask) // self.accumulate):
                    grads, measured = accumulated_gradient(
                        self.model, self.loss_of_split, params, state.batch_stats, inputs, dropout_key, self.accumulate
                    )
            if self.frozen is not None:
                grads = jax.tree.map(lambda grad, stays: jnp.zeros_like(grad) if stays else grad, grads, self.frozen)
            return grads, measured

        return at(state.params) if self.sam_radius is None else sharpness_aware(at, state.params, self.sam_radius)


def train_step(
    task: Task, state: TrainState, batch: Batch, lr_scale: float | Float[Array, ""] = 1.0
) -> tuple[TrainState, Bool[Array, ""]]:
    """One step of gradient descent on the mean loss over the examples that are not masked out.

    `lr_scale` multiplies the scheduled learning rate.

    Returns:
      The next state, and whether loss and gradient were finite.
    """
    inputs = task.inputs(batch, state.step)
    grads, seen = task.gradient(state, inputs)
    grad_norm = optax.global_norm(grads)
    updates, opt_state = task.optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda update: lr_scale * update, updates)
    params = optax.apply_updates(state.params, updates)
    averaged = {"params": params, "batch_stats": seen.batch_stats}
    labels = inputs.targets.argmax(axis=-1)  # of a mixed image, the class that it holds most of
    measured = TrainMetrics.single_from_model_output(
        loss=seen.losses,
        top1=in_top_k(seen.logits, labels, 1),
        top5=in_top_k(seen.logits, labels, 5),
        mask=inputs.mask,
        grad_norm=grad_norm,
    )
    next_state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=seen.batch_stats,
        ema=running_mean(state.ema, averaged, task.ema_decay, state.step) if task.ema_decay else state.ema,
        opt_state=opt_state,
        metrics=state.metrics.merge(measured),
    )
    finite = jnp.isfinite((seen.losses * inputs.mask).sum()) & jnp.isfinite(grad_norm)
    return next_state, finite


def running_mean(mean: Any, new: Any, decay: float, step: Int[Array, ""]) -> Any:
    """`new` taken into an exponential mean, whose decay grows from 0.1 as (1 + step) / (10 + step) up to `decay`, so
    that it soon forgets how the network was initialised (TensorFlow's ExponentialMovingAverage)."""
    decay_now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, x: decay_now * old + (1.0 - decay_now) * x, mean, new)


def eval_step(task: Task, state: TrainState, batch: Batch) -> EvalMetrics:
    """Metrics of one batch, without anything random or smoothed; by the running mean where there is one."""
    logits = eval_logits(task, state.evaluated, batch["image"])
    return EvalMetrics.single_from_model_output(
        loss=task.loss(logits, smoothed(batch["label"], logits.shape[-1])),
        top1=in_top_k(logits, batch["label"], 1),
        top5=in_top_k(logits, batch["label"], 5),
        mask=batch["mask"],
    )


def eval_logits(
    task: Task, variables: Any, images: Shaped[Array, "batch height width channels"]
) -> Float[Array, "batch classes"]:
    """Of stored images, by the network as it is evaluated: at once, or group after group on each device."""

    def logits_of(variables: Any, images: Array) -> Array:
        return jnp.asarray(task.model.apply(variables, task.preprocess(images), train=False))

    if task.eval_groups == 1 or task.mesh is None:
        with sharding.layers_split_by_examples(task.mesh, len(images)):
            logits = logits_of(variables, images)
        return logits if task.mesh is None else sharding.shard_batch(logits, task.mesh)
    here, whole, batch = task.eval_groups // task.mesh.size, PartitionSpec(), PartitionSpec(sharding.BATCH_AXES)

    def of_device(variables: Any, held: Array) -> Array:
        logits = jax.lax.map(lambda group: logits_of(variables, group), held.reshape(here, -1, *held.shape[1:]))
        return logits.reshape(-1, logits.shape[-1])

    spread = jax.shard_map(of_device, mesh=task.mesh, in_specs=(whole, batch), out_specs=batch, check_vma=False)
    return spread(variables, images)


def compile_train_steps(
    task: Task, batch_of: BatchOf, mesh: Mesh, where: Any = None
) -> Callable[[TrainState, Any, int, float], tuple[TrainState, Bool[Array, ""], Float[Array, ""]]]:
    """(state, operands, count, lr_scale) -> (state, finite, norm of the parameters), by `count` steps in one dispatch.

    The state lives on the devices as `where` has it (sharding.state_sharding; None: whole on each), and comes back so.
    Its buffers are donated. It stops right after a step whose loss or gradient is not finite. The number of
    steps is an argument of one compiled program, not part of it, so that however a run is cut into dispatches, by
    signals, evaluations or a restart, every step is computed by the same instructions: continuing is bit-exact.
    """

    where = sharding.replicated(mesh) if where is None else where

    def train_steps(
        state: TrainState, operands: Any, count: Int32[Array, ""], lr_scale: Float[Array, ""]
    ) -> tuple[TrainState, Array, Array]:
        last = state.step + count

        def go_on(carry: tuple[TrainState, Array]) -> Array:
            state, finite = carry
            return (state.step < last) & finite

        def one(carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            state, finite = train_step(task, carry[0], batch_of(operands, carry[0].step), lr_scale)
            return jax.lax.with_sharding_constraint(state, where), finite

        state, finite = jax.lax.while_loop(go_on, one, (state, jnp.array(True)))
        return state, finite, optax.global_norm(state.params)

    whole = sharding.replicated(mesh)
    return jax.jit(
        train_steps,
        donate_argnums=0,
        in_shardings=(where, None, whole, whole),
        out_shardings=(where, whole, whole),
    )


def compile_eval_steps(
    task: Task, batch_of: BatchOf, mesh: Mesh, where: Any = None
) -> Callable[[TrainState, EvalMetrics, Any, int, int], EvalMetrics]:
    """(state, metrics, operands, first step, count) -> metrics with those of `count` batches merged in.

    `where` the state lives: as in `compile_train_steps`."""

    def eval_steps(
        state: TrainState, metrics: EvalMetrics, operands: Any, first: Int32[Array, ""], count: Int32[Array, ""]
    ) -> EvalMetrics:
        def one(i: Array, metrics: EvalMetrics) -> EvalMetrics:
            return metrics.merge(eval_step(task, state, batch_of(operands, i)))

        return jax.lax.fori_loop(first, first + count, one, metrics)

    whole = sharding.replicated(mesh)
    where = whole if where is None else where
    return jax.jit(eval_steps, in_shardings=(where, whole, None, whole, whole), out_shardings=whole)
