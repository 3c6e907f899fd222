"""Training of the head alone, on features that the frozen layers below it give."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from patchnets.models.layers import ZERO, classifier_head
from patchnets.parallel.grad_fn import GradFn
from patchnets.step.multi_step import BatchFn, compile_train_steps
from patchnets.step.train_state import TrainState
from patchnets.step.train_step import LogitsFn, Task

HEAD = "head"  # the name of the head in the parameters of every network


class Head(nn.Module):
    """The head of a network by itself, under the same name in the parameters."""

    num_classes: int

    @nn.compact
    def __call__(self, features: Float[Array, "batch width"], *, train: bool) -> Float[Array, "batch classes"]:
        return classifier_head(self, features, ZERO)


def head_task(
    task: Task, wrap_grad_fn: Callable[[GradFn], GradFn], wrap_logits_fn: Callable[[LogitsFn], LogitsFn]
) -> Task:
    """Return the task of training the head on features in place of images."""
    return dataclasses.replace(
        task,
        model=Head(task.model.num_classes),
        preprocess=lambda features, key=None: features,
        wrap_grad_fn=wrap_grad_fn,
        wrap_logits_fn=wrap_logits_fn,
    )


def compile_head_steps(task: Task, batch_fn: BatchFn, mesh: Mesh, state_sharding: Any) -> Any:
    """Return what `compile_train_steps` returns, for a `head_task` and the state of the whole network.

    Only the head and what belongs to it is part of the compiled program; everything else stays where it is.
    """
    head_steps = compile_train_steps(task, batch_fn, mesh, _only_head(state_sharding))
    frozen_norm: list[Array] = []  # of parameters that never change

    def train_steps(
        state: TrainState, inputs: Any, count: int, lr_scale: float
    ) -> tuple[TrainState, Array, Float[Array, ""]]:
        if not frozen_norm:
            frozen = {name: tree for name, tree in state.params.items() if name != HEAD}
            frozen_norm.append(jax.jit(optax.global_norm)(frozen))
        trained, finite, norm = head_steps(_only_head(state), inputs, count, lr_scale)
        return _with_head(state, trained), finite, jnp.hypot(norm, frozen_norm[0])

    return train_steps


def _only_head(state: Any) -> Any:
    """Return a state (or its shardings) with optax's masked nodes for all parameters below the head, as the optimizer
    has them for frozen ones."""

    def masked(params: Any) -> Any:
        return {
            name: tree if name == HEAD else jax.tree.map(lambda _: optax.MaskedNode(), tree)
            for name, tree in params.items()
        }

    ema = {"params": masked(state.ema["params"]), "batch_stats": {}} if state.ema else {}
    return state.replace(params=masked(state.params), batch_stats={}, ema=ema)


def _with_head(state: TrainState, trained: TrainState) -> TrainState:
    """Return a trained state with all parameters again."""
    params = state.params | {HEAD: trained.params[HEAD]}
    ema = state.ema and {**state.ema, "params": state.ema["params"] | {HEAD: trained.ema["params"][HEAD]}}
    return trained.replace(params=params, batch_stats=state.batch_stats, ema=ema)
