"""Collectives across the processes of a run: broadcast, maximum, all-true, union.

All processes must call them in the same order. They are no-ops in a single-process run.
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
    """Return whether this process writes metrics, plots and terminal output."""
    return jax.process_index() == 0


def broadcast_from_first(value: int) -> int:
    """Return the first process's value."""
    return value if jax.process_count() == 1 else int(gather(np.int32(value))[0])


def max_over_processes(value: int) -> int:
    """Return the maximum over all processes."""
    return value if jax.process_count() == 1 else int(gather(np.int32(value)).max())


def all_true(flag: bool) -> bool:
    """Return whether the flag is true in every process."""
    return max_over_processes(int(not flag)) == 0


def first_false(flag: bool) -> int | None:
    """Return the lowest index of a process whose flag is false, or None."""
    if jax.process_count() == 1:
        return None if flag else 0
    return next((i for i, value in enumerate(gather(np.int32(flag))) if not value), None)


def first_different(values: Mapping[str, Any]) -> int | None:
    """Return the lowest index of a process whose values (JSON types) differ from the first process's, or None."""
    if jax.process_count() == 1:
        return None
    digest = int(hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:7], 16)
    return first_false(broadcast_from_first(digest) == digest)


def union(names: Iterable[str]) -> set[str]:
    """Return the union of all processes' names."""
    names = set(names)
    if jax.process_count() == 1 or not max_over_processes(len(names)):
        return names
    text = np.frombuffer(json.dumps(sorted(names)).encode(), np.uint8)
    padded = np.pad(text, (0, max_over_processes(len(text)) - len(text)), constant_values=ord(" "))
    return names.union(*(json.loads(bytes(row)) for row in gather(padded)))


@contextlib.contextmanager
def errors_on_all() -> Iterator[None]:
    """Raise in every process if the body raises in one, so that no process waits for one that has failed.

    The body must not contain collectives that a failing process would skip.

    Raises:
      The exception of the body, if it raised one; in the other processes UserError or RunError, with the same status.
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
        raise kind(f"process {failed[0]} failed; see its error message")


def gather(value: np.ndarray | np.generic) -> np.ndarray:
    """Return every process's array, stacked along a new first axis."""
    return np.asarray(multihost_utils.process_allgather(np.asarray(value)))
