"""What a run does when validation stops getting better: lower the learning rate, and in the end stop."""

import dataclasses
from typing import Any

from patchnets.errors import UserError

SMALLEST_GAIN = 1e-4  # what Keras's ReduceLROnPlateau asks for; its EarlyStopping takes any


@dataclasses.dataclass
class Plateau:
    """Watches the validation loss, with the semantics of Keras's ReduceLROnPlateau and EarlyStopping.

    The learning rate is multiplied by `factor` after every `plateau` validations without a lower loss, and the run is
    over after `stop` validations without one. None means never. What it has seen is a dictionary of numbers, which is
    saved with each checkpoint, so that a continued run goes on as the one that was cut would have.

    Attributes:
      lr_scale: what the schedule's learning rate is multiplied by.
      should_stop: whether the run should end.
    """

    factor: float | None = None
    plateau: int | None = None
    stop: int | None = None
    lr_scale: float = 1.0
    plateau_best: float = float("inf")
    plateau_waited: int = 0
    stop_best: float = float("inf")
    stop_waited: int = 0

    def __post_init__(self) -> None:
        """Raises UserError where only one of `factor` and `plateau` is set."""
        if (self.factor is None) != (self.plateau is None):
            raise UserError(
                "config.reduce_on_plateau.factor and config.reduce_on_plateau.patience go together; give both"
            )

    def check_observable(self, has_val: bool) -> None:
        """Raises UserError where there is no validation split to watch, unless nothing is watched."""
        if not has_val and (self.plateau or self.stop):
            key = "reduce_on_plateau.patience" if self.plateau else "early_stopping.patience"
            raise UserError(f"config.{key} watches the validation loss, and there is no validation split; give one")

    def observe(self, loss: float) -> None:
        """Takes note of a validation's loss."""
        if self.plateau is not None and self.factor is not None:
            if loss < self.plateau_best - SMALLEST_GAIN:
                self.plateau_best, self.plateau_waited = loss, 0
            else:
                self.plateau_waited += 1
            if self.plateau_waited >= self.plateau:
                self.lr_scale, self.plateau_waited = self.lr_scale * self.factor, 0
        if loss < self.stop_best:
            self.stop_best, self.stop_waited = loss, 0
        else:
            self.stop_waited += 1

    @property
    def should_stop(self) -> bool:
        return self.stop is not None and self.stop_waited >= self.stop

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold; `resume` takes it back. Infinity, which JSON lacks, is left out."""
        names = ("lr_scale", "plateau_best", "plateau_waited", "stop_best", "stop_waited")
        return {name: value for name in names if (value := getattr(self, name)) != float("inf")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what an earlier process saw."""
        for name, value in state.items():
            setattr(self, name, value)
