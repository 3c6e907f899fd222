"""What the processes of a run agree on, so that they go on alike. One process agrees with itself at no cost.

Each of these is an exchange that every process has to take part in.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from patchnets.config import flatten
from patchnets.errors import UserError
from patchnets.workdir import Workdir

MACHINES = {"dataset.path", "dataset.data_dir", "dataset.cache_dir", "dataset.workers"}  # may differ between them


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


def first_without(good: bool) -> int | None:
    """The lowest number of a process in which it is not so."""
    if jax.process_count() == 1:
        return None if good else 0
    return next((i for i, holds in enumerate(_all(np.int32(good))) if not holds), None)


def on_configuration(config: ml_collections.ConfigDict) -> None:
    """Raises UserError, in all processes, unless all have the configuration of the first; MACHINES' keys aside."""
    if jax.process_count() == 1:
        return
    values = {name: value for name, value in flatten(config).items() if name not in MACHINES}
    mine = int(hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:7], 16)
    if (other := first_without(same(mine) == mine)) is not None:
        raise UserError(
            f"--config gives process {other} another configuration than process 0; bring the file, and what it "
            "imports, to the same state on all machines"
        )


def on_folder(place: Workdir) -> None:
    """Raises UserError, in all processes, unless all see one folder as the work directory; it is left as it was."""
    if jax.process_count() == 1:
        return
    token = same(secrets.randbelow(2**31))
    with place.marked(token):
        everywhere(True)  # nobody looks before that: what was not there may be remembered as such for a while
        other = first_without(place.shows(token))
        if other is not None:
            raise UserError(
                f"--workdir={place.path} is not the same folder in process {other}: what process 0 writes there does "
                "not show; give one on a file system that all machines share"
            )


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
