"""What training and evaluation ask of data, wherever it lies: the batch of any step, without a state in between."""

from collections.abc import Collection
from typing import Any, Protocol

from jaxtyping import Array, Int

# {"image": uint8 [batch, height, width, channels], "label": int32 [batch], "mask": float32 [batch]}
Batch = dict[str, Array]


class Loader(Protocol):
    """One split in batches. Every epoch holds each example once; the last batch is filled up with masked ones."""

    num_examples: int
    batch_size: int  # over all devices
    steps_per_epoch: int

    @property
    def unreadable(self) -> Collection[str]:
        """What was skipped so far because it could not be read."""

    def step_inputs(self, step: int) -> tuple[Any, int]:
        """What `batch` needs on the devices at `step`, and for how many steps, this one included, it serves."""

    def batch(self, inputs: Any, step: Int[Array, ""]) -> Batch:
        """The batch of one step, split over the mesh; traced into the compiled step."""

    def close(self) -> None:
        """Ends what runs beside the steps; `inputs` starts it again."""
