"""RunSpec, a row of a published table: a run, its published results, and its cost."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple


class Budget(NamedTuple):
    """Cost of a row: epochs or steps, device, and approximate minutes per seed on it (None if not known)."""

    epochs: float | None
    device: str
    minutes: float | None = None
    steps: int | None = None

    def __str__(self) -> str:
        """Format as "300 epochs on a cluster" or "1 epoch on 2 CPU cores, about 3 min a seed"."""
        minutes = "" if self.minutes is None else f", about {self.minutes:g} min a seed"
        length = f"{self.steps:,} steps" if self.epochs is None else f"{self.epochs:g} epochs"
        length = "1 epoch" if self.epochs == 1 else length
        return f"{length} on {self.device}{minutes}"


class Reference(NamedTuple):
    """Results of the original program on the same images, measured by us.

    Attributes:
      name: "Keras 3.15.1, TensorFlow".
      runs: {metric: one value per seed}.
    """

    name: str
    runs: Mapping[str, tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One row of a published table.

    Attributes:
      id: its name, one word.
      config: the value of --config: a file of configs/ and its argument.
      dataset: the data set of the published results.
      published: {"accuracy": 0.0976, ...} of the test split.
      source: where they were published.
      cost: epochs, device and minutes.
      tolerance: how far below the published value a mean still counts as reproduced.
      changes: {key: value} that override the configuration file.
      curve: {epoch: published validation accuracy}.
      peer: results of the original program on the same images.
      note: a remark for readers of the report.
      weights: where the file of weights comes from that the run starts from; empty for none.
    """

    id: str
    config: str
    dataset: str
    published: Mapping[str, float]
    source: str
    cost: Budget
    tolerance: float = 0.01
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    curve: Mapping[float, float] = dataclasses.field(default_factory=dict)
    peer: Reference | None = None
    note: str = ""
    weights: str = ""

    def weights_in(self, folder: pathlib.Path) -> pathlib.Path | None:
        """Return the path of the row's file of weights in a folder; None if it starts from none."""
        return folder.absolute() / self.weights.rpartition("/")[2] if self.weights else None
