"""The range of values in training images of more than 8 bits: it becomes that of levels, in every split and in use."""

import concurrent.futures
import contextlib
import hashlib
import json
import pathlib
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from patchnets.data import decode
from patchnets.data.bit_depth import ValueRanges, to_levels
from patchnets.data.sources.base import Records, Source
from patchnets.errors import UserError
from patchnets.runtime.files import write_atomically
from patchnets.runtime.format import list_names

VERSION = 2  # changes when the same images measure otherwise
CHUNK = 64  # images that a thread reads at a time
SAMPLED_IMAGES, SAMPLED_VALUES = 256, 10_000  # images, and values of each, that tell how values lie in their range
FEW_LEVELS, SHARE = 48, 1e-4  # levels that hold at least this share of the values, below which they are too few
Parts = Sequence[tuple[Records, int, int]]
Job = tuple[Records, int]


class Measured(NamedTuple):
    """Values of images of more than 8 bits: a pair for each channel, or one for all channels of gray and RGB images.

    Attributes:
      ranges: lowest and highest.
      usual: between which nearly all others lie, for a range of which so little is used that images lack contrast; None
        for others.
    """

    ranges: ValueRanges
    usual: tuple[tuple[float, float] | None, ...]


def measure(parts: Parts, channels: int) -> Measured | None:
    """Return the values of a split's images of more than 8 bits; None if it has no such image.

    Images that cannot be read do not count; training names them.

    Args:
      parts: (records, first, one past the last) of each part of the split.
      channels: of the data set.
    """
    jobs: list[Job] = [
        (records, position)
        for records, low, high in parts
        for position in records.deep_candidates()
        if low <= position < high
    ]
    chunks = [jobs[first : first + CHUNK] for first in range(0, len(jobs), CHUNK)]
    stopped = threading.Event()  # Ctrl-C waits for the images that are being read, not for their chunks

    def read(chunk: list[Job]) -> list[tuple[Job, np.ndarray]]:
        unread = (job for job in chunk if not stopped.is_set())
        return [(job, span) for job in unread if (span := _span(job, channels)) is not None]

    bar = tqdm(total=len(jobs), desc="measuring values", unit=" images", disable=None, leave=False)
    deep: list[tuple[Job, np.ndarray]] = []
    with concurrent.futures.ThreadPoolExecutor() as pool, bar:
        try:
            for chunk, measured in zip(chunks, pool.map(read, chunks)):
                deep += measured
                bar.update(len(chunk))
        finally:
            stopped.set()
    if not deep:
        return None
    spans = np.array([span for _, span in deep])
    ranges = np.stack([spans[:, 0].min(0), spans[:, 1].max(0)], axis=-1)
    ranges[~np.isfinite(ranges).all(-1)] = 0.0, 1.0  # a channel without a finite value
    constant = ranges[:, 0] == ranges[:, 1]
    ranges[constant, 1] += np.maximum(1.0, 1e-3 * np.abs(ranges[constant, 0]))
    sample = deep[:: -(-len(deep) // SAMPLED_IMAGES)]
    values = np.concatenate([column for job, _ in sample if (column := _sampled_values(job, channels)) is not None])
    usual = tuple(_usual(column, low, high) for column, (low, high) in zip(values.T, ranges))
    return Measured(tuple((float(low), float(high)) for low, high in ranges), usual)


def _values(job: Job, channels: int) -> Float[np.ndarray, "pixels ranges"] | None:
    """Return the values of an image, in a column for each channel that has a range of its own; None for 8 bits, or if
    the image cannot be read."""
    records, position = job
    with contextlib.suppress(Exception):  # whatever broken files make decoders raise
        values = decode.deep_values(records.stored(position))
        if values is not None:
            return values.reshape(-1, channels if channels not in (1, 3) else 1).astype(np.float64)
    return None


def _sampled_values(job: Job, channels: int) -> Float[np.ndarray, "pixels ranges"] | None:
    """Return some of `_values`, as a copy: many whole images would take gigabytes."""
    values = _values(job, channels)
    return None if values is None else values[:: -(-len(values) // SAMPLED_VALUES)].copy()


def _span(job: Job, channels: int) -> Float[np.ndarray, "2 ranges"] | None:
    """Return the lowest and highest finite values of an image, infinite and reversed if there are none."""
    values = _values(job, channels)
    if values is None:
        return None
    finite = np.isfinite(values)
    return np.array([values.min(0, where=finite, initial=np.inf), values.max(0, where=finite, initial=-np.inf)])


def _usual(values: Float[np.ndarray, " values"], low: float, high: float) -> tuple[float, float] | None:
    """Return between which values nearly all lie, the ends of the range apart; None if they use many of 256 levels."""
    values = values[np.isfinite(values)]
    counts = np.bincount(to_levels(values[:, None], ((low, high),)).ravel(), minlength=256)
    inner = values[(values > low) & (values < high)]
    if (counts >= SHARE * len(values)).sum() >= FEW_LEVELS or len(np.unique(inner)) < FEW_LEVELS:
        return None
    below, above = np.percentile(inner, (0.5, 99.5))
    return float(below), float(above)


def with_measured_ranges(source: Source) -> Source:
    """Return a data set with the range of its images of more than 8 bits in train, and print it.

    Print a warning for other splits with such images beside a train without. Nothing is kept in a cache.
    """
    for split in sorted(source.sizes, key=lambda name: name != "train"):
        with contextlib.suppress(UserError):  # a split that cannot be used
            measured = measure([(source.records(split), 0, source.sizes[split])], source.channels)
            if measured is not None and split == "train":
                print("\n".join(describe(measured.ranges, measured)), flush=True)
                return source.with_ranges(measured.ranges)
            if measured is not None:
                print(describe_unmeasured(split, measured), flush=True)
    return source


def begins_deep(records: Records) -> bool:
    """Return whether the first of the images that may have more than 8 bits does."""
    candidates = records.deep_candidates()
    with contextlib.suppress(Exception):  # whatever broken files make decoders raise
        return bool(len(candidates)) and decode.is_deep(records.stored(candidates[0]))
    return False


def has_candidates(parts: Parts) -> bool:
    """Return whether any image may have more than 8 bits, without reading them."""
    return any(len(records.deep_candidates()) for records, _, _ in parts)


def measure_once(parts: Parts, channels: int, identity: str, root: pathlib.Path) -> Measured | None:
    """Return `measure`, which is kept in the cache of decoded images.

    Args:
      identity: changes with the images and the split.
      root: folder of caches.
    """
    if not has_candidates(parts):
        return None
    stamp = f"{identity} {VERSION}".encode(errors="surrogateescape")
    path = root / "value_ranges" / f"{hashlib.sha256(stamp).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        kept = json.loads(path.read_text())
        if kept is None:
            return None
        ranges, usual = ([None if pair is None else (float(pair[0]), float(pair[1])) for pair in part] for part in kept)
        return Measured(tuple(pair for pair in ranges if pair is not None), tuple(usual))
    measured = measure(parts, channels)
    with contextlib.suppress(OSError):  # a disk that cannot be written is an error where images are decoded
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(measured))
    return measured


def describe_unmeasured(split: str, measured: Measured) -> str:
    """Return a line about images of more than 8 bits in a split beside a train that has none."""
    low, high = (limit(column) for limit, column in zip((min, max), zip(*measured.ranges)))
    return (
        f"WARNING: {split} has images of more than 8 bits, with values from {low:,.6g} to {high:,.6g}, and train has "
        "none: of theirs, 0 to 65,535 become levels 0 to 255; to name their range instead, set "
        f"config.dataset.value_range=({low:.6g},{high:.6g})"
    )


def describe(ranges: ValueRanges, measured: Measured | None) -> list[str]:
    """Return lines about the ranges in use: where they come from, and whether extreme values make them too wide."""
    origin = "config.dataset.value_range" if measured is None else "the range in train"
    shown = list_names([f"{low:,.6g} to {high:,.6g}" for low, high in ranges])
    each = " (one for each channel)" if len(ranges) > 1 else ""
    lines = [
        f"images of more than 8 bits: values from {shown}{each}, {origin}, become levels 0 to 255, kept in 16 bits"
    ]
    for number, pair in enumerate(measured.usual if measured else ()):
        if pair is not None:
            which = f" of channel {number}" if len(ranges) > 1 else ""
            below, above = pair
            lines.append(
                f"WARNING: nearly all values{which} lie between {below:,.6g} and {above:,.6g}, so that images have "
                f"little contrast; name their range, as config.dataset.value_range=({below:.6g},{above:.6g})"
            )
    return lines
