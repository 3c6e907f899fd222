"""Open a data set and make the loaders of its training, validation and test splits."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from patchnets.augment.preprocess import Preprocess
from patchnets.data import decoded_cache
from patchnets.data.bit_depth import ValueRanges
from patchnets.data.loader import Loader
from patchnets.data.loader_choice import check_streaming, describe_crops
from patchnets.data.opened import (
    OpenedDataset,
    open_dataset,
    split_names,
    stored_side,
    with_loader,
    with_measured_ranges,
)
from patchnets.data.options import DataOptions
from patchnets.data.split_loaders import on_device_loaders, streaming_loaders
from patchnets.runtime.format import printable

__all__ = [
    "DataOptions",
    "Dataset",
    "OpenedDataset",
    "load_dataset",
    "load_opened",
    "open_dataset",
    "split_names",
    "stored_side",
    "with_measured_ranges",
]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The loaders of a run. `val` and `test` are None if the data set has no such split."""

    name: str
    class_names: tuple[str, ...]
    channels: int
    loader: str  # on_device or streaming
    stored_size: int  # side in pixels of the images before the step resizes them
    train: Loader
    val: Loader | None
    test: Loader | None
    split_specs: dict[str, str | None]
    fingerprint: dict[str, Any]  # must be the same when a run resumes
    preprocess: Preprocess
    value_ranges: ValueRanges | None = None  # of images of more than 8 bits, as in `pixel_rules.PixelRules`
    level_bits: int = 8  # of the images before the step, as in `pixel_rules.PixelRules`
    version: str = ""  # changes with the files of the data set, which the fingerprint does not always

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def steps_per_epoch(self) -> int:
        return self.train.steps_per_epoch

    @property
    def has_val(self) -> bool:
        return self.val is not None

    @property
    def loaders(self) -> list[Loader]:
        return [loader for loader in (self.train, self.val, self.test) if loader is not None]

    @property
    def unreadable(self) -> set[str]:
        """Names of the records skipped so far because they could not be read."""
        return set().union(*(loader.unreadable for loader in self.loaders))

    def close(self) -> None:
        for loader in self.loaders:
            loader.close()


def load_dataset(options: DataOptions, mesh: Mesh) -> Dataset:
    """Open a data set and return its loaders; images for the devices are decoded.

    Raises:
      UserError: the data set or a split is not available as configured.
      RunError: an image cannot be decoded.
    """
    return load_opened(open_dataset(options, mesh.size), mesh)


def load_opened(opened: OpenedDataset, mesh: Mesh) -> Dataset:
    """Return the loaders of an open data set, as `load_dataset`.

    Raises:
      UserError: the data set or a split is not available as configured.
      RunError: an image cannot be decoded.
    """
    for note in opened.source.notes:
        print(printable(note), flush=True)
    judged_by_first = opened.level_bits
    opened, value_ranges = with_measured_ranges(opened)
    if opened.level_bits > judged_by_first:
        opened = with_loader(opened, mesh.size)
    options, source = opened.options, opened.source
    try:
        split_loaders = (on_device_loaders if opened.loader == "on_device" else streaming_loaders)(opened, mesh)
    except decoded_cache.MixedImageSizes:  # known only after reading them
        check_streaming(options)
        opened = dataclasses.replace(opened, loader="streaming", native=None)
        split_loaders = streaming_loaders(opened, mesh)
    on_device = opened.loader == "on_device"
    kept = opened.native if not on_device or opened.native == split_loaders.stored_size else None
    for line in describe_crops(options, opened.loader, kept):
        print(line, flush=True)
    mean, std = split_loaders.normalization
    return Dataset(
        name=source.name,
        class_names=source.class_names,
        channels=source.channels,
        loader=opened.loader,
        stored_size=split_loaders.stored_size,
        train=split_loaders.loaders["train"],
        val=split_loaders.loaders.get("val"),
        test=split_loaders.loaders.get("test"),
        split_specs=opened.split_specs,
        fingerprint={"name": source.name, "classes": list(source.class_names)}
        | ({} if value_ranges is None else {"value_ranges": [list(pair) for pair in value_ranges]})
        | ({} if opened.level_bits == 8 else {"level_bits": opened.level_bits})
        | split_loaders.fingerprint,
        preprocess=Preprocess(options.image_size, mean, std, options.augment, options.crop_pct, cropped=not on_device),
        value_ranges=value_ranges,
        level_bits=opened.level_bits,
        version=source.version,
    )
