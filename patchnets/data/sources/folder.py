"""A folder of images, as anybody has for their own data: train/CLASS/..., optionally val/CLASS/ and test/CLASS/.

Every format that Pillow decodes by itself counts, in nested folders too. Whatever is passed over is named in `notes`.
"""

import collections
import functools
import hashlib
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from patchnets.data import decode
from patchnets.data.decode import DEFAULT_RULES, PixelRules
from patchnets.data.sources.base import Example
from patchnets.errors import RunError, UserError, first_line

# The usual names of each split's folder, in any case.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
EXPECTED = "CLASS/*.jpg, *.png or another format that Pillow reads"
# Formats that Pillow hands to another program, or that hold no single image.
NOT_DECODED = {"EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF"}
GRAY_MODES = {"1", "L", "LA", "I", "I;16"}


class File(NamedTuple):
    """One image: its place in the split's order, its name in its class's folder, its label, what tells of a change."""

    order: bytes
    name: str
    label: int
    stamp: str


class FolderRecords:
    """The images of one split. Names are kept in one array, because there may be millions, and workers get a copy."""

    def __init__(
        self,
        directory: pathlib.Path,
        class_names: Sequence[str],
        files: Sequence[File],
        channels: int,
        rules: PixelRules = DEFAULT_RULES,
    ):
        self.directory, self.class_names, self.channels = directory, tuple(class_names), channels
        self.rules = rules
        self.file_names = np.array([os.fsencode(file.name) for file in files])
        self.labels = np.array([file.label for file in files], np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> int:
        return zlib.crc32(self.labels.astype("<i4").tobytes(), zlib.crc32(b"/".join(self.file_names.tolist())))

    def path(self, position: int) -> pathlib.Path:
        return self.directory / self.class_names[self.labels[position]] / os.fsdecode(self.file_names[position])

    def examples(self, positions: Sequence[int], size: int | None = None) -> list[Example]:
        chosen = [(self.path(i), int(self.labels[i])) for i in positions]
        return [
            (decode.decode_image(path, str(path), self.channels, size, rules=self.rules), label)
            for path, label in chosen
        ]

    def native_size(self) -> int | None:
        height, width = decode.image_size(self.path(0), self.name_of(0))
        return height if height == width else None

    def encoded(self, position: int) -> tuple[bytes, int]:
        try:
            return self.path(position).read_bytes(), int(self.labels[position])
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise RunError(f"{self.name_of(position)} cannot be read ({reason}); repair or remove it") from error

    def name_of(self, position: int) -> str:
        return str(self.path(position))


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the formats that Pillow decodes by itself."""
    formats = Image.registered_extensions()
    return frozenset(suffix for suffix, name in formats.items() if name in Image.OPEN and name not in NOT_DECODED)


class Folder:
    """A class is a folder in train/, in alphabetical order; images are gray if all of train are.

    Files are ordered by a hash of their path below the root, so that the last 10% is a fair sample of all classes, the
    same on every machine, and a new file moves no other. A problem of val/ or test/ is an error once that split is
    read, so that val_split=none or test_split=none leaves it aside.

    Attributes:
      notes: lines about what lies in the folder and is not used.
    """

    name = "folder"
    encoded = True

    def __init__(self, path: str, channels: int | None = None, rules: PixelRules = DEFAULT_RULES):
        """Open the folder; `channels` (1 or 3) instead of those that the images have."""
        self.root = pathlib.Path(path).expanduser().resolve()
        self.notes: list[str] = []
        directories = self._split_directories(path)
        self.class_names = list_folders(directories["train"])
        if not self.class_names:
            raise UserError(f"{directories['train']} holds no class folders; expected train/{EXPECTED}")
        self._errors: dict[str, UserError] = {}
        files_of: dict[str, list[File]] = {}
        for split, directory in directories.items():
            try:
                files_of[split] = self._scan(split, directory)
            except UserError as error:
                if split == "train":
                    raise
                files_of[split], self._errors[split] = [], error
        self.channels = channels or (1 if self._is_gray(directories["train"], files_of["train"]) else 3)
        self._records = {
            split: FolderRecords(directories[split], self.class_names, files, self.channels, rules)
            for split, files in files_of.items()
        }
        # A split with an error counts as one example, so that asking for it gets the error and not "empty".
        self.sizes: Mapping[str, int] = {split: len(files) or 1 for split, files in files_of.items()}
        stamps = [str(self.root), rules.tag] + [file.stamp for files in files_of.values() for file in files]
        stamps += [] if channels is None else [f"{channels} channels"]
        self.version = hashlib.sha256("\n".join(stamps).encode(errors="surrogateescape")).hexdigest()[:16]

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
            self.notes.append(f"{self.root}: not used: {_enumerate(unused)}")
        return {split: directories[split] for split in SPLIT_NAMES if split in directories}

    def _scan(self, split: str, root: pathlib.Path) -> list[File]:
        """Return the images of one split, in their fixed order. Raise UserError for an empty or unexpected class."""
        files: list[File] = []
        passed_over: collections.Counter[str] = collections.Counter()
        none = f"; or set config.dataset.{split}_split=none" if split != "train" else ""
        for class_name in list_folders(root):
            directory = root / class_name
            if class_name not in self.class_names:
                raise UserError(
                    f"{directory} is a class that train/ does not have; add it there or remove it here{none}"
                )
            label, before = self.class_names.index(class_name), len(files)
            for name, entry in walk_files(directory):
                suffix = os.path.splitext(name)[1].lower()
                if suffix not in image_suffixes():
                    passed_over[suffix or "no suffix"] += 1
                    continue
                relative, stat = f"{split}/{class_name}/{name}", entry.stat()
                order = hashlib.sha256(relative.encode(errors="surrogateescape")).digest()
                files.append(File(order, name, label, f"{relative} {stat.st_size} {stat.st_mtime_ns}"))
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

    def _is_gray(self, root: pathlib.Path, files: Sequence[File]) -> bool:
        """Return whether all images are gray; of a colored set, few headers are read."""
        paths = (root / self.class_names[file.label] / file.name for file in files)
        return all(decode.image_mode(path) in GRAY_MODES for path in paths)

    def records(self, split: str) -> FolderRecords:
        if split in self._errors:
            raise self._errors[split]
        return self._records[split]


def list_folders(directory: pathlib.Path) -> tuple[str, ...]:
    """Return the names of the folders in a folder, in alphabetical order, hidden ones left out."""
    return tuple(sorted(e.name for e in os.scandir(directory) if e.is_dir() and not e.name.startswith(".")))


def walk_files(directory: pathlib.Path, prefix: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield (path below the first folder, entry) of every file in a folder and those within, hidden ones left out."""
    for entry in os.scandir(directory):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            here, target = pathlib.Path(directory).resolve(), pathlib.Path(entry.path).resolve()
            if entry.is_symlink() and (target == here or target in here.parents):
                continue  # a link to a folder around it
            yield from walk_files(pathlib.Path(entry.path), f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry


def _enumerate(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
