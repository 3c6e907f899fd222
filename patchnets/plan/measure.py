"""How fast a compiled step is: a few real ones, of random images that lie ready, on the devices at hand."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from patchnets.pace import Pace
from patchnets.plan.compiled import Compiled
from patchnets.train_state import create_train_state

SECONDS = 5.0  # of training that is timed
MOST_STEPS = 1000


def images_per_second(compiled: Compiled) -> float:
    """Of training, over some seconds after a first dispatch that is not counted."""
    blueprint = compiled.blueprint
    config, mesh = blueprint.config, blueprint.mesh
    state = create_train_state(
        blueprint.outline.model,
        blueprint.outline.optimizer,
        image_size=config.image_size,
        channels=blueprint.examples.channels,
        seed=config.seed,
        mesh=mesh,
        head_bias=config.head_bias,
        ema=config.ema_decay is not None,
        fsdp_rules=config.mesh.get("fsdp_rules") or (),
    )
    operands = jax.tree.map(_filled, blueprint.examples.operands(config, mesh))
    pace, began = Pace(config.steps_per_dispatch), time.perf_counter()
    while not pace.seconds or time.perf_counter() - began < SECONDS:
        count = pace.steps(MOST_STEPS)
        with pace.measure(count, count * config.batch_size):
            state, _, norm = compiled.program(state, operands, np.int32(count), np.float32(0.0))
            jax.block_until_ready(norm)
    assert pace.images_per_second is not None
    return pace.images_per_second


def _filled(like: Any) -> jax.Array:
    """Random images, labels and places of 0, and a mask that lets all count."""

    def make() -> jax.Array:
        if like.dtype == jnp.uint8:
            return jax.random.bits(jax.random.key(0), like.shape, jnp.uint8)
        return jnp.ones(like.shape, like.dtype) if like.dtype == jnp.float32 else jnp.zeros(like.shape, like.dtype)

    return jax.jit(make, out_shardings=like.sharding)()
