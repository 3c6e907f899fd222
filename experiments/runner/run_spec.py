"""What a row of a published table is: a run, what was published about it, and what it takes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple


class Budget(NamedTuple):
    """What a row takes: epochs, on what, and about how many minutes there; None where nobody has told."""

    epochs: float
    device: str
    minutes: float | None = None

    def __str__(self) -> str:
        """ "300 epochs on a cluster"; "1 epoch on 2 CPU cores, about 3 min a seed"."""
        minutes = "" if self.minutes is None else f", about {self.minutes:g} min a seed"
        return f"{self.epochs:g} epoch{'' if self.epochs == 1 else 's'} on {self.device}{minutes}"


class Reference(NamedTuple):
    """What the program of a row's origin gives on the same images, on a machine of our own.

    Attributes:
      name: "Keras 3.15.1, TensorFlow".
      runs: for each metric its values, one for each seed.
    """

    name: str
    runs: Mapping[str, tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One row.

    Attributes:
      id: its name, a word.
      config: what is given as --config: a file of configs/ and its argument.
      dataset: the data set on which the figures were published.
      published: {"accuracy": 0.0976, ...} of the test split.
      source: where they were published.
      cost: what the row takes.
      tolerance: how far below a published figure a mean may lie.
      changes: keys of the configuration with other values than its file has.
      curve: published validation accuracies, by the number of epochs after which they were measured.
      peer: the origin's own program on the same images.
      note: what a reader of the row has to know.
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
