"""Which images a model is evaluated on, and on which a temperature is fitted."""

import dataclasses
import json
import pathlib
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from patchnets.data import sources
from patchnets.data.sources import base
from patchnets.data.splits import ROLES
from patchnets.errors import UserError
from patchnets.inference import labeled
from patchnets.inference.labeled import LabeledImages
from patchnets.run.model_spec import ModelSpec

SPLIT_FOLDERS = ("test", "val", "validation", "train")
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
    if folder is not None:
        root, val_folder = split_folders(folder)
        data, label, role = labeled.from_folder(root), folder_label(root), None
    else:
        val_folder = None
    if dataset is not None:
        split = split or "test"
        source = _open(dataset, None, data_dir)
        data, label, role = labeled.from_source(source, split, f"{dataset} {split}"), f"{dataset}-{split}", None
    if folder is None and dataset is None:
        role = split if split in ROLES else None if split else "test"
        data = own_split(spec, directory, role or str(split), data_dir)
        label = f"{own_name(spec, directory)}-{split or role}"
    val, val_name = _validation(spec, directory, val_folder, data_dir, evaluates_val=role == "val")
    label = "".join(c if c.isalnum() or c in "-._" else "_" for c in label)
    return Selection(label, data, val, val_name, role)


def split_folders(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Return the folder to evaluate on, and that of its validation split if there is one.

    They are FOLDER/test and FOLDER/val if `folder` has a test/ with folders in it; else `folder`, and, if it is called
    test, a val/ beside it.
    """
    if _has_folders(folder / "test"):
        root, beside = folder / "test", folder
    else:
        root, beside = folder, folder.absolute().parent
    candidates = (beside / "val", beside / "validation")
    val = next((path for path in candidates if root.name == "test" and _has_folders(path)), None)
    return root, val


def _has_folders(path: pathlib.Path) -> bool:
    return path.is_dir() and any(entry.is_dir() for entry in path.iterdir())


def folder_label(root: pathlib.Path) -> str:
    """Return a name for a folder of images: its own, after that of the folder it is in if it is called as a split."""
    root = root.absolute()
    return f"{root.parent.name}-{root.name}" if root.name in SPLIT_FOLDERS else root.name


def own_split(spec: ModelSpec, directory: pathlib.Path, split: str, data_dir: str | None = None) -> LabeledImages:
    """Return a split of the data set that a model was trained on.

    Args:
      split: train, val or test as the run had them, or a split in TFDS's syntax.

    Raises:
      UserError: the run has no such split, or its data set cannot be opened.
    """
    splits = spec.dataset.get("splits") if isinstance(spec.dataset.get("splits"), Mapping) else {}
    if split in ROLES and not splits.get(split):
        raise UserError(f"the run in {directory} has no {split} split; {ADVICE}")
    text = splits[split] if split in ROLES else split
    try:
        name, path, recorded_dir = own_source(spec, directory)
        source = _open(name, path, data_dir or recorded_dir)
        return labeled.from_source(source, text, f"{own_name(spec, directory)} {text}")
    except UserError as error:
        raise UserError(f"the images of the run in {directory} cannot be opened ({error}); {ADVICE}") from error


def own_source(spec: ModelSpec, directory: pathlib.Path) -> tuple[str, str | None, str | None]:
    """Return name, path and data_dir of the data set that a model was trained on.

    Raises:
      UserError: that is not recorded.
    """
    try:
        recorded = json.loads((directory / "config.json").read_text())["dataset"]
        recorded = recorded if isinstance(recorded, dict) else {}
    except (OSError, ValueError, TypeError, KeyError):
        recorded = {}
    name = recorded.get("name") or spec.dataset.get("name")
    if not isinstance(name, str):
        raise UserError("model.json names no data set")
    if name == "folder" and not recorded.get("path"):
        raise UserError("there is no config.json that says which folder they are in")
    return name, recorded.get("path") if name == "folder" else None, recorded.get("data_dir")


def own_name(spec: ModelSpec, directory: pathlib.Path) -> str:
    """Return a short name of the data set that a model was trained on. Raise UserError as `own_source`."""
    name, path, _ = own_source(spec, directory)
    return pathlib.Path(path).name if path else name


def _open(name: str, path: str | None, data_dir: str | None) -> base.Source:
    """Open a data set. Raise UserError in the terms of this command's options."""
    if name == "folder" and path is None:
        raise UserError("--dataset=folder: name the folder itself, with --data=FOLDER")
    try:
        return sources.open_source(name, path, data_dir)
    except UserError as error:
        text = str(error) if path is not None else re.sub(r"config\.dataset\.name\b", "--dataset", str(error))
        raise UserError(text.replace("config.dataset.data_dir", "--data_dir")) from error


def _validation(
    spec: ModelSpec, directory: pathlib.Path, val_folder: pathlib.Path | None, data_dir: str | None, evaluates_val: bool
) -> tuple[LabeledImages | None, str]:
    """Return validation images and what they are: the run's own if they are at hand, else those of a folder."""
    if evaluates_val:
        return None, "the images are the validation split itself"
    try:
        name, _, recorded_dir = own_source(spec, directory)
        if name not in ("digits", "folder"):
            from patchnets.data.sources import tfds

            if not tfds.is_prepared(name, data_dir or recorded_dir):
                raise UserError(f"{name} is not prepared on this machine")
        return own_split(spec, directory, "val", data_dir), "the run's validation split"
    except UserError as error:
        if val_folder is not None:
            return labeled.from_folder(val_folder), str(val_folder)
        return None, str(error).removesuffix(f"; {ADVICE}")


def differs_from_run(spec: ModelSpec, role: str, labels: np.ndarray) -> bool:
    """Whether the labels of a split, all of them and in order, are others than those a run recorded."""
    fingerprint: Mapping[str, Any] = spec.dataset.get("fingerprint") or {}
    examples, checksums = fingerprint.get("examples") or {}, fingerprint.get("labels_crc32") or {}
    checksum = zlib.crc32(np.asarray(labels, np.int32).tobytes())
    return examples.get(role, len(labels)) != len(labels) or checksums.get(role, checksum) != checksum
