"""Collectives across the processes of a run: broadcast, maximum, all-true, union.

Every process has to call each of them, in the same order. They are no-ops in a single-process run.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from patchnets.errors import RunError, UserError


def is_first_process() -> bool:
    """Return whether this is the process that writes metrics, pictures and the screen."""
    return jax.process_index() == 0


def broadcast_from_first(value: int) -> int:
    """Return the first process's value."""
    return value if jax.process_count() == 1 else int(gather(np.int32(value))[0])


def max_over_processes(value: int) -> int:
    """Return the largest of all processes' values."""
    return value if jax.process_count() == 1 else int(gather(np.int32(value)).max())


def all_true(flag: bool) -> bool:
    """Return whether the flag is true in every process."""
    return max_over_processes(int(not flag)) == 0


def first_false(flag: bool) -> int | None:
    """Return the lowest index of a process whose flag is false, or None."""
    if jax.process_count() == 1:
        return None if flag else 0
    return next((i for i, holds in enumerate(gather(np.int32(flag))) if not holds), None)


def first_different(values: Mapping[str, Any]) -> int | None:
    """Return the lowest index of a process whose values (JSON types) differ from the first process's, or None."""
    if jax.process_count() == 1:
        return None
    mine = int(hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:7], 16)
    return first_false(broadcast_from_first(mine) == mine)


def union(names: Iterable[str]) -> set[str]:
    """Return the names that any of the processes has."""
    names = set(names)
    if jax.process_count() == 1 or not max_over_processes(len(names)):
        return names
    text = np.frombuffer(json.dumps(sorted(names)).encode(), np.uint8)
    padded = np.pad(text, (0, max_over_processes(len(text)) - len(text)), constant_values=ord(" "))
    return names.union(*(json.loads(bytes(row)) for row in gather(padded)))


@contextlib.contextmanager
def errors_on_all() -> Iterator[None]:
    """Raise in every process if the body raises in one, so that no process waits for one that has failed.

    The body must not contain collectives that a failing process would leave out.

    Raises:
      The body's own exception where there is one; UserError or RunError, of the same status, in the other processes.
    """
    error = None
    try:
        yield
    except Exception as caught:
        if jax.process_count() == 1:
            raise
        error = caught
    if jax.process_count() == 1:
        return
    statuses = gather(np.int32(0 if error is None else getattr(error, "status", RunError.status)))
    if error is not None:
        raise error
    if failed := [i for i, status in enumerate(statuses) if status]:
        kind = UserError if statuses[failed[0]] == UserError.status else RunError
        raise kind(f"process {failed[0]} cannot go on; see its own message")


def gather(value: np.ndarray | np.generic) -> np.ndarray:
    """Return every process's array, stacked along a new first axis."""
    return np.asarray(multihost_utils.process_allgather(np.asarray(value)))
