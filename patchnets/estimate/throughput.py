"""Measure the speed of a compiled step on random images."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from patchnets.estimate.compile_step import CompiledStep
from patchnets.run.step_timer import StepTimer

SECONDS = 5.0  # of training that is timed
MOST_STEPS = 1000


def measure_images_per_second(compiled: CompiledStep) -> float:
    """Return training images per second, not counting the first dispatch."""
    abstract_run = compiled.abstract_run
    config, mesh = abstract_run.experiment.config, abstract_run.experiment.mesh
    state = abstract_run.experiment.init_state()
    inputs = jax.tree.map(_filled, abstract_run.dataset.step_inputs(mesh))
    timer, began = StepTimer(config.steps_per_call), time.perf_counter()
    while not timer.seconds or time.perf_counter() - began < SECONDS:
        count = timer.steps_per_call(MOST_STEPS)
        with timer.measure(count, count * config.batch_size):
            state, _, norm = compiled.program(state, inputs, np.int32(count), np.float32(0.0))
            jax.block_until_ready(norm)
    assert timer.images_per_second is not None
    return timer.images_per_second


def _filled(like: Any) -> jax.Array:
    """Return random images, labels and positions of 0, and a mask of 1."""

    def make() -> jax.Array:
        if jnp.issubdtype(like.dtype, jnp.unsignedinteger):
            return jax.random.bits(jax.random.key(0), like.shape, like.dtype)
        return jnp.ones(like.shape, like.dtype) if like.dtype == jnp.float32 else jnp.zeros(like.shape, like.dtype)

    return jax.jit(make, out_shardings=like.sharding)()
