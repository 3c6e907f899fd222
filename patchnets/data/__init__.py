"""Open a data set and make the loaders of its training, validation and test splits."""

import contextlib
import dataclasses
import sys
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from patchnets import runtime
from patchnets.augment.preprocess import Preprocess, check_channels, normalization
from patchnets.data import checks, decoded_cache, splits, value_range
from patchnets.data.bit_depth import ValueRanges
from patchnets.data.loader import Loader
from patchnets.data.loader_choice import check_streaming, choose_loader, describe_crops
from patchnets.data.on_device import OnDeviceLoader
from patchnets.data.options import DataOptions
from patchnets.data.sources import base
from patchnets.errors import RunError, UserError
from patchnets.runtime.format import format_bytes, printable


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
        split_loaders = (_on_device if opened.loader == "on_device" else _streaming)(opened, mesh)
    except decoded_cache.MixedImageSizes:  # known only after reading them
        check_streaming(options)
        opened = dataclasses.replace(opened, loader="streaming", native=None)
        split_loaders = _streaming(opened, mesh)
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
    )


def with_measured_ranges(opened: OpenedDataset) -> tuple[OpenedDataset, ValueRanges | None]:
    """Return the data set with the range of its images of more than 8 bits, measured if it is not configured, and
    print it; None if there are no such images."""
    options, source = opened.options, opened.source
    parts = [(source.records(name), low, high) for name, low, high in opened.parts["train"]]
    if (ranges := options.value_ranges) is not None:
        lines = value_range.describe(ranges, None) if value_range.has_candidates(parts) else []
    else:
        identity = f"{source.name} {source.version} {opened.split_specs['train']}"
        root = runtime.cache_root(options.cache_dir)
        measured = value_range.measure_once(parts, source.channels, identity, root)
        if measured is None:
            return dataclasses.replace(opened, level_bits=8), None
        lines, ranges = value_range.describe(measured.ranges, measured), measured.ranges
        source = source.with_ranges(ranges)
        opened = dataclasses.replace(opened, source=source, level_bits=level_bits_of(source, opened.parts))
    for line in lines:
        print(line, flush=True)
    return opened, ranges


@dataclasses.dataclass(frozen=True)
class SplitLoaders:
    """Loaders and what else both kinds return."""

    loaders: dict[str, Loader]
    stored_size: int
    normalization: tuple[tuple[float, ...], ...]
    fingerprint: dict[str, Any]


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


def _on_device(opened: OpenedDataset, mesh: Mesh) -> SplitLoaders:
    """Decode what is not cached, print the memory needed, and place it on the devices.

    Raises:
      MixedImageSizes: images are not of the size of the first, and streaming was to be chosen for such.
    """
    options, source, parts = opened.options, opened.source, opened.parts
    root, max_bytes = runtime.cache_root(options.cache_dir), options.allowed_bytes(mesh.size)
    sharded, skip = options.on_device_sharding == "sharded", options.on_corrupt == "skip"
    may_resize = choose_loader(options, source.encoded, native=None, fits=True) == "on_device"

    def decode_all(keep_native: bool) -> dict[str, decoded_cache.Decoded]:
        decoded: dict[str, decoded_cache.Decoded] = {}
        for name in split_names(parts):
            bytes_so_far = sum(split.images.nbytes for split in decoded.values())
            decoded[name] = decoded_cache.load_or_decode(
                source, name, options.stored_size, root, max_bytes, bytes_so_far, keep_native, may_resize, skip
            )
        return decoded

    decoded = decode_all(keep_native=True)
    if len({split.images.shape[1] for split in decoded.values()}) > 1:  # the splits have different sizes
        decoded = decode_all(keep_native=False)
    for why in dict.fromkeys(why for split in decoded.values() for why in split.unreadable.values()):
        print(f"skipped: {printable(why)}", file=sys.stderr, flush=True)

    def gather(role: str) -> tuple[np.ndarray, np.ndarray]:
        pieces = [(decoded[name].images[low:high], decoded[name].labels[low:high]) for name, low, high in parts[role]]
        images, labels = zip(*pieces)
        return (np.concatenate(images), np.concatenate(labels)) if len(pieces) > 1 else pieces[0]

    arrays = {role: gather(role) for role in parts}
    skipped = {role: _skipped(source, decoded, parts[role]) for role in parts}
    for role, (_, labels) in arrays.items():
        if len(skipped[role]) == len(labels):
            raise RunError(f"none of the examples of {opened.split_specs[role]!r} can be read; repair or remove them")
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(source.class_names):
            raise UserError(
                f"the examples of {opened.split_specs[role]!r} have no labels, or some outside the "
                f"{len(source.class_names)} classes; choose another config.dataset.{role}_split, or none"
            )
    for line in [
        *checks.check_classes(source.class_names, np.delete(arrays["train"][1], list(skipped["train"]))),
        *checks.check_duplicates({role: images for role, (images, _) in arrays.items()}, skipped),
    ]:
        print(line, flush=True)
    total = sum(images.nbytes for images, _ in arrays.values())
    # Printed first, because placing it may run out of memory.
    share = f"{format_bytes(total / mesh.size)} of {format_bytes(total)}" if sharded else format_bytes(total)
    print(f"placing {share} of images on {'each of ' if mesh.size > 1 else ''}{mesh.size} device(s)", flush=True)
    loaders: dict[str, Loader] = {
        role: OnDeviceLoader(
            *arrays[role],
            batch_size=options.batch_size_of(role),
            mesh=mesh,
            shuffle_seed=options.seed_of(role),
            sharded=sharded,
            unreadable=skipped[role],
        )
        for role in parts
    }
    return SplitLoaders(
        loaders=loaders,
        stored_size=next(iter(decoded.values())).images.shape[1],
        normalization=normalization(options.normalize, arrays["train"][0], len(skipped["train"])),
        fingerprint={
            "examples": {role: len(labels) for role, (_, labels) in arrays.items()},
            "labels_crc32": {role: zlib.crc32(labels.tobytes()) for role, (_, labels) in arrays.items()},
            "records_crc32": {name: source.records(name).fingerprint() for name in split_names(parts)},
        },
    )


def _skipped(
    source: base.Source, decoded: Mapping[str, decoded_cache.Decoded], slices: list[splits.Part]
) -> dict[int, str]:
    """Return {position in a role's examples: name} of those that could not be read."""
    names: dict[int, str] = {}
    first = 0
    for split, low, high in slices:
        positions = [i for i in decoded[split].unreadable if low <= i < high]
        names |= {first + i - low: source.records(split).name_of(i) for i in positions}
        first += high - low
    return names


def _streaming(opened: OpenedDataset, mesh: Mesh) -> SplitLoaders:
    from patchnets.data.streaming import StreamingLoader  # needs Grain

    options, source, parts = opened.options, opened.source, opened.parts
    augment = options.augment
    known: list[Any] = [getattr(source.records(name), "labels", None) for name, _, _ in parts["train"]]
    if all(labels is not None for labels in known):  # a folder's; those of TFDS are read with the images
        train_labels = [labels[low:high] for labels, (_, low, high) in zip(known, parts["train"])]
        for line in checks.check_classes(source.class_names, np.concatenate(train_labels)):
            print(line, flush=True)
    loaders: dict[str, Loader] = {}
    for role, slices in parts.items():
        training = role == "train"
        loaders[role] = StreamingLoader(
            [(source.records(name), low, high) for name, low, high in slices],
            batch_size=options.batch_size_of(role),
            mesh=mesh,
            size=options.image_size,
            channels=source.channels,
            num_classes=len(source.class_names),
            seed=options.seed_of(role),
            crop_scale_min=augment.crop_scale_min if training else 1.0,
            crop_ratio_max=augment.crop_ratio_max,
            crop_pct=1.0 if training else options.crop_pct,
            num_workers=options.num_workers,
            on_corrupt=options.on_corrupt,
        )
    return SplitLoaders(
        loaders=loaders,
        stored_size=options.image_size,
        normalization=normalization(options.normalize, np.empty((0, 1, 1, source.channels), np.uint8)),
        fingerprint={
            "examples": {role: loader.num_examples for role, loader in loaders.items()},
            "records_crc32": {name: source.records(name).fingerprint() for name in split_names(parts)},
        },
    )
