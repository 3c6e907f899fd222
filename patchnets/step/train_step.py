"""The training step and the evaluation step: pure functions, compiled in one place, several steps a dispatch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from patchnets import prng
from patchnets.data.loader import Batch
from patchnets.parallel import mesh as mesh_lib
from patchnets.parallel import sharding
from patchnets.step.gradients import Aux, Inputs, accumulate_grads, per_device_microbatch_grads, sharpness_aware
from patchnets.step.losses import smooth_one_hot, softmax_cross_entropy
from patchnets.step.metrics import EvalMetrics, TrainMetrics, top_k_correct
from patchnets.step.train_state import TrainState

Mix = Callable[..., tuple[Array, Array]]  # (key, images, targets, mask=) -> images and targets; augment/mixup.py
Erase = Callable[[Array, Array], Array]  # (key, images) -> images; augment/random_erasing.py


@dataclasses.dataclass(frozen=True)
class Task:
    """What stays the same from step to step.

    Attributes:
      preprocess: (uint8 images, key or None) -> float32 inputs; augment/preprocess.py.
      mix: mixup and CutMix of a batch; None for neither.
      erase: random erasing, after mixing; None for none.
      loss: of each example, from logits and soft targets; losses.py.
      grad_accum_steps: in how many parts a batch is worked through.
      num_microbatches: in how many groups each of which stays in a processor's cache (processors.py), over the devices
        of `mesh`.
      num_eval_microbatches: the same, in evaluation.
      sam_radius: of sharpness-aware minimization; None for the plain gradient.
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
    grad_accum_steps: int = 1
    num_microbatches: int = 1
    num_eval_microbatches: int = 1
    mesh: Mesh | None = None
    sam_radius: float | None = None
    frozen: Any = None
    ema_decay: float | None = None

    def key(self, purpose: prng.RngStream, step: Array) -> Array:
        return prng.key(self.seed, purpose, step)

    def inputs(self, batch: Batch, step: Array) -> Inputs:
        """The augmented images of a training step, and their targets."""
        images = self.preprocess(batch["image"], self.key(prng.RngStream.AUGMENT, step))
        targets = smooth_one_hot(batch["label"], self.model.num_classes, self.label_smoothing)
        if self.mix is not None:
            images, targets = self.mix(self.key(prng.RngStream.MIX, step), images, targets, mask=batch["mask"])
        if self.erase is not None:
            images = self.erase(self.key(prng.RngStream.ERASE, step), images)
        return Inputs(images, targets, batch["mask"])

    def sharded_loss(self, logits: Array, targets: Array) -> Array:
        """`loss`, of logits that stay split by examples, where the head's parameters are split by classes."""
        return self.loss(logits if self.mesh is None else sharding.shard_batch(logits, self.mesh), targets)

    def compute_grads(self, state: TrainState, inputs: Inputs) -> tuple[Any, Aux]:
        """The gradient of the mean loss over the examples that are not masked out."""
        dropout_key = self.key(prng.RngStream.DROPOUT, state.step)

        def at(params: Any) -> tuple[Any, Aux]:
            if self.num_microbatches > 1 and self.mesh is not None:
                grads, measured = per_device_microbatch_grads(
                    self.model,
                    self.loss,
                    params,
                    state.batch_stats,
                    inputs,
                    dropout_key,
                    self.num_microbatches,
                    self.mesh,
                )
            else:
                with sharding.constrain_activations_to_batch(self.mesh, len(inputs.mask) // self.grad_accum_steps):
                    grads, measured = accumulate_grads(
                        self.model,
                        self.sharded_loss,
                        params,
                        state.batch_stats,
                        inputs,
                        dropout_key,
                        self.grad_accum_steps,
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
    grads, seen = task.compute_grads(state, inputs)
    grad_norm = optax.global_norm(grads)
    updates, opt_state = task.optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda update: lr_scale * update, updates)
    params = optax.apply_updates(state.params, updates)
    averaged = {"params": params, "batch_stats": seen.batch_stats}
    labels = inputs.targets.argmax(axis=-1)  # of a mixed image, the class that it holds most of
    measured = TrainMetrics.single_from_model_output(
        loss=seen.losses,
        top1=top_k_correct(seen.logits, labels, 1),
        top5=top_k_correct(seen.logits, labels, 5),
        mask=inputs.mask,
        grad_norm=grad_norm,
    )
    next_state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=seen.batch_stats,
        ema=update_ema(state.ema, averaged, task.ema_decay, state.step) if task.ema_decay else state.ema,
        opt_state=opt_state,
        metrics=state.metrics.merge(measured),
    )
    finite = jnp.isfinite((seen.losses * inputs.mask).sum()) & jnp.isfinite(grad_norm)
    return next_state, finite


def update_ema(mean: Any, new: Any, decay: float, step: Int[Array, ""]) -> Any:
    """`new` taken into an exponential mean, whose decay grows from 0.1 as (1 + step) / (10 + step) up to `decay`, so
    that it soon forgets how the network was initialized (TensorFlow's ExponentialMovingAverage)."""
    decay_now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, x: decay_now * old + (1.0 - decay_now) * x, mean, new)


def eval_step(task: Task, state: TrainState, batch: Batch) -> EvalMetrics:
    """Metrics of one batch, without anything random or smoothed; by the running mean where there is one."""
    logits = eval_logits(task, state.eval_variables, batch["image"])
    return EvalMetrics.single_from_model_output(
        loss=task.loss(logits, smooth_one_hot(batch["label"], logits.shape[-1])),
        top1=top_k_correct(logits, batch["label"], 1),
        top5=top_k_correct(logits, batch["label"], 5),
        mask=batch["mask"],
    )


def eval_logits(
    task: Task, variables: Any, images: Shaped[Array, "batch height width channels"]
) -> Float[Array, "batch classes"]:
    """Of stored images, by the network as it is evaluated: at once, or group after group on each device."""

    def logits_of(variables: Any, images: Array) -> Array:
        return jnp.asarray(task.model.apply(variables, task.preprocess(images), train=False))

    if task.num_eval_microbatches == 1 or task.mesh is None:
        with sharding.constrain_activations_to_batch(task.mesh, len(images)):
            logits = logits_of(variables, images)
        return logits if task.mesh is None else sharding.shard_batch(logits, task.mesh)
    here, whole, batch = (
        task.num_eval_microbatches // task.mesh.size,
        PartitionSpec(),
        PartitionSpec(mesh_lib.BATCH_AXES),
    )

    def of_device(variables: Any, held: Array) -> Array:
        logits = jax.lax.map(lambda group: logits_of(variables, group), held.reshape(here, -1, *held.shape[1:]))
        return logits.reshape(-1, logits.shape[-1])

    spread = jax.shard_map(of_device, mesh=task.mesh, in_specs=(whole, batch), out_specs=batch, check_vma=False)
    return spread(variables, images)
