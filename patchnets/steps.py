"""The training step and the evaluation step: pure functions, compiled in one place, several steps a dispatch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Int32

from patchnets import keys, sharding
from patchnets.feeds import Batch
from patchnets.metrics import EvalMetrics, TrainMetrics, in_top_k
from patchnets.train_state import TrainState

# A feed's own: (operands, step) -> batch
BatchOf = Callable[[Any, Int[Array, ""]], Batch]


@dataclasses.dataclass(frozen=True)
class Task:
    """What stays the same from step to step."""

    model: nn.Module
    optimizer: optax.GradientTransformation
    preprocess: Callable[..., Array]  # (uint8 images, key or None) -> float32 inputs; data/preprocess.py
    seed: int
    label_smoothing: float = 0.0


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], smoothing: float = 0.0
) -> Float[Array, " batch"]:
    """Softmax cross-entropy of each example; `smoothing` of the target goes to all classes alike (arXiv 1512.00567)."""
    target = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, target)


def train_step(
    task: Task, state: TrainState, batch: Batch, lr_scale: float | Float[Array, ""] = 1.0
) -> tuple[TrainState, Bool[Array, ""]]:
    """One step of gradient descent on the mean loss over the examples that are not masked out.

    `lr_scale` multiplies the scheduled learning rate.

    Returns:
      The next state, and whether loss and gradient were finite.
    """
    images = task.preprocess(batch["image"], keys.key(task.seed, keys.Purpose.AUGMENT, state.step))
    dropout_key = keys.key(task.seed, keys.Purpose.DROPOUT, state.step)
    mask = batch["mask"]
    shared: dict[str, Any] = (
        {"mask": mask} if state.batch_stats else {}
    )  # for statistics over the batch, which networks may have

    def loss_fn(params: Any) -> tuple[Array, tuple[Array, Array, Any]]:
        logits, updates = task.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            **shared,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        losses = cross_entropy(logits, batch["label"], task.label_smoothing)
        return (losses * mask).sum() / mask.sum(), (losses, logits, updates.get("batch_stats", {}))

    (loss, (losses, logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    grad_norm = optax.global_norm(grads)
    updates, opt_state = task.optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda update: lr_scale * update, updates)
    measured = TrainMetrics.single_from_model_output(
        loss=losses,
        top1=in_top_k(logits, batch["label"], 1),
        top5=in_top_k(logits, batch["label"], 5),
        mask=mask,
        grad_norm=grad_norm,
    )
    next_state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
        metrics=state.metrics.merge(measured),
    )
    return next_state, jnp.isfinite(loss) & jnp.isfinite(grad_norm)


def eval_step(task: Task, state: TrainState, batch: Batch) -> EvalMetrics:
    """Metrics of one batch, without augmentation, dropout or label smoothing."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = jnp.asarray(task.model.apply(variables, task.preprocess(batch["image"]), train=False))
    return EvalMetrics.single_from_model_output(
        loss=cross_entropy(logits, batch["label"]),
        top1=in_top_k(logits, batch["label"], 1),
        top5=in_top_k(logits, batch["label"], 5),
        mask=batch["mask"],
    )


def compile_train_steps(
    task: Task, batch_of: BatchOf, mesh: Mesh
) -> Callable[[TrainState, Any, int, float], tuple[TrainState, Bool[Array, ""], Float[Array, ""]]]:
    """(state, operands, count, lr_scale) -> (state, finite, norm of the parameters), by `count` steps in one dispatch.

    The state's buffers are donated. It stops right after a step whose loss or gradient is not finite. The number of
    steps is an argument of one compiled program, not part of it, so that however a run is cut into dispatches, by
    signals, evaluations or a restart, every step is computed by the same instructions: continuing is bit-exact.
    """

    def train_steps(
        state: TrainState, operands: Any, count: Int32[Array, ""], lr_scale: Float[Array, ""]
    ) -> tuple[TrainState, Array, Array]:
        last = state.step + count

        def go_on(carry: tuple[TrainState, Array]) -> Array:
            state, finite = carry
            return (state.step < last) & finite

        def one(carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            state, _ = carry
            return train_step(task, state, batch_of(operands, state.step), lr_scale)

        state, finite = jax.lax.while_loop(go_on, one, (state, jnp.array(True)))
        return state, finite, optax.global_norm(state.params)

    whole = sharding.replicated(mesh)
    return jax.jit(train_steps, donate_argnums=0, in_shardings=(whole, None, whole, whole), out_shardings=whole)


def compile_eval_steps(
    task: Task, batch_of: BatchOf, mesh: Mesh
) -> Callable[[TrainState, EvalMetrics, Any, int, int], EvalMetrics]:
    """(state, metrics, operands, first step, count) -> metrics with those of `count` batches merged in."""

    def eval_steps(
        state: TrainState, metrics: EvalMetrics, operands: Any, first: Int32[Array, ""], count: Int32[Array, ""]
    ) -> EvalMetrics:
        def one(i: Array, metrics: EvalMetrics) -> EvalMetrics:
            return metrics.merge(eval_step(task, state, batch_of(operands, i)))

        return jax.lax.fori_loop(first, first + count, one, metrics)

    whole = sharding.replicated(mesh)
    return jax.jit(eval_steps, in_shardings=(whole, whole, None, whole, whole), out_shardings=whole)
