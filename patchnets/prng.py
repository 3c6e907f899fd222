"""Random keys as pure functions of the run's seed, a stream and counters; there are no stateful RNGs."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Array


class RngStream(enum.IntEnum):
    """Independent random streams. NumPy on the host computes those of ORDER and CROP, JAX all others."""

    INIT = 0
    ORDER = 1
    AUGMENT = 2
    DROPOUT = 3
    MIX = 4
    ERASE = 5
    CROP = 6
    EXPLAIN = 7


def key(seed: Any, stream: RngStream, *counters: Any) -> Array:
    """Return the key of `stream` at the given counters, such as an epoch, a step or an index in the batch."""
    import jax  # here, because data loading on the host uses this module without JAX

    key = jax.random.fold_in(jax.random.key(seed), int(stream))
    for counter in counters:
        key = jax.random.fold_in(key, counter)
    return key
