"""The interface of data loaders: the batch of any step, without state."""

from collections.abc import Collection
from typing import Any, Protocol

from jaxtyping import Array, Int

from patchnets.errors import RunError

MAX_CONSECUTIVE_FAILURES = 64  # records; more in a row point to another cause than the records

# {"image": uint8 or uint16 [batch, height, width, channels], "label": int32 [batch], "mask": float32 [batch]}
Batch = dict[str, Array]


class Loader(Protocol):
    """Batches of one split. Every epoch has each example once; the last batch is padded with masked examples."""

    num_examples: int
    batch_size: int  # over all devices
    steps_per_epoch: int

    @property
    def unreadable(self) -> Collection[str]:
        """Records skipped so far because they could not be read."""

    def step_inputs(self, step: int) -> tuple[Any, int]:
        """Return `(inputs, n)`: device arrays from which `batch` can build steps `step` to `step + n - 1`."""

    def batch(self, inputs: Any, step: Int[Array, ""]) -> Batch:
        """Build the batch of one step, sharded over the mesh; traced into the compiled step."""

    def close(self) -> None:
        """Stop background work; `step_inputs` starts it again."""


def too_many_unreadable(count: int, first: str) -> RunError:
    """Return the error for `count` records in a row that cannot be read; `first` says why the first cannot."""
    return RunError(f"{count} records in a row cannot be read, and are too many to skip; the first: {first}")
