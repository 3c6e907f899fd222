"""What a data set holds, found out by decoding every image once: `inspect`."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import io
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image
from tqdm import tqdm

from patchnets.data import bit_depth, checks, decode
from patchnets.data.pixels import EXIF_ORIENTATION
from patchnets.data.sources.base import Records, Source
from patchnets.errors import RunError, UserError, first_line
from patchnets.runtime.format import list_names, printable

CHUNK = 64  # images that a thread reads at a time
SHOWN_CLASSES, SHOWN_GROUPS = 20, 3  # of which the lines show details; the JSON has all classes, and LISTED groups
LISTED = 1000
UNLABELED = -1


class ImageFacts(NamedTuple):
    """One image: its label, and None for what is not known of an unreadable one.

    Attributes:
      size: (height, width) in pixels, as stored.
      kind: format and mode, as Pillow calls them: "JPEG RGB".
      turned: its EXIF orientation is another than upright.
      frames: of an animation, of which the first is used.
      digest: a hash of the decoded pixels.
      error: why it cannot be read.
    """

    label: int
    size: tuple[int, int] | None = None
    kind: str | None = None
    turned: bool = False
    frames: int = 1
    digest: bytes | None = None
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The facts about all images of a data set, in the order of its records.

    Attributes:
      problems: lines about splits that cannot be used.
    """

    source: Source
    facts: dict[str, list[ImageFacts]]  # by split
    problems: tuple[str, ...] = ()

    def labels(self, split: str) -> Int[np.ndarray, " images"]:
        """Return the labels of a split, UNLABELED for images without."""
        return np.array([fact.label for fact in self.facts[split]], np.int64)

    def counts(self, split: str) -> dict[str, int]:
        """Return the number of images of each class."""
        labels = self.labels(split)
        counts = np.bincount(labels[labels >= 0], minlength=len(self.source.class_names))
        return dict(zip(self.source.class_names, counts.tolist()))

    def name(self, split: str, position: int) -> str:
        return self.source.records(split).name_of(position)

    def unreadable(self) -> list[str]:
        """Return a line about every image that cannot be read."""
        return [fact.error for facts in self.facts.values() for fact in facts if fact.error is not None]

    def groups(self) -> list[list[tuple[str, int]]]:
        """Return the (split, position)s of images that are the same pixel for pixel, a list for each such image."""
        same: dict[bytes, list[tuple[str, int]]] = collections.defaultdict(list)
        for split, facts in self.facts.items():
            for position, fact in enumerate(facts):
                if fact.digest is not None:
                    same[fact.digest].append((split, position))
        return [group for group in same.values() if len(group) > 1]

    def to_json(self) -> dict[str, Any]:
        """Return all figures, as inspection.json has them."""
        known = [fact for facts in self.facts.values() for fact in facts if fact.size is not None]
        sizes = collections.Counter(fact.size for fact in known if fact.size).most_common(LISTED)
        groups = self.groups()
        return dict(
            name=self.source.name,
            channels=self.source.channels,
            splits={
                split: dict(
                    images=len(facts),
                    unlabeled=int((self.labels(split) == UNLABELED).sum()),
                    classes=self.counts(split),
                )
                for split, facts in self.facts.items()
            },
            kinds=dict(collections.Counter(fact.kind for fact in known).most_common()),
            sizes={f"{height} x {width}": count for (height, width), count in sizes},
            turned=sum(fact.turned for fact in known),
            animated=sum(fact.frames > 1 for fact in known),
            unreadable=self.unreadable()[:LISTED],
            repeated_within={split: repeats(groups, split) for split in self.facts},
            shared_between={f"{a}, {b}": count for (a, b), count in shared(groups, tuple(self.facts)).items()},
            same_pixels=[[self.name(*image) for image in group] for group in groups[:LISTED]],
            other_labels=[[self.name(*image) for image in group] for group in self.contradictions(groups)[:LISTED]],
            problems=list(self.problems),
        )

    def contradictions(self, groups: list[list[tuple[str, int]]]) -> list[list[tuple[str, int]]]:
        """Return the groups of images that are the same and have different labels."""
        return [group for group in groups if len({self.facts[split][position].label for split, position in group}) > 1]


def repeats(groups: list[list[tuple[str, int]]], split: str) -> int:
    """Return how many images of a split are in it more than once, all but the first of each."""
    return sum(max(0, sum(name == split for name, _ in group) - 1) for group in groups)


def shared(groups: list[list[tuple[str, int]]], splits: Sequence[str]) -> dict[tuple[str, str], int]:
    """Return {(split, later split): number of images of the later that are in the other too}."""
    counts = {}
    for i, first in enumerate(splits):
        for second in splits[i + 1 :]:
            both = [names for group in groups if {first, second} <= set(names := [split for split, _ in group])]
            counts[first, second] = sum(names.count(second) for names in both)
    return counts


def inspect(source: Source) -> Inspection:
    """Read and decode every image of a data set.

    What cannot be read is part of the result. Raises UserError if no split can be used.
    """
    facts, problems = {}, []
    for split in source.sizes:
        try:
            facts[split] = _read_split(source, split)
        except UserError as error:
            problems.append(str(error))
    if not facts:
        raise UserError("; ".join(problems) or f"{source.name} holds no split")
    return Inspection(source, facts, tuple(problems))


def _read_split(source: Source, split: str) -> list[ImageFacts]:
    records, facts = source.records(split), []
    chunks = [range(i, min(i + CHUNK, len(records))) for i in range(0, len(records), CHUNK)]
    stopped = threading.Event()  # Ctrl-C waits for the images that are being read, not for their chunks
    read = lambda chunk: [_read(source, records, position) for position in chunk if not stopped.is_set()]
    bar = tqdm(total=len(records), desc=f"reading {split}", unit=" images", disable=None, leave=False)
    with concurrent.futures.ThreadPoolExecutor() as pool, bar:
        try:
            for part in pool.map(read, chunks):
                facts += part
                bar.update(len(part))
        finally:
            stopped.set()
    return facts


def _read(source: Source, records: Records, position: int) -> ImageFacts:
    label = UNLABELED
    try:
        if not source.encoded:
            ((pixels, label),) = records.examples([position])
            return ImageFacts(label, pixels.shape[:2], f"array {pixels.dtype}", digest=_digest(pixels))
        data, label = records.encoded(position)
        label = label if 0 <= label < len(source.class_names) else UNLABELED
        pixels = decode.decode_image(data, records.name_of(position), source.channels, rules=records.rules)
        return ImageFacts(label, *_header(data), _digest(pixels))
    except RunError as error:
        return ImageFacts(label, error=str(error))
    except Exception as error:  # whatever broken records make a reader raise
        return ImageFacts(label, error=f"{records.name_of(position)} cannot be read ({first_line(error)})")


def _header(data: bytes) -> tuple[tuple[int, int], str, bool, int]:
    """Return size, kind, turned and frames, as in `ImageFacts`."""
    if bit_depth.is_array_file(data):
        shape, dtype = bit_depth.array_header(data)[:2]
        return shape[:2], f"array {dtype}", False, 1
    with Image.open(io.BytesIO(data), formats=decode.formats()) as file:
        turned = file.getexif().get(EXIF_ORIENTATION, 1) in range(2, 9)
        return (file.height, file.width), f"{file.format} {file.mode}", turned, getattr(file, "n_frames", 1)


def _digest(pixels: np.ndarray) -> bytes:
    shape = str(pixels.shape).encode()
    return hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), digest_size=16, salt=shape[:16]).digest()


def describe(inspection: Inspection) -> Iterator[str]:
    """Yield the lines of the screen."""
    source, facts = inspection.source, inspection.facts
    known = [fact for split in facts.values() for fact in split if fact.size is not None]
    yield f"{printable(source.name)}: {len(source.class_names):,} classes, {source.channels} channel(s)"
    yield from map(printable, source.notes)
    yield from map(printable, inspection.problems)
    yield ""
    yield from _table(inspection)
    yield ""
    if known:
        kinds = collections.Counter(fact.kind or "" for fact in known).most_common()
        yield "kinds       " + list_names([f"{kind} {count:,}" for kind, count in kinds], limit=8)
        yield "sizes       " + _sizes(np.array([fact.size for fact in known]))
    if turned := sum(fact.turned for fact in known):
        yield f"turned      {turned:,} images by their EXIF orientation (config.dataset.exif_orientation)"
    if animated := sum(fact.frames > 1 for fact in known):
        yield f"animated    {animated:,} images, of which the first frame is used"
    if "train" in facts:
        labels = inspection.labels("train")
        yield from checks.check_classes(source.class_names, labels[labels >= 0])
    for split in facts:
        if count := int((inspection.labels(split) == UNLABELED).sum()):
            yield f"WARNING: {count:,} images of {split} have no label"
    if unreadable := inspection.unreadable():
        yield f"WARNING: {len(unreadable):,} images cannot be read; training stops at one, unless it is to skip them"
        yield from (f"  {printable(line)}" for line in unreadable[:SHOWN_GROUPS])
    yield from _duplicates(inspection)


def _table(inspection: Inspection) -> Iterator[str]:
    """Yield the lines of a table of images by class and split; of many classes, the largest and the smallest."""
    counts = {split: inspection.counts(split) for split in inspection.facts}
    total = {name: sum(count[name] for count in counts.values()) for name in inspection.source.class_names}
    ranked = sorted(total, key=lambda name: -total[name])
    left_out = len(ranked) - SHOWN_CLASSES
    half = SHOWN_CLASSES // 2
    shown = ranked if left_out <= 0 else [*ranked[:half], "", *ranked[-half:]]
    rows = [("class", *counts), ("all", *(f"{len(facts):,}" for facts in inspection.facts.values()))]
    for name in shown:
        if name:
            rows.append((printable(name), *(f"{count[name]:,}" for count in counts.values())))
        else:
            rows.append((f"... {left_out:,} more", *("" for _ in counts)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *others in rows:
        yield "  ".join(
            [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:]))]
        ).rstrip()


def _sizes(sizes: Int[np.ndarray, "images 2"]) -> str:
    different = np.unique(sizes, axis=0)
    if len(different) == 1:
        return f"{sizes[0][1]} x {sizes[0][0]} pixels (width x height)"
    low, middle, high = (np.percentile(sizes, share, axis=0, method="nearest") for share in (0, 50, 100))
    widths, heights = (f"{low[i]:,} to {high[i]:,} pixels, median {middle[i]:,}" for i in (1, 0))
    longer = int((sizes.max(axis=1) > 2 * sizes.min(axis=1)).sum())
    return (
        f"{len(different):,} different; width {widths}; height {heights}"
        + f"; {longer:,} more than twice as long on one side" * (longer > 0)
    )


def _duplicates(inspection: Inspection) -> Iterator[str]:
    """Yield lines about images that are the same, with names of a few."""
    groups = inspection.groups()
    names = lambda group: list_names([printable(inspection.name(*image)) for image in group], limit=3)
    for split, facts in inspection.facts.items():
        if count := repeats(groups, split):
            yield f"repeated    {count:,} of {len(facts):,} {split} images are in it more than once, pixel for pixel"
    for (first, second), count in shared(groups, tuple(inspection.facts)).items():
        if count:
            total = len(inspection.facts[second])
            yield f"WARNING: {count:,} of {total:,} {second} images are in {first} too, pixel for pixel"
    if contradictory := inspection.contradictions(groups):
        yield f"WARNING: {len(contradictory):,} images are there under different labels"
    yield from (f"  {names(group)}" for group in (contradictory or groups)[:SHOWN_GROUPS])
