"""Progress of a run: everything that a checkpoint restores besides the train state."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from patchnets.errors import RunError


@dataclasses.dataclass
class Progress:
    """Everything that a resumed run needs besides the train state to continue as the interrupted one would have.

    Attributes:
      wall_seconds: duration so far, summed over all processes that worked on this run.
      images, seconds: images trained on and the time they took, without the first call of each process, which compiles.
      early_stopping, reduce_on_plateau: their `state_dict`s.
      last_eval_step: last boundary at which everything due was done.
      skipped: records that could not be read.
    """

    wall_seconds: float = 0.0
    images: int = 0
    seconds: float = 0.0
    early_stopping: dict[str, Any] = dataclasses.field(default_factory=dict)
    reduce_on_plateau: dict[str, Any] = dataclasses.field(default_factory=dict)
    last_eval_step: int = 0
    skipped: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def from_saved(cls, values: Mapping[str, Any]) -> "Progress":
        """Return what `dataclasses.asdict` saved. Raise RunError if another version of patchnets saved it."""
        names = {field.name for field in dataclasses.fields(cls)}
        if names != set(values):
            different = ", ".join(sorted(names ^ set(values)))
            raise RunError(
                f"the checkpoint was written by another version of patchnets ({different}); use that one, or give "
                "another --workdir"
            )
        return cls(**values)
