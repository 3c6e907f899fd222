"""Images with the names of their classes: from a folder, from arrays, or from a split of a data set."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from patchnets.data import splits
from patchnets.data.sources.base import Records, Source
from patchnets.data.sources.folder import EXPECTED, FolderRecords, file_suffixes
from patchnets.data.sources.walk import list_folders, walk_files
from patchnets.errors import RunError, UserError
from patchnets.inference import images as images_lib


class Example(NamedTuple):
    """An image, or the error that says why it cannot be read, with what to call it and its class (None: unknown)."""

    name: str
    image: images_lib.AnyImage | RunError
    label: str | None


@dataclasses.dataclass(frozen=True)
class LabeledImages:
    """Images with the names of their classes, read when they are iterated over.

    Attributes:
      name: of the data, in titles.
      classes: those that the data have.
      count: the number of images.
      examples: returns an iterator over them.
      numbered: whether images are named by their number, or else by their file.
    """

    name: str
    classes: tuple[str, ...]
    count: int
    examples: Callable[[], Iterator[Example]]
    numbered: bool = True


def from_folder(folder: str | os.PathLike[str]) -> LabeledImages:
    """Return the images of a folder that has a folder for each class; they are named by their path in it.

    Images are files of a format that Pillow reads, in nested folders too.

    Raises:
      UserError: there is no such folder, it has no folders, or these hold no images.
    """
    root = pathlib.Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; expected one with a folder of images for each class")
    classes = list_folders(root)
    if not classes:
        raise UserError(f"{root} has no class folders; expected {root.name}/{EXPECTED}")
    files = [(class_name, name) for class_name in classes for name in _image_files(root / class_name)]
    if not files:
        raise UserError(f"the class folders of {root} hold no images; expected {root.name}/{EXPECTED}")

    def examples() -> Iterator[Example]:
        for class_name, name in files:
            yield Example(f"{class_name}/{name}", root / class_name / name, class_name)

    return LabeledImages(str(root), classes, len(files), examples, numbered=False)


def _image_files(directory: pathlib.Path) -> list[str]:
    names = [name for name, _ in walk_files(directory)]
    return sorted(name for name in names if os.path.splitext(name)[1].lower() in file_suffixes())


def from_pairs(
    images: Any, labels: Sequence[str] | Sequence[int] | np.ndarray, classes: Sequence[str]
) -> LabeledImages:
    """Return images with their labels.

    Args:
      images: paths, bytes of encoded images, Pillow images or uint8 arrays, or one array of four axes.
      labels: of each image the name of its class, or its index in `classes`.

    Raises:
      ValueError: there are not as many labels as images, or an index is outside the classes.
      TypeError: the labels are neither all names nor all indices.
    """
    images, labels = images_lib.as_list(images), list(labels)
    if len(images) != len(labels):
        raise ValueError(f"there are {len(images)} images and {len(labels)} labels; give a label for each image")
    if all(isinstance(label, int | np.integer) and not isinstance(label, bool) for label in labels):
        if outside := [label for label in labels if not 0 <= label < len(classes)]:
            raise ValueError(f"label {outside[0]} is outside the model's {len(classes)} classes")
        labels = [classes[label] for label in labels]
    elif not all(isinstance(label, str) for label in labels):
        raise TypeError("labels are to be all names of classes, or all indices")

    def examples() -> Iterator[Example]:
        for number, (image, label) in enumerate(zip(images, labels)):
            yield Example(str(number), image, str(label))

    return LabeledImages("images", tuple(sorted(set(map(str, labels)))), len(images), examples)


def from_source(source: Source, spec: str, name: str) -> LabeledImages:
    """Return a split of a data set; images of a folder are named by their path in it, others by their number.

    Args:
      spec: the split in TFDS's syntax.

    Raises:
      UserError: there is no such split.
    """
    parts = splits.parse_split(spec, source.sizes)
    opened = [(source.records(part), low, high) for part, low, high in parts]

    def examples() -> Iterator[Example]:
        number = 0
        for records, low, high in opened:
            for position in range(low, high):
                yield _read(records, source, position, number)
                number += 1

    in_files = all(isinstance(records, FolderRecords) for records, _, _ in opened)
    return LabeledImages(name, source.class_names, splits.examples(parts), examples, numbered=not in_files)


def _read(records: Records, source: Source, position: int, number: int) -> Example:
    """Return one example of a split. Raises UserError if it has no label."""
    if isinstance(records, FolderRecords):
        path = records.path(position)
        name = path.relative_to(records.directory.parent).as_posix()
        return Example(name, path, source.class_names[records.labels[position]])
    image: images_lib.AnyImage
    try:
        image, label = records.encoded(position) if source.encoded else records.examples([position])[0]
    except RunError as error:
        return Example(str(number), error, None)
    if not 0 <= label < len(source.class_names):
        raise UserError(f"{records.name_of(position)} has no label; choose another split")
    return Example(str(number), image, source.class_names[label])
