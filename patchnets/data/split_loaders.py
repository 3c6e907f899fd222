"""The loaders of the splits of an open data set, from images on the devices or from disk."""

import dataclasses
import sys
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from patchnets import runtime
from patchnets.augment.preprocess import normalization
from patchnets.data import checks, decoded_cache, splits
from patchnets.data.loader import Loader
from patchnets.data.loader_choice import choose_loader
from patchnets.data.on_device import OnDeviceLoader
from patchnets.data.opened import OpenedDataset, split_names
from patchnets.data.sources import base
from patchnets.errors import RunError, UserError
from patchnets.runtime.format import format_bytes, printable


@dataclasses.dataclass(frozen=True)
class SplitLoaders:
    """Loaders and what else both kinds return."""

    loaders: dict[str, Loader]
    stored_size: int
    normalization: tuple[tuple[float, ...], ...]
    fingerprint: dict[str, Any]


def on_device_loaders(opened: OpenedDataset, mesh: Mesh) -> SplitLoaders:
    """Decode what is not cached, print the memory needed, and place it on the devices.

    Raises:
      UserError: images take more memory than is allowed, or have no labels.
      RunError: an image cannot be decoded.
      MixedImageSizes: images are not of the size of the first, and streaming was to be chosen for such.
    """
    options, source, parts = opened.options, opened.source, opened.parts
    sharded = options.on_device_sharding == "sharded"
    decoded = _decode_splits(opened, options.allowed_bytes(mesh.size))
    for why in dict.fromkeys(why for split in decoded.values() for why in split.unreadable.values()):
        print(f"skipped: {printable(why)}", file=sys.stderr, flush=True)
    arrays = {role: _gather(decoded, slices) for role, slices in parts.items()}
    skipped = {role: _skipped(source, decoded, slices) for role, slices in parts.items()}
    _check_examples(opened, arrays, skipped)
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


def _decode_splits(opened: OpenedDataset, max_bytes: float) -> dict[str, decoded_cache.Decoded]:
    """Return the images and labels of the source's splits in use, all of one size. Raises as `on_device_loaders`."""
    options, source = opened.options, opened.source
    root, skip = runtime.cache_root(options.cache_dir), options.on_corrupt == "skip"
    may_resize = choose_loader(options, source.encoded, native=None, fits=True) == "on_device"

    def decode_all(keep_native: bool) -> dict[str, decoded_cache.Decoded]:
        decoded: dict[str, decoded_cache.Decoded] = {}
        for name in split_names(opened.parts):
            bytes_so_far = sum(split.images.nbytes for split in decoded.values())
            decoded[name] = decoded_cache.load_or_decode(
                source, name, options.stored_size, root, max_bytes, bytes_so_far, keep_native, may_resize, skip
            )
        return decoded

    decoded = decode_all(keep_native=True)
    if len({split.images.shape[1] for split in decoded.values()}) > 1:  # the splits have different sizes
        decoded = decode_all(keep_native=False)
    return decoded


def _gather(decoded: Mapping[str, decoded_cache.Decoded], slices: list[splits.Part]) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of train, val or test."""
    pieces = [(decoded[name].images[low:high], decoded[name].labels[low:high]) for name, low, high in slices]
    images, labels = zip(*pieces)
    return (np.concatenate(images), np.concatenate(labels)) if len(pieces) > 1 else pieces[0]


def _check_examples(
    opened: OpenedDataset,
    arrays: Mapping[str, tuple[np.ndarray, np.ndarray]],
    skipped: Mapping[str, Mapping[int, str]],
) -> None:
    """Print what makes figures mean less than they seem to. Raise an error for labels outside the classes, or if all
    examples of train, val or test are skipped."""
    class_names = opened.source.class_names
    for role, (_, labels) in arrays.items():
        if len(skipped[role]) == len(labels):
            raise RunError(f"none of the examples of {opened.split_specs[role]!r} can be read; repair or remove them")
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(class_names):
            raise UserError(
                f"the examples of {opened.split_specs[role]!r} have no labels, or some outside the "
                f"{len(class_names)} classes; choose another config.dataset.{role}_split, or none"
            )
    for line in [
        *checks.check_classes(class_names, np.delete(arrays["train"][1], list(skipped["train"]))),
        *checks.check_duplicates({role: images for role, (images, _) in arrays.items()}, skipped),
    ]:
        print(line, flush=True)


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


def streaming_loaders(opened: OpenedDataset, mesh: Mesh) -> SplitLoaders:
    """Return loaders that read images while training. Raises UserError if Grain cannot read them."""
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
