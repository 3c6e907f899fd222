"""Reactions to a validation loss that stops falling: lower the learning rate, and stop early."""

import dataclasses
import math
from typing import Any, ClassVar

from patchnets.errors import UserError


@dataclasses.dataclass
class BestLoss:
    """The lowest validation loss so far, and the number of validations since.

    A checkpoint holds both, so that a resumed run continues as the interrupted one would have.

    Attributes:
      patience: number of validations without a lower loss after which something happens; None for never.
      min_delta: a loss counts as lower if it is so by more than this.
    """

    patience: int | None = None
    best: float = math.inf
    waited: int = 0

    min_delta: ClassVar[float] = 0.0
    key: ClassVar[str]

    def observe(self, loss: float) -> None:
        """Note the loss of a validation."""
        if loss < self.best - self.min_delta:
            self.best, self.waited = loss, 0
        else:
            self.waited += 1

    def check_observable(self, has_val: bool) -> None:
        """Raise UserError if there is a patience but no validation split."""
        if self.patience and not has_val:
            raise UserError(f"config.{self.key}.patience watches the validation loss, and there is no validation split")

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold. Infinity, which JSON lacks, is left out."""
        names = {field.name for field in dataclasses.fields(self)} - {"patience", "factor"}
        return {name: value for name in sorted(names) if (value := getattr(self, name)) != math.inf}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of an earlier process."""
        for name, value in state.items():
            setattr(self, name, value)


@dataclasses.dataclass
class EarlyStopping(BestLoss):
    """End the run after `patience` validations in a row without a lower loss, as Keras's EarlyStopping."""

    key = "early_stopping"

    @property
    def should_stop(self) -> bool:
        """Whether the run should end."""
        return self.patience is not None and self.waited >= self.patience


@dataclasses.dataclass
class ReduceLROnPlateau(BestLoss):
    """Multiply the learning rate by `factor` after `patience` validations in a row without a lower loss, as Keras's.

    Attributes:
      lr_scale: what to multiply the schedule's learning rate by.

    Raises:
      UserError: one of `factor` and `patience` without the other.
    """

    factor: float | None = None
    lr_scale: float = 1.0

    min_delta = 1e-4  # Keras's default
    key = "reduce_on_plateau"

    def __post_init__(self) -> None:
        if (self.factor is None) != (self.patience is None):
            raise UserError(
                "config.reduce_on_plateau.factor and config.reduce_on_plateau.patience go together; give both"
            )

    def observe(self, loss: float) -> None:
        super().observe(loss)
        if self.patience is not None and self.factor is not None and self.waited >= self.patience:
            self.lr_scale, self.waited = self.lr_scale * self.factor, 0
