"""Options of a data set and its loaders."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from patchnets.augment.preprocess import Augment
from patchnets.data import sources, splits
from patchnets.data.bit_depth import ValueRanges
from patchnets.data.pixel_rules import PixelRules
from patchnets.data.sources import base
from patchnets.errors import UserError

NO_AUGMENT = Augment()


def is_range(value: Sequence[Any]) -> bool:
    """Return whether a value is a pair of finite numbers, the second above the first."""
    numbers = len(value) == 2 and all(isinstance(v, int | float) and abs(v) <= sys.float_info.max for v in value)
    return numbers and value[0] < value[1]


CHOICES = {
    "loader": ("auto", "on_device", "streaming"),
    "on_device_sharding": ("replicated", "sharded"),
    "on_corrupt": ("stop", "skip"),
    "normalize": ("symmetric", "unit", "imagenet", "dataset"),
    "background": ("white", "black", "none"),
}


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which examples a run trains, validates and tests on, and how they are fed.

    Attributes:
      name: digits, folder, or the name of a TFDS image classification data set.
      path: of folder, where train/CLASS/*.jpg|png lie.
      data_dir: of TFDS, where data sets lie.
      channels: of folder, 1 for gray or 3 for RGB; None for what the images are (.npy arrays may have others).
      exif_orientation, background: as in `pixel_rules.PixelRules`.
      value_range: of images of more than 8 bits, the values that become the lowest and the highest level; None: the
        lowest and highest in train.
      train_split, val_split, test_split: in TFDS's syntax, or none; `choose_splits` fills in the defaults.
      cache_dir: where decoded images are kept.
      loader: on_device, streaming, or auto (`patchnets.data.loader_choice`).
      max_on_device_gib: the memory that on-device images may take on each device.
      on_device_sharding: replicated, or sharded: every device holds its share of the images.
      num_workers: of streaming, processes that decode; None for one a core.
      on_corrupt: stop at a record that cannot be read, or skip it.
      image_size: side in pixels that the model sees.
      normalize: symmetric, unit, imagenet or dataset.
      crop_pct: share of the side of evaluation images that is kept.
      eval_batch_size: None for `batch_size`.
      seed: of the order of training examples.
    """

    name: str = "digits"
    path: str | None = None
    data_dir: str | None = None
    channels: int | None = None
    exif_orientation: bool = True
    background: str = "white"
    value_range: Sequence[float] | None = None
    train_split: str | None = None
    val_split: str | None = None
    test_split: str | None = None
    cache_dir: str | None = None
    loader: str = "auto"
    max_on_device_gib: float = 8.0
    on_device_sharding: str = "replicated"
    num_workers: int | None = None
    on_corrupt: str = "stop"
    image_size: int = 224
    normalize: str = "symmetric"
    crop_pct: float = 1.0
    augment: Augment = NO_AUGMENT
    batch_size: int = 128
    eval_batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise UserError for a value that cannot be used."""
        for name, values in CHOICES.items():
            if getattr(self, name) not in values:
                raise UserError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(values)}")
        if self.value_range is not None and not is_range(self.value_range):
            raise UserError(f"value_range={self.value_range!r} is none; use (lowest, highest)")
        for name in ("image_size", "batch_size", "eval_batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name}={value} is too small; use at least 1")

    def open_source(self) -> base.Source:
        """Open the data set. Raises UserError as `sources.open_source`."""
        return sources.open_source(self.name, self.path, self.data_dir, self.channels, self.rules)

    @property
    def rules(self) -> PixelRules:
        rules = PixelRules(self.exif_orientation, self.background)
        return rules if self.value_ranges is None else rules.with_ranges(self.value_ranges)

    @property
    def value_ranges(self) -> ValueRanges | None:
        """`value_range` as decoders take it."""
        return None if self.value_range is None else ((float(self.value_range[0]), float(self.value_range[1])),)

    def choose_splits(self, sizes: Mapping[str, int]) -> dict[str, str | None]:
        """Return each split's specification. Raises UserError as `splits.choose_splits`."""
        return splits.choose_splits(sizes, self.train_split, self.val_split, self.test_split)

    def batch_size_of(self, role: str) -> int:
        return self.batch_size if role == "train" else self.eval_batch_size or self.batch_size

    def seed_of(self, role: str) -> int | None:
        """Return what the order of a split's examples hangs on; None for the order in which they are stored."""
        return self.seed if role == "train" else None

    @property
    def stored_size(self) -> int:
        """The largest side in pixels at which images are kept: so that crops have `image_size` pixels of it."""
        return round(self.image_size / min(self.crop_pct, self.augment.crop_share))

    def allowed_bytes(self, devices: int) -> float:
        """Return the memory that on-device images may take over all, where each device has room for
        `max_on_device_gib`; devices that are a CPU's cores have it together."""
        sharded, limit = self.on_device_sharding == "sharded", self.max_on_device_gib * 2**30
        if jax.config.values["jax_num_cpu_devices"] > 0 and jax.default_backend() == "cpu":
            return limit if sharded else limit / devices
        return limit * devices if sharded else limit
