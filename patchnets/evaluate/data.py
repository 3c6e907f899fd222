"""Which images a model is evaluated on, and on which a temperature is fitted."""

import dataclasses
import functools
import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from patchnets.data import sources, splits
from patchnets.data.sources import base
from patchnets.data.sources.folder import SPLIT_NAMES
from patchnets.data.sources.walk import list_folders
from patchnets.data.splits import ROLES
from patchnets.errors import UserError
from patchnets.inference import labeled
from patchnets.inference.labeled import LabeledImages
from patchnets.run.model_spec import ModelSpec
from patchnets.runtime.format import same_name

# What errors of data sets say of a configuration, and what this command has for it.
OPTIONS = {
    "train on a folder of images: --config.dataset.name=folder --config.dataset.path=...": "give --data=FOLDER",
    "config.dataset.name": "--dataset",
    "config.dataset.data_dir": "--data_dir",
}
ADVICE = "give others with --data=FOLDER, or with --dataset=NAME --split=SPLIT"


@dataclasses.dataclass(frozen=True)
class Selection:
    """What to evaluate on.

    Attributes:
      label: a name for the output folder.
      data: the images.
      val: validation images, on which to fit a temperature; None if there are none.
      val_name: what these are, or why there are none.
      role: train, val or test if the images are a split of the run, else None.
    """

    label: str
    data: LabeledImages
    val: LabeledImages | None
    val_name: str
    role: str | None = None


def select(
    spec: ModelSpec,
    directory: pathlib.Path,
    *,
    folder: pathlib.Path | None = None,
    dataset: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
) -> Selection:
    """Return the images to evaluate a model on: a folder, a split of a data set, or by default the run's test split.

    Args:
      spec, directory: of the model; the directory's config.json says where the data of the run were.
      folder: has a folder for each class; or folders test/, and perhaps val/, that have these.
      dataset: digits, or a name of TFDS.
      split: of `dataset`, in TFDS's syntax; or of the run's data set, where train, val and test are the run's own.
      data_dir: of TFDS.

    Raises:
      UserError: these images cannot be opened.
    """
    run = RunData(spec, directory, data_dir)
    role, val_folder = None, None
    if folder is not None:
        root, val_folder = split_folders(folder, spec.classes)
        data, label = labeled.from_folder(root), folder_label(root)
        is_val = split_of(root) == "val"
    elif dataset is not None:
        split = split or "test"
        source = open_source(dataset, None, data_dir)
        data, label = labeled.from_source(source, split, f"{dataset} {split}"), f"{dataset}-{split}"
        is_val = run.shares_val(source.name, split)
    else:
        role = split if split in ROLES else None if split else "test"
        text = run.spec_of(role) if role else str(split)
        data, label = run.images(text), f"{run.name}-{role or split}"
        is_val = run.shares_val(run.source.name, text)
    if is_val:
        val, val_name = None, "these are validation images themselves"
    else:
        val, val_name = _validation(run, val_folder)
    label = "".join(c if c.isalnum() or c in "-._" else "_" for c in label)
    return Selection(label, data, val, val_name, role)


class RunData:
    """The data set that a model was trained on; opened when it is first needed.

    Its methods and attributes raise UserError if it is not recorded, or cannot be opened.
    """

    def __init__(self, spec: ModelSpec, directory: pathlib.Path, data_dir: str | None):
        self._spec, self._directory, self._data_dir = spec, directory, data_dir

    @functools.cached_property
    def _recorded(self) -> tuple[str, str | None, str | None]:
        """Name, path and data_dir."""
        try:
            recorded = json.loads((self._directory / "config.json").read_text())["dataset"]
            recorded = recorded if isinstance(recorded, dict) else {}
        except (OSError, ValueError, TypeError, KeyError):
            recorded = {}
        name = recorded.get("name") or self._spec.dataset.get("name")
        if not isinstance(name, str):
            raise self._error("its model.json names no data set")
        if name == "folder" and not recorded.get("path"):
            raise self._error("there is no config.json that says which folder they are in")
        path = recorded.get("path") if name == "folder" else None
        return name, path, self._data_dir or recorded.get("data_dir")

    def _error(self, reason: str) -> UserError:
        return UserError(f"the images of the run in {self._directory} cannot be opened: {reason}; {ADVICE}")

    @property
    def name(self) -> str:
        """A short name."""
        name, path, _ = self._recorded
        return pathlib.Path(path).name if path else name

    @functools.cached_property
    def source(self) -> base.Source:
        try:
            return open_source(*self._recorded, channels=self._spec.channels)
        except UserError as error:
            raise self._error(str(error)) from error

    def is_at_hand(self) -> bool:
        """Return whether opening the data set downloads nothing."""
        name, _, data_dir = self._recorded
        if name in ("digits", "folder"):
            return True
        from patchnets.data.sources import tfds

        return tfds.is_prepared(name, data_dir)

    def spec_of(self, role: str) -> str:
        """Return the train, val or test split in TFDS's syntax. Raise UserError if the run had none."""
        recorded = self._spec.dataset.get("splits")
        if not isinstance(recorded, Mapping) or not recorded.get(role):
            raise UserError(f"the run in {self._directory} has no {role} split; {ADVICE}")
        return str(recorded[role])

    def images(self, text: str) -> LabeledImages:
        """Return a split in TFDS's syntax. Raise UserError if there is none."""
        return labeled.from_source(self.source, text, f"{self.name} {text}")

    def shares_val(self, name: str, text: str) -> bool:
        """Return whether a split of the data set called `name` has images of the run's validation split."""
        try:
            if name != self._spec.dataset.get("name"):
                return False
            parts = [splits.parse_split(split, self.source.sizes) for split in (text, self.spec_of("val"))]
        except UserError:
            return False
        return splits.overlap(*parts) > 0


def split_folders(folder: pathlib.Path, classes: Sequence[str]) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Return the folder to evaluate on, and that of its validation split if there is one.

    They are FOLDER/test and FOLDER/val, or what else these splits are usually called, if `folder` has a test/ with
    folders in it and none of the folders in `folder` is a class of the model, of which there are `classes`; else
    `folder`, and, if it is called test, a val/ beside it.
    """
    has_classes = folder.is_dir() and not {*map(same_name, classes)}.isdisjoint(map(same_name, list_folders(folder)))
    if not has_classes and (test := split_folder(folder, "test")):
        return test, split_folder(folder, "val")
    return folder, split_folder(folder.absolute().parent, "val") if split_of(folder) == "test" else None


def split_of(folder: pathlib.Path) -> str | None:
    """Return the split (train, val or test) that a folder is called after; None if it is called otherwise."""
    name = folder.absolute().name.lower()
    return next((split for split, names in SPLIT_NAMES.items() if name in names), None)


def split_folder(folder: pathlib.Path, split: str) -> pathlib.Path | None:
    """Return the folder of a split, which has folders in it; None if there is none."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return next((path for path in paths if split_of(path) == split and path.is_dir() and list_folders(path)), None)


def folder_label(root: pathlib.Path) -> str:
    """Return a name for a folder of images: its own, after that of the folder it is in if it is called as a split."""
    root = root.resolve()  # also of ".."
    return f"{root.parent.name}-{root.name}" if split_of(root) else root.name


def open_source(name: str, path: str | None, data_dir: str | None, channels: int | None = None) -> base.Source:
    """Open a data set. Raise UserError in the terms of this command's options.

    Args:
      channels: of a folder, which then need not be looked at for them.
    """
    if name == "folder" and path is None:
        raise UserError("--dataset=folder: name the folder itself, with --data=FOLDER")
    try:
        return sources.open_source(name, path, data_dir, channels if name == "folder" else None)
    except UserError as error:
        text = str(error)
        for key, option in OPTIONS.items() if path is None else ():
            text = text.replace(key, option)
        raise UserError(text) from error


def _validation(run: RunData, folder: pathlib.Path | None) -> tuple[LabeledImages | None, str]:
    """Return validation images and what they are, the run's own if they are at hand, else of `folder`; or why none."""
    try:
        if not run.is_at_hand():
            raise UserError("the run's data set is not prepared on this machine")
        return run.images(run.spec_of("val")), "the run's validation split"
    except UserError as error:
        if folder is not None:
            return labeled.from_folder(folder), str(folder)
        return None, str(error).removesuffix(f"; {ADVICE}")


def differs_from_run(spec: ModelSpec, role: str, labels: np.ndarray) -> bool:
    """Return whether the labels of a split, all of them and in order, are others than those a run recorded."""
    fingerprint: Mapping[str, Any] = spec.dataset.get("fingerprint") or {}
    examples, checksums = fingerprint.get("examples") or {}, fingerprint.get("labels_crc32") or {}
    checksum = zlib.crc32(np.asarray(labels, np.int32).tobytes())
    return examples.get(role, len(labels)) != len(labels) or checksums.get(role, checksum) != checksum
