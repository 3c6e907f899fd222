"""Random keys as pure functions of the run's seed, a purpose and counters, so that nothing random has a state."""

import enum
from typing import Any

import jax
from jaxtyping import Array


class RngStream(enum.IntEnum):
    INIT = 0
    ORDER = 1
    AUGMENT = 2
    DROPOUT = 3
    MIX = 4
    ERASE = 5


def key(seed: Any, stream: RngStream, *counters: Any) -> Array:
    """The key for `stream` at the given counters: an epoch, a step, an example's place in the batch."""
    key = jax.random.fold_in(jax.random.key(seed), int(stream))
    for counter in counters:
        key = jax.random.fold_in(key, counter)
    return key
