"""The training and evaluation step as pure functions. `multi_step.py` compiles them, several steps per dispatch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped

from patchnets import prng
from patchnets.data.loader import Batch
from patchnets.parallel.grad_fn import Aux, GradFn, Inputs, count_valid, mean_loss
from patchnets.step.losses import smooth_one_hot, softmax_cross_entropy
from patchnets.step.metrics import EvalMetrics, TrainMetrics, top_k_correct
from patchnets.step.train_state import TrainState

Mix = Callable[..., tuple[Array, Array]]  # (key, images, targets, mask=) -> images and targets; augment/mixup.py
Erase = Callable[[Array, Array], Array]  # (key, images) -> images; augment/random_erasing.py
LogitsFn = Callable[[Any, Array], Array]  # (variables, stored images) -> logits


@dataclasses.dataclass(frozen=True)
class Task:
    """Everything about training that is constant over steps.

    Attributes:
      preprocess: (stored images, key or None) -> float32 inputs; augment/preprocess.py.
      mix: mixup and CutMix of a batch, or None.
      erase: random erasing, applied after mixing, or None.
      loss: (logits, soft targets) -> loss of each example; losses.py.
      ema_decay: decay of the running mean that is evaluated; None to evaluate the parameters themselves.
      wrap_grad_fn: wraps `jax.value_and_grad(loss_fn, has_aux=True)`, for example to accumulate gradients
        (gradients.py), or None.
      wrap_logits_fn: wraps `logits_fn`, or None.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    preprocess: Callable[..., Array]
    seed: int
    label_smoothing: float = 0.0
    mix: Mix | None = None
    erase: Erase | None = None
    loss: Callable[..., Array] = softmax_cross_entropy
    ema_decay: float | None = None
    wrap_grad_fn: Callable[[GradFn], GradFn] | None = None
    wrap_logits_fn: Callable[[LogitsFn], LogitsFn] | None = None

    def key(self, stream: prng.RngStream, step: Array) -> Array:
        return prng.key(self.seed, stream, step)

    def inputs(self, batch: Batch, step: Array) -> Inputs:
        """Return the augmented images and soft targets of a training step."""
        images = self.preprocess(batch["image"], self.key(prng.RngStream.AUGMENT, step))
        targets = smooth_one_hot(batch["label"], self.model.num_classes, self.label_smoothing)
        if self.mix is not None:
            images, targets = self.mix(self.key(prng.RngStream.MIX, step), images, targets, mask=batch["mask"])
        if self.erase is not None:
            images = self.erase(self.key(prng.RngStream.ERASE, step), images)
        return Inputs(images, targets, batch["mask"])

    def loss_fn(
        self,
        params: Any,
        batch_stats: Any,
        inputs: Inputs,
        dropout_key: Array,
        num_valid: Float[Array, ""] | None = None,
    ) -> tuple[Float[Array, ""], Aux]:
        """Return the sum of losses divided by `num_valid` (default: the number of examples not masked out), and Aux."""
        mask: dict[str, Any] = {"mask": inputs.mask} if batch_stats else {}  # for BatchNorm
        num_valid = count_valid(inputs.mask) if num_valid is None else num_valid
        logits, updates = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs.images,
            train=True,
            **mask,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        losses = self.loss(logits, inputs.targets)
        return mean_loss(losses, inputs.mask, num_valid), Aux(losses, logits, updates.get("batch_stats", {}))

    def logits_fn(
        self, variables: Any, images: Shaped[Array, "batch height width channels"]
    ) -> Float[Array, "batch classes"]:
        """Return the logits of stored images in evaluation mode."""
        return jnp.asarray(self.model.apply(variables, self.preprocess(images), train=False))


def train_step(
    task: Task, state: TrainState, batch: Batch, lr_scale: float | Float[Array, ""] = 1.0
) -> tuple[TrainState, Bool[Array, ""]]:
    """Run one optimizer step on the mean loss over the examples that are not masked out.

    Args:
      lr_scale: multiplies the scheduled learning rate.

    Returns:
      The next state, and whether loss and gradient are finite.
    """
    grad_fn = jax.value_and_grad(task.loss_fn, has_aux=True)
    if task.wrap_grad_fn is not None:
        grad_fn = task.wrap_grad_fn(grad_fn)
    inputs, dropout_key = task.inputs(batch, state.step), task.key(prng.RngStream.DROPOUT, state.step)
    (loss, aux), grads = grad_fn(state.params, state.batch_stats, inputs, dropout_key)
    grad_norm = optax.global_norm(grads)
    updates, opt_state = task.optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda update: lr_scale * update, updates)
    params = optax.apply_updates(state.params, updates)
    averaged = {"params": params, "batch_stats": aux.batch_stats}
    labels = inputs.targets.argmax(axis=-1)  # for a mixed image, the class with the largest share
    step_metrics = TrainMetrics.single_from_model_output(
        loss=aux.losses,
        top1=top_k_correct(aux.logits, labels, 1),
        top5=top_k_correct(aux.logits, labels, 5),
        mask=inputs.mask,
        grad_norm=grad_norm,
    )
    next_state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=aux.batch_stats,
        ema=update_ema(state.ema, averaged, task.ema_decay, state.step) if task.ema_decay else state.ema,
        opt_state=opt_state,
        metrics=state.metrics.merge(step_metrics),
    )
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    return next_state, finite


def update_ema(mean: Any, new: Any, decay: float, step: Int[Array, ""]) -> Any:
    """Update an exponential moving average with `new`.

    The decay is min(decay, (1 + step) / (10 + step)), so that initial values are soon forgotten (TensorFlow's
    ExponentialMovingAverage).
    """
    decay_now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, x: decay_now * old + (1.0 - decay_now) * x, mean, new)


def eval_step(task: Task, state: TrainState, batch: Batch) -> EvalMetrics:
    """Return the metrics of one batch, without augmentation, dropout or label smoothing (see `eval_variables`)."""
    logits_fn = task.logits_fn if task.wrap_logits_fn is None else task.wrap_logits_fn(task.logits_fn)
    logits = logits_fn(state.eval_variables, batch["image"])
    return EvalMetrics.single_from_model_output(
        loss=task.loss(logits, smooth_one_hot(batch["label"], logits.shape[-1])),
        top1=top_k_correct(logits, batch["label"], 1),
        top5=top_k_correct(logits, batch["label"], 5),
        mask=batch["mask"],
    )
