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

# A feed's own: (inputs, step) -> batch
BatchFn = Callable[[Any, Int[Array, ""]], Batch]


def compile_train_steps(
    task: Task, batch_fn: BatchFn, mesh: Mesh, state_sharding: Any = None
) -> Callable[[TrainState, Any, int, float], tuple[TrainState, Bool[Array, ""], Float[Array, ""]]]:
    """(state, inputs, count, lr_scale) -> (state, finite, norm of the parameters), by `count` steps in one dispatch.

    The state lives on the devices as `state_sharding` has it (sharding.infer_state_sharding; None: whole on each), and
    comes back so. Its buffers are donated. It stops right after a step whose loss or gradient is not finite. The number
    of steps is an argument of one compiled program, not part of it, so that however a run is cut into dispatches, by
    signals, evaluations or a restart, every step is computed by the same instructions: continuing is bit-exact.
    """

    state_sharding = sharding.replicated(mesh) if state_sharding is None else state_sharding

    def train_steps(
        state: TrainState, inputs: Any, count: Int32[Array, ""], lr_scale: Float[Array, ""]
    ) -> tuple[TrainState, Array, Array]:
        last = state.step + count

        def go_on(carry: tuple[TrainState, Array]) -> Array:
            state, finite = carry
            return (state.step < last) & finite

        def body(carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            state, finite = train_step(task, carry[0], batch_fn(inputs, carry[0].step), lr_scale)
            return jax.lax.with_sharding_constraint(state, state_sharding), finite

        state, finite = jax.lax.while_loop(go_on, body, (state, jnp.array(True)))
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
    """(state, metrics, operands, first step, count) -> metrics with those of `count` batches merged in.

    `state_sharding` the state lives: as in `compile_train_steps`."""

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
