"""A folder of images, as anybody has for their own data: train/CLASS/*.jpg|png, optionally val/ and test/."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence

from patchnets.data import decode
from patchnets.data.sources import Example
from patchnets.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png")
SPLITS = ("train", "val", "test")
GRAY_MODES = {"1", "L", "LA", "I", "I;16"}


@dataclasses.dataclass(frozen=True)
class File:
    """One image: its place in the split's order, its path below the root, its label, and what tells of a change."""

    order: bytes
    path: str
    label: int
    stamp: str


class FolderRecords:
    def __init__(self, root: pathlib.Path, files: list[File], channels: int):
        self.root, self.files, self.channels = root, files, channels

    def __len__(self) -> int:
        return len(self.files)

    def examples(self, positions: Sequence[int], size: int | None = None) -> list[Example]:
        chosen = [(self.root / self.files[i].path, self.files[i].label) for i in positions]
        return [(decode.decode_image(path, str(path), self.channels, size), label) for path, label in chosen]

    def native_size(self) -> int | None:
        path = self.root / self.files[0].path
        height, width = decode.image_size(path, str(path))
        return height if height == width else None


class Folder:
    """Classes are the sub-folders of train/, in alphabetical order; images are gray if the first of every class is.

    Files are ordered by a hash of their path below the root, so that the last 10% is a fair sample of all classes, the
    same on every machine, and a new file moves no other.
    """

    name = "folder"

    def __init__(self, path: str):
        self.root = pathlib.Path(path).expanduser().resolve()
        if not (self.root / "train").is_dir():
            raise UserError(f"config.dataset.path={path}: no folder train/ in it; expected train/CLASS/*.jpg|png")
        self.class_names = _folders(self.root / "train")
        if not self.class_names:
            raise UserError(f"{self.root / 'train'} holds no class folders; expected train/CLASS/*.jpg|png")
        found = {split: self._scan(split) for split in SPLITS if (self.root / split).is_dir()}
        firsts = {file.label: file.path for file in reversed(found["train"])}
        gray = {decode.image_mode(self.root / path) for path in firsts.values()} <= GRAY_MODES
        self.channels = 1 if gray else 3
        self._records = {split: FolderRecords(self.root, files, self.channels) for split, files in found.items()}
        self.sizes: Mapping[str, int] = {split: len(files) for split, files in found.items()}
        stamps = [str(self.root)] + [file.stamp for files in found.values() for file in files]
        self.version = hashlib.sha256("\n".join(stamps).encode(errors="surrogateescape")).hexdigest()[:16]

    def _scan(self, split: str) -> list[File]:
        """The images of one split, in their fixed order. Raises UserError for an empty or unexpected class folder."""
        files = []
        for class_name in _folders(self.root / split):
            place = self.root / split / class_name
            if class_name not in self.class_names:
                raise UserError(f"{place} is a class that train/ does not have; add it there or remove it here")
            entries = [e for e in os.scandir(place) if e.name.lower().endswith(SUFFIXES) and not e.name.startswith(".")]
            if not entries:
                raise UserError(f"{place} holds no images; put .jpg or .png files there, or remove the folder")
            label = self.class_names.index(class_name)
            for entry in entries:
                relative, stat = f"{split}/{class_name}/{entry.name}", entry.stat()
                order = hashlib.sha256(relative.encode(errors="surrogateescape")).digest()
                files.append(File(order, relative, label, f"{relative} {stat.st_size} {stat.st_mtime_ns}"))
        if not files:
            raise UserError(f"{self.root / split} holds no class folders; expected {split}/CLASS/*.jpg|png")
        return sorted(files, key=lambda file: file.order)

    def records(self, split: str) -> FolderRecords:
        return self._records[split]


def _folders(place: pathlib.Path) -> tuple[str, ...]:
    return tuple(sorted(e.name for e in os.scandir(place) if e.is_dir() and not e.name.startswith(".")))
