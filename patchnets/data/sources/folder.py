"""Source for a folder of your own images: train/CLASS/..., optionally val/CLASS/ and test/CLASS/.

Reads every format that Pillow itself decodes, in nested folders too. `notes` names the files that are ignored.
"""

import collections
import contextlib
import copy
import functools
import hashlib
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from patchnets.data import decode
from patchnets.data.bit_depth import ARRAY_SUFFIX, ValueRanges
from patchnets.data.pixel_rules import DEFAULT_RULES, PixelRules
from patchnets.data.sources.base import Example
from patchnets.data.sources.walk import folder_of, list_folders, status, walk_files
from patchnets.errors import RunError, UserError, first_line
from patchnets.runtime.format import list_names, same_name

# Usual names of each split's folder, in upper or lower case.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
EXPECTED = "CLASS/*.jpg, *.png or another format that Pillow reads"
# A change of contents is noticed by all sizes, and the bytes of all files or of about as many of a larger split.
MAX_HASHED_BYTES, NUM_HASHED = 2**26, 512
EIGHT_BITS = (b".jpg", b".jpeg", b".jpe", b".jfif", b".gif", b".bmp", b".dib", b".webp")  # formats of no more
EIGHT_BIT_BEGINNINGS = (b"\xff\xd8", b"GIF8", b"BM", b"RIFF")  # of their files


class File(NamedTuple):
    """An image: its sort key, its name in its class's folder, its label, and a stamp that changes with the file."""

    order: bytes
    name: str
    label: int
    stamp: str
    size: int = 0  # in bytes


class FolderRecords:
    """Images of one split. Names are one array, because there may be millions and workers get a copy."""

    def __init__(
        self,
        directory: pathlib.Path,
        class_names: Sequence[str],
        files: Sequence[File],
        channels: int,
        rules: PixelRules = DEFAULT_RULES,
    ):
        self.content, self.misnamed = 0, False  # set by `read_contents`
        self.directory, self.class_names, self.channels = directory, tuple(class_names), channels
        self.rules = rules
        self.file_names = np.array([os.fsencode(file.name) for file in files])
        self.labels = np.array([file.label for file in files], np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> int:
        names = zlib.crc32(b"/".join(self.file_names.tolist()))
        return zlib.crc32(str(self.content).encode(), zlib.crc32(self.labels.astype("<i4").tobytes(), names))

    def path(self, position: int) -> pathlib.Path:
        return self.directory / self.class_names[self.labels[position]] / os.fsdecode(self.file_names[position])

    def examples(self, positions: Sequence[int], size: int | None = None) -> list[Example]:
        chosen = [(self.path(i), int(self.labels[i])) for i in positions]
        return [
            (decode.decode_image(path, str(path), self.channels, size, rules=self.rules), label)
            for path, label in chosen
        ]

    def native_size(self, position: int = 0) -> int | None:
        height, width = decode.image_size(self.path(position), self.name_of(position))
        return height if height == width else None

    def encoded(self, position: int) -> tuple[bytes, int]:
        try:
            return self.path(position).read_bytes(), int(self.labels[position])
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise RunError(f"{self.name_of(position)} cannot be read ({reason}); repair or remove it") from error

    def stored(self, position: int) -> pathlib.Path:
        return self.path(position)

    def deep_candidates(self) -> Sequence[int]:
        if self.misnamed:
            return range(len(self))
        return [i for i, name in enumerate(self.file_names.tolist()) if not name.lower().endswith(EIGHT_BITS)]

    def name_of(self, position: int) -> str:
        return str(self.path(position))


def read_contents(records: FolderRecords, sizes: Sequence[int]) -> None:
    """Read all files, or evenly spaced ones of a large split, for what hangs on their contents.

    Set `content`, a CRC-32 of their contents and of the sizes of all files, and `misnamed`, whether any of them has
    more than 8 bits and the name of a format that has no more. Files that cannot be read do not count; reading them as
    images raises their error.
    """
    records.content = zlib.crc32(np.array(sizes, "<i8").tobytes())
    step = 1 if sum(sizes) <= MAX_HASHED_BYTES else max(1, len(sizes) // NUM_HASHED)
    for position in range(0, len(sizes), step):
        with contextlib.suppress(OSError):
            contents = records.path(position).read_bytes()
            records.content = zlib.crc32(contents, records.content)
            if not records.misnamed and bytes(records.file_names[position]).lower().endswith(EIGHT_BITS):
                records.misnamed = _is_deep(contents)


def _is_deep(contents: bytes) -> bool:
    """Return whether an image has more than 8 bits; not for one that cannot be read."""
    with contextlib.suppress(Exception):  # whatever broken files make decoders raise
        return not contents.startswith(EIGHT_BIT_BEGINNINGS) and decode.is_deep(contents)
    return False


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the formats that Pillow decodes by itself."""
    names = decode.formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in names)


@functools.cache
def file_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the images in a class's folder: those of Pillow and of arrays."""
    return image_suffixes() | {ARRAY_SUFFIX}


class Folder:
    """A folder as a source. Classes are the folders in train/, sorted; images are gray if all of train are.

    Files are ordered by a hash of their path below the root, so that the last 10% is a fair sample of all classes, the
    order is the same on every machine, and a new file does not move the others. Problems in val/ or test/ are errors
    only if that split is read, so that val_split=none or test_split=none avoids them.

    Attributes:
      notes: lines to print about files that are ignored.
    """

    name = "folder"
    encoded = True

    def __init__(self, path: str, channels: int | None = None, rules: PixelRules = DEFAULT_RULES):
        """Open the folder; `channels` (1 or 3) overrides those of the images."""
        self.root = pathlib.Path(path).expanduser().resolve()
        self.notes: list[str] = []
        directories = self._split_directories(path)
        self.class_names = list_folders(directories["train"])
        if not self.class_names:
            raise UserError(f"{directories['train']} holds no class folders; expected train/{EXPECTED}")
        self._errors: dict[str, UserError] = {}
        files_of: dict[str, list[File]] = {}
        folders_of: dict[str, tuple[str, ...]] = {}
        for split, directory in directories.items():
            try:
                actual = folder_of(directory)
                folders_of[split] = tuple(actual.get(same_name(name), name) for name in self.class_names)
                files_of[split] = self._scan(split, directory)
            except UserError as error:
                if split == "train":
                    raise
                folders_of[split], files_of[split], self._errors[split] = self.class_names, [], error
        self.channels = channels or self._count_channels(directories["train"], files_of["train"])
        self.rules = rules
        self._records = {}
        for split, files in files_of.items():
            records = FolderRecords(directories[split], folders_of[split], files, self.channels, rules)
            read_contents(records, [file.size for file in files])
            self._records[split] = records
        # A split with an error counts as one example, so that using it raises that error and not "empty".
        self.sizes: Mapping[str, int] = {split: len(files) or 1 for split, files in files_of.items()}
        stamps = [file.stamp for files in files_of.values() for file in files]
        stamps += [str(records.content) for records in self._records.values()]
        stamps += [] if channels is None else [f"{channels} channels"]
        self._stamps = tuple(stamps)

    @property
    def version(self) -> str:
        stamps = (str(self.root), self.rules.tag, *self._stamps)
        return hashlib.sha256("\n".join(stamps).encode(errors="surrogateescape")).hexdigest()[:16]

    def with_ranges(self, ranges: ValueRanges) -> "Folder":
        source = copy.copy(self)
        source.rules = self.rules.with_ranges(ranges)
        source._records = {split: copy.copy(records) for split, records in self._records.items()}
        for records in source._records.values():
            records.rules = source.rules
        return source

    def _split_directories(self, path: str) -> dict[str, pathlib.Path]:
        """Return the folder of each split. Raise UserError without train/, or for two folders of one split."""
        split_of = {name: split for split, names in SPLIT_NAMES.items() for name in names}
        directories: dict[str, pathlib.Path] = {}
        unused = []
        for name in list_folders(self.root) if self.root.is_dir() else ():
            split = split_of.get(name.lower())
            if split is None:
                unused.append(f"{name}/")
            elif split in directories:
                first = directories[split].name
                raise UserError(
                    f"{self.root} holds both {first}/ and {name}/, which both mean {split}; remove or rename one"
                )
            else:
                directories[split] = self.root / name
        if "train" not in directories:
            raise UserError(f"config.dataset.path={path}: no folder train/ in it; expected train/{EXPECTED}")
        if unused:
            self.notes.append(f"{self.root}: not used: {list_names(unused)}")
        return {split: directories[split] for split in SPLIT_NAMES if split in directories}

    def _scan(self, split: str, root: pathlib.Path) -> list[File]:
        """Return the images of one split, in their fixed order. Raise UserError for an empty or unexpected class."""
        files: list[File] = []
        passed_over: collections.Counter[str] = collections.Counter()
        none = f"; or set config.dataset.{split}_split=none" if split != "train" else ""
        label_of = {same_name(name): label for label, name in enumerate(self.class_names)}
        for class_name in list_folders(root):
            directory = root / class_name
            if same_name(class_name) not in label_of:
                raise UserError(
                    f"{directory} is a class that train/ does not have; add it there or remove it here{none}"
                )
            label, before = label_of[same_name(class_name)], len(files)
            for name, entry in walk_files(directory):
                suffix = os.path.splitext(name)[1].lower()
                if suffix not in file_suffixes():
                    passed_over[suffix or "no suffix"] += 1
                    continue
                relative, stat = f"{split}/{class_name}/{name}", status(entry)
                order = hashlib.sha256(relative.encode(errors="surrogateescape")).digest()
                files.append(File(order, name, label, f"{relative} {stat.st_size} {stat.st_mtime_ns}", stat.st_size))
            if len(files) == before:
                raise UserError(
                    f"{directory} holds no images; put .jpg, .png or others there, or remove the folder{none}"
                )
        if not files:
            raise UserError(f"{root} holds no class folders; expected {root.name}/{EXPECTED}{none}")
        if passed_over:
            kinds = ", ".join(f"{suffix} {count:,}" for suffix, count in passed_over.most_common(5))
            self.notes.append(f"{root}: {passed_over.total():,} files are no images that Pillow reads ({kinds})")
        return sorted(files, key=lambda file: file.order)

    def _count_channels(self, root: pathlib.Path, files: Sequence[File]) -> int:
        """Return 1 if all images that can be read are gray, else the channels of the first other one, early in a folder
        of these.

        Raises:
          UserError: that is a TIFF of which Pillow would not read all channels.
        """
        for file in files:
            path = root / self.class_names[file.label] / file.name
            channels = decode.count_channels(path)
            if channels is None:
                continue
            if channels not in (1, 3) and path.suffix.lower() != ARRAY_SUFFIX:
                raise UserError(
                    f"{path} has {channels} channels, and only three of them can be read; save such images as .npy "
                    "arrays (height, width, channels), or set config.dataset.channels=3 for these three"
                )
            if channels != 1:
                return channels
        return 1

    def records(self, split: str) -> FolderRecords:
        if split in self._errors:
            raise self._errors[split]
        return self._records[split]
