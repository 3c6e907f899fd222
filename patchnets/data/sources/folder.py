"""A folder of images, as anybody has for their own data: train/CLASS/*.jpg|png, optionally val/ and test/."""

import hashlib
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from patchnets.data import decode
from patchnets.data.sources.base import Example
from patchnets.errors import RunError, UserError, first_line

SUFFIXES = (".jpg", ".jpeg", ".png")
SPLITS = ("train", "val", "test")
GRAY_MODES = {"1", "L", "LA", "I", "I;16"}


class File(NamedTuple):
    """One image: its place in the split's order, its name in its class's folder, its label, what tells of a change."""

    order: bytes
    name: str
    label: int
    stamp: str


class FolderRecords:
    """The images of one split. Names are kept in one array, because there may be millions, and workers get a copy."""

    def __init__(self, directory: pathlib.Path, class_names: Sequence[str], files: Sequence[File], channels: int):
        self.directory, self.class_names, self.channels = directory, tuple(class_names), channels
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
        return [(decode.decode_image(path, str(path), self.channels, size), label) for path, label in chosen]

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


class Folder:
    """Classes are the sub-folders of train/, in alphabetical order; images are gray if the first of every class is.

    Files are ordered by a hash of their path below the root, so that the last 10% is a fair sample of all classes, the
    same on every machine, and a new file moves no other.
    """

    name = "folder"
    encoded = True

    def __init__(self, path: str):
        self.root = pathlib.Path(path).expanduser().resolve()
        if not (self.root / "train").is_dir():
            raise UserError(f"config.dataset.path={path}: no folder train/ in it; expected train/CLASS/*.jpg|png")
        self.class_names = _folders(self.root / "train")
        if not self.class_names:
            raise UserError(f"{self.root / 'train'} holds no class folders; expected train/CLASS/*.jpg|png")
        files_of = {split: self._scan(split) for split in SPLITS if (self.root / split).is_dir()}
        firsts = {file.label: file for file in reversed(files_of["train"])}
        places = [self.root / "train" / self.class_names[label] / file.name for label, file in firsts.items()]
        self.channels = 1 if {decode.image_mode(path) for path in places} <= GRAY_MODES else 3
        self._records = {
            split: FolderRecords(self.root / split, self.class_names, files, self.channels)
            for split, files in files_of.items()
        }
        self.sizes: Mapping[str, int] = {split: len(files) for split, files in files_of.items()}
        stamps = [str(self.root)] + [file.stamp for files in files_of.values() for file in files]
        self.version = hashlib.sha256("\n".join(stamps).encode(errors="surrogateescape")).hexdigest()[:16]

    def _scan(self, split: str) -> list[File]:
        """The images of one split, in their fixed order. Raises UserError for an empty or unexpected class folder."""
        files = []
        for class_name in _folders(self.root / split):
            directory = self.root / split / class_name
            if class_name not in self.class_names:
                raise UserError(f"{directory} is a class that train/ does not have; add it there or remove it here")
            entries = [
                e for e in os.scandir(directory) if e.name.lower().endswith(SUFFIXES) and not e.name.startswith(".")
            ]
            entries = [e for e in entries if not e.is_dir()]
            if not entries:
                raise UserError(f"{directory} holds no images; put .jpg or .png files there, or remove the folder")
            label = self.class_names.index(class_name)
            for entry in entries:
                relative, stat = f"{split}/{class_name}/{entry.name}", entry.stat()
                order = hashlib.sha256(relative.encode(errors="surrogateescape")).digest()
                files.append(File(order, entry.name, label, f"{relative} {stat.st_size} {stat.st_mtime_ns}"))
        if not files:
            raise UserError(f"{self.root / split} holds no class folders; expected {split}/CLASS/*.jpg|png")
        return sorted(files, key=lambda file: file.order)

    def records(self, split: str) -> FolderRecords:
        return self._records[split]


def _folders(directory: pathlib.Path) -> tuple[str, ...]:
    return tuple(sorted(e.name for e in os.scandir(directory) if e.is_dir() and not e.name.startswith(".")))
