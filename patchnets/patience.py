"""What a run does when validation stops getting better: lower the learning rate, and in the end stop."""

import dataclasses
from typing import Any

import ml_collections

from patchnets.errors import UserError

SMALLEST_GAIN = 1e-4  # what Keras's ReduceLROnPlateau asks for; its EarlyStopping takes any


@dataclasses.dataclass
class Patience:
    """Watches the validation loss, with the semantics of Keras's ReduceLROnPlateau and EarlyStopping.

    The learning rate is multiplied by `factor` after every `plateau` validations without a lower loss, and the run is
    over after `stop` validations without one. None means never. What it has seen is a dictionary of numbers, which is
    saved with each checkpoint, so that a continued run goes on as the one that was cut would have.

    Attributes:
      scale: what the schedule's learning rate is multiplied by.
      over: whether the run should end.
    """

    factor: float | None
    plateau: int | None
    stop: int | None
    scale: float = 1.0
    plateau_best: float = float("inf")
    plateau_waited: int = 0
    stop_best: float = float("inf")
    stop_waited: int = 0

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, validates: bool) -> "Patience":
        """Raises UserError where there is nothing to watch."""
        patience = cls(config.schedule.plateau_factor, config.schedule.plateau_patience, config.stop_patience)
        if (patience.factor is None) != (patience.plateau is None):
            raise UserError(
                "config.schedule.plateau_factor and config.schedule.plateau_patience go together; give both"
            )
        if not validates and (patience.plateau or patience.stop):
            key = "schedule.plateau_patience" if patience.plateau else "stop_patience"
            raise UserError(f"config.{key} watches the validation loss, and there is no validation split; give one")
        return patience

    def observe(self, loss: float) -> None:
        """Takes note of a validation's loss."""
        if self.plateau is not None and self.factor is not None:
            if loss < self.plateau_best - SMALLEST_GAIN:
                self.plateau_best, self.plateau_waited = loss, 0
            else:
                self.plateau_waited += 1
            if self.plateau_waited >= self.plateau:
                self.scale, self.plateau_waited = self.scale * self.factor, 0
        if loss < self.stop_best:
            self.stop_best, self.stop_waited = loss, 0
        else:
            self.stop_waited += 1

    @property
    def over(self) -> bool:
        return self.stop is not None and self.stop_waited >= self.stop

    def seen(self) -> dict[str, Any]:
        """What a checkpoint has to hold; `resume` takes it back. Infinity, which JSON lacks, is left out."""
        names = ("scale", "plateau_best", "plateau_waited", "stop_best", "stop_waited")
        return {name: value for name in names if (value := getattr(self, name)) != float("inf")}

    def resume(self, seen: dict[str, Any]) -> None:
        """Goes on from what an earlier process saw."""
        for name, value in seen.items():
            setattr(self, name, value)
