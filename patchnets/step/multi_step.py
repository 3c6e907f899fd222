"""Several training or evaluation steps as one compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Int32

from patchnets.data.loader import Batch
from patchnets.parallel import sharding
from patchnets.step.metrics import EvalMetrics
from patchnets.step.train_state import TrainState
from patchnets.step.train_step import Task, eval_step, train_step

# (inputs of a loader, step) -> batch
BatchFn = Callable[[Any, Int[Array, ""]], Batch]


def compile_train_steps(
    task: Task, batch_fn: BatchFn, mesh: Mesh, state_sharding: Any = None
) -> Callable[[TrainState, Any, int, float], tuple[TrainState, Bool[Array, ""], Float[Array, ""]]]:
    """Return the compiled function (state, inputs, count, lr_scale) -> (state, finite, parameter norm).

    It runs `count` steps in one dispatch, and stops after a step whose loss or gradient is not finite. The buffers of
    the state are donated. `count` is an argument of one compiled program, so that every step runs the same instructions
    however signals, evaluations or a restart divide a run into dispatches: resuming is bit-exact.

    Args:
      state_sharding: of the state before and after (`sharding.infer_state_sharding`); None replicates it.
    """

    state_sharding = sharding.replicated(mesh) if state_sharding is None else state_sharding

    def train_steps(
        state: TrainState, inputs: Any, count: Int32[Array, ""], lr_scale: Float[Array, ""]
    ) -> tuple[TrainState, Array, Array]:
        last = state.step + count

        def should_continue(carry: tuple[TrainState, Array]) -> Array:
            state, finite = carry
            return (state.step < last) & finite

        def body(carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            state, finite = train_step(task, carry[0], batch_fn(inputs, carry[0].step), lr_scale)
            return jax.lax.with_sharding_constraint(state, state_sharding), finite

        state, finite = jax.lax.while_loop(should_continue, body, (state, jnp.array(True)))
        return state, finite, optax.global_norm(state.params)

    replicated = sharding.replicated(mesh)
    return jax.jit(
        train_steps,
        donate_argnums=0,
        in_shardings=(state_sharding, None, replicated, replicated),
        out_shardings=(state_sharding, replicated, replicated),
    )


def compile_eval_steps(
    task: Task, batch_fn: BatchFn, mesh: Mesh, state_sharding: Any = None
) -> Callable[[TrainState, EvalMetrics, Any, int, int], EvalMetrics]:
    """Return the compiled function (state, metrics, inputs, first, count) -> metrics.

    It merges the metrics of the `count` batches from step `first` into `metrics`. `state_sharding` is as in
    `compile_train_steps`.
    """

    def eval_steps(
        state: TrainState, metrics: EvalMetrics, inputs: Any, first: Int32[Array, ""], count: Int32[Array, ""]
    ) -> EvalMetrics:
        def body(i: Array, metrics: EvalMetrics) -> EvalMetrics:
            return metrics.merge(eval_step(task, state, batch_fn(inputs, i)))

        return jax.lax.fori_loop(first, first + count, body, metrics)

    replicated = sharding.replicated(mesh)
    state_sharding = replicated if state_sharding is None else state_sharding
    return jax.jit(
        eval_steps, in_shardings=(state_sharding, replicated, None, replicated, replicated), out_shardings=replicated
    )
