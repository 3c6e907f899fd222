"""Random numbers as pure functions of the run's seed, a stream and counters, so that nothing random has a state."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Array


class RngStream(enum.IntEnum):
    """What random numbers are for. Those of ORDER and CROP are computed by NumPy on the host, all others by JAX."""

    INIT = 0
    ORDER = 1
    AUGMENT = 2
    DROPOUT = 3
    MIX = 4
    ERASE = 5
    CROP = 6


def key(seed: Any, stream: RngStream, *counters: Any) -> Array:
    """The key for `stream` at the given counters: an epoch, a step, an example's place in the batch."""
    import jax  # here, because the host's side of the data loading uses this file without it

    key = jax.random.fold_in(jax.random.key(seed), int(stream))
    for counter in counters:
        key = jax.random.fold_in(key, counter)
    return key
