"""Open a data set: its splits, its loader, and the range of its values, before any image is decoded."""

import contextlib
import dataclasses
from collections.abc import Mapping

from patchnets import runtime
from patchnets.augment.preprocess import check_channels
from patchnets.data import splits, value_range
from patchnets.data.bit_depth import ValueRanges
from patchnets.data.loader_choice import check_streaming, choose_loader
from patchnets.data.options import DataOptions
from patchnets.data.sources import base
from patchnets.errors import RunError


@dataclasses.dataclass(frozen=True)
class OpenedDataset:
    """An open data set with its splits, before any image is decoded."""

    options: DataOptions
    source: base.Source
    split_specs: dict[str, str | None]
    parts: dict[str, list[splits.Part]]
    loader: str  # on_device or streaming
    native: int | None  # side in pixels if all images seem to be squares of one size that are kept as they are
    level_bits: int  # 8 or 16, judged by the first image until the range of values is measured

    @property
    def train_examples(self) -> int:
        return splits.examples(self.parts["train"])

    @property
    def num_classes(self) -> int:
        return len(self.source.class_names)

    @property
    def channels(self) -> int:
        return self.source.channels

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.train_examples // self.options.batch_size)

    @property
    def has_val(self) -> bool:
        return "val" in self.parts


def open_dataset(options: DataOptions, devices: int) -> OpenedDataset:
    """Open the data set and choose its loader (`choose_loader`).

    Raises:
      UserError: the data set or a split is not available, or cannot be loaded or augmented as configured.
    """
    source = options.open_source()
    check_channels(options.augment, source.channels, options.normalize)
    split_specs = options.choose_splits(source.sizes)
    parts = {role: splits.parse_split(spec, source.sizes) for role, spec in split_specs.items() if spec}
    native = native_side(source, parts, options.stored_size)
    level_bits = level_bits_of(source, parts)
    if options.value_ranges is None and value_range.begins_deep(source.records(parts["train"][0][0])):
        level_bits = 16
    return with_loader(OpenedDataset(options, source, split_specs, parts, "", native, level_bits), devices)


def with_loader(opened: OpenedDataset, devices: int) -> OpenedDataset:
    """Return an open data set with the loader for its options and its size. Raises UserError as `open_dataset`."""
    options, source = opened.options, opened.source
    needed = decoded_bytes(source, opened.parts, options.stored_size) * opened.level_bits // 8
    fits = needed <= options.allowed_bytes(devices)
    loader = choose_loader(options, source.encoded, opened.native, fits)
    if loader == "streaming":
        check_streaming(options)
    elif options.loader == "auto" and source.encoded and not fits:
        options = dataclasses.replace(options, on_device_sharding="sharded")  # the same batches, from less memory
    return dataclasses.replace(opened, options=options, loader=loader)


def with_measured_ranges(opened: OpenedDataset) -> tuple[OpenedDataset, ValueRanges | None]:
    """Return the data set with the range of its images of more than 8 bits, measured if it is not configured, and
    print it; None if there are no such images."""
    options, source = opened.options, opened.source
    parts = [(source.records(name), low, high) for name, low, high in opened.parts["train"]]
    if (ranges := options.value_ranges) is not None:
        lines = value_range.describe(ranges, None) if value_range.has_candidates(parts) else []
    else:
        measured = _measure(opened, "train")
        if measured is None:
            for role in opened.parts:
                if role != "train" and (others := _measure(opened, role)) is not None:
                    print(value_range.describe_unmeasured(role, others), flush=True)
            return dataclasses.replace(opened, level_bits=8), None
        lines, ranges = value_range.describe(measured.ranges, measured), measured.ranges
        source = source.with_ranges(ranges)
        opened = dataclasses.replace(opened, source=source, level_bits=level_bits_of(source, opened.parts))
    for line in lines:
        print(line, flush=True)
    return opened, ranges


def _measure(opened: OpenedDataset, role: str) -> value_range.Measured | None:
    """Return the values of images of more than 8 bits in train, val or test; None if there are none."""
    source = opened.source
    parts = [(source.records(name), low, high) for name, low, high in opened.parts[role]]
    identity = f"{source.name} {source.version} {opened.split_specs[role]}"
    return value_range.measure_once(parts, source.channels, identity, runtime.cache_root(opened.options.cache_dir))


def split_names(parts: Mapping[str, list[splits.Part]]) -> list[str]:
    """Return the names of the source's splits in use, each once."""
    return list(dict.fromkeys(name for slices in parts.values() for name, _, _ in slices))


def level_bits_of(source: base.Source, parts: Mapping[str, list[splits.Part]]) -> int:
    """Return the bits of the levels to which a source's images are decoded."""
    return source.records(parts["train"][0][0]).rules.level_bits


def decoded_bytes(source: base.Source, parts: Mapping[str, list[splits.Part]], largest: int) -> int:
    """Estimate the memory of on-device images of at most this side and 8 bits, without reading them all."""
    pixels = (source.sizes[name] * stored_side(source, name, largest) ** 2 for name in split_names(parts))
    return sum(pixels) * source.channels


def stored_side(source: base.Source, split: str, largest: int) -> int:
    """Return the side in pixels of a split's on-device images, at most `largest`, judged by the first image."""
    native = None
    with contextlib.suppress(RunError):  # a broken first image is an error only when it is decoded
        native = source.records(split).native_size()
    return min(native or largest, largest)


def native_side(source: base.Source, parts: Mapping[str, list[splits.Part]], largest: int) -> int | None:
    """Return the side in pixels of all images if they seem to be squares of one size of at most `largest`."""
    sides: set[int | None] = {None}
    with contextlib.suppress(RunError):
        sides = {source.records(split).native_size() for split in split_names(parts)}
    side = sides.pop()
    return side if not sides and side is not None and side <= largest else None
