"""What the processes of a run agree on, so that they go on alike. One process agrees with itself at no cost.

Each of these is an exchange that every process has to take part in.
"""

import json
from collections.abc import Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils


def speaks() -> bool:
    """Whether this is the process that writes figures, pictures and what people read."""
    return jax.process_index() == 0


def same(value: int) -> int:
    """The first process's."""
    return value if jax.process_count() == 1 else int(_all(np.int32(value))[0])


def highest(value: int) -> int:
    """Of all processes'."""
    return value if jax.process_count() == 1 else int(_all(np.int32(value)).max())


def everywhere(good: bool) -> bool:
    """Whether it is so in every process."""
    return highest(int(not good)) == 0


def union(names: Iterable[str]) -> set[str]:
    """What any of the processes names."""
    names = set(names)
    if jax.process_count() == 1 or not highest(len(names)):
        return names
    told = np.frombuffer(json.dumps(sorted(names)).encode(), np.uint8)
    longest = highest(len(told))
    padded = np.pad(told, (0, longest - len(told)), constant_values=ord(" "))
    return names.union(*(json.loads(bytes(row)) for row in _all(padded)))


def _all(value: np.ndarray | np.generic) -> np.ndarray:
    """A row of each process."""
    return np.asarray(multihost_utils.process_allgather(np.asarray(value)))
