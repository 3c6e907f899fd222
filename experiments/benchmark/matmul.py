"""Measure a large matrix product, as a practical limit of the machine. Runs in a worker process."""

import time

import jax
import jax.numpy as jnp

from experiments.benchmark.ipc import Exchange, Message
from patchnets.run import console

SIDES = {"cpu": 2048, "other": 4096}
SECONDS = 1.0  # maximum per turn


def run(spec: Message, exchange: Exchange) -> Message:
    """Multiply square matrices in the dtype of the networks; a step is one product."""
    side = SIDES.get(jax.default_backend(), SIDES["other"])
    left, right = jax.random.split(jax.random.key(0))
    dtype = jnp.dtype(spec["dtype"])
    x = jax.random.normal(left, (side, side)).astype(dtype)
    y = (jax.random.normal(right, (side, side)) / side**0.5).astype(dtype)  # keeps the scale of x

    @jax.jit
    def products(x: jax.Array, y: jax.Array, count: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, count, lambda _, x: x @ y, x)

    jax.block_until_ready(products(x, y, 2))
    began = time.perf_counter()
    jax.block_until_ready(products(x, y, 5))
    each = (time.perf_counter() - began) / 5

    def run_for(seconds: float) -> int:
        count = max(2, round(min(seconds, SECONDS) / each))
        jax.block_until_ready(products(x, y, count))
        return count

    exchange.tell(
        ready=time.time() - spec["spawned"],
        flops=2 * side**3,
        side=side,
        device=console.device_name(),
        versions={"jax": jax.__version__},
    )
    exchange.serve(run_for)
    return {}
