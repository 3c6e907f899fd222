"""Evaluate the features of a model: simple classifiers fitted to labeled images, whose classes may be any."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from patchnets.data import splits
from patchnets.errors import RunError, UserError
from patchnets.evaluate.data import RunData, folder_label, open_source, split_folder
from patchnets.inference import images as images_lib
from patchnets.inference import labeled, probes
from patchnets.inference.labeled import LabeledImages
from patchnets.inference.model import Model
from patchnets.run.model_spec import ModelSpec
from patchnets.runtime.files import write_atomically
from patchnets.weights.initialize import digest

FILE_NAME = "probes.json"


@dataclasses.dataclass(frozen=True)
class ProbeData:
    """Images to fit classifiers to, to test them on, and perhaps to choose among them; `version` changes with them."""

    label: str
    train: LabeledImages
    test: LabeledImages
    val: LabeledImages | None = None
    version: str = ""


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of images and indices of their classes, and a line for each image that could not be read."""

    features: Float[np.ndarray, "images width"]
    labels: Int[np.ndarray, " images"]
    unreadable: tuple[str, ...]

    @property
    def labeled(self) -> probes.LabeledFeatures:
        return probes.LabeledFeatures(self.features, self.labels)


def select(
    spec: ModelSpec,
    directory: pathlib.Path,
    *,
    folder: pathlib.Path | None,
    dataset: str | None,
    data_dir: str | None,
    with_val: bool = True,
    chosen: Mapping[str, str | None] | None = None,
) -> ProbeData:
    """Return the images of a folder with train/ and test/, of a data set with these splits, or of the model's run.

    Of a folder or a data set without a validation split, this is the last tenth of the training images, so that all
    probes are fitted to the same images. Only `with_val` has to be one.

    Args:
      chosen: splits in TFDS's syntax, by train, val and test.

    Raises:
      UserError: there are no such images, or two splits share some.
    """
    roles = ("train", "val", "test") if with_val else ("train", "test")
    if dataset is not None or folder is not None:
        if folder is not None:
            for split in ("train", "test"):
                if not (chosen or {}).get(split) and split_folder(folder, split) is None:
                    raise UserError(
                        f"--probe fits classifiers to train/ in {folder} and tests them on test/; there is no {split}/"
                    )
        source = open_source(dataset or "folder", None if folder is None else str(folder), data_dir)
        name, label = (source.name, dataset) if folder is None else (str(folder), folder_label(folder))
        specs = _choose(source.sizes, chosen or {})
        images = {role: labeled.from_source(source, text, f"{name} {text}") for role, text in specs.items() if text}
    else:
        run = RunData(spec, directory, data_dir)
        text_of = {role: (chosen or {}).get(role) or run.spec_of(role) for role in roles}
        _choose(run.source.sizes, {"val": "none"} | text_of)  # for errors, if some are not the run's
        source, label, images = run.source, run.name, {role: run.images(text) for role, text in text_of.items()}
    for role in roles:
        if role not in images:
            probe = "--probe=linear" if role == "val" else "--probe"
            raise UserError(f"{label} has no {role} split, which {probe} needs; name other images")
    return ProbeData(str(label), **{role: images[role] for role in roles}, version=source.version)


def _choose(sizes: Mapping[str, int], chosen: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the splits of a data set. Raise UserError in the terms of this command's options."""
    try:
        return splits.choose_splits(sizes, **chosen)
    except UserError as error:
        raise UserError(str(error).replace("config.dataset.", "--")) from error


def compute_features(model: Model, data: LabeledImages, classes: tuple[str, ...], batch_size: int) -> FeatureSet:
    """Return the inputs of the head for labeled images; unreadable ones are left out and named.

    Raises:
      RunError: no image can be read, or a feature is not finite.
    """
    index = {name: i for i, name in enumerate(classes)}
    labels: list[int] = []

    def images() -> Any:
        for _, image, label in data.examples():
            labels.append(-1 if label is None else index[label])
            yield image

    kept: list[int] = []
    batches: list[np.ndarray] = []
    unreadable: list[str] = []
    name_of = lambda number: f"image {number} of {data.name}"
    for numbers, decoded in images_lib.readable_batches(images(), model.spec, batch_size, name_of, unreadable):
        kept += numbers
        batches.append(model.features_of_decoded(decoded, batch_size=batch_size))
    if not batches:
        raise RunError(f"none of the images of {data.name} can be read; the first: {unreadable[0]}")
    features = np.concatenate(batches).astype(np.float32)
    if not np.isfinite(features).all():
        raise RunError(f"the features of images of {data.name} are not finite")
    return FeatureSet(features, np.array(labels)[kept], tuple(unreadable))


def identity(model: Model, data: ProbeData, images: LabeledImages) -> dict[str, str]:
    """Return what the features of images are a function of."""
    spec = dataclasses.replace(model.spec, classes=(), dataset={}, versions={}).to_json()
    return {
        "weights": digest(model.variables),
        "preprocessing": json.dumps(spec, sort_keys=True),
        "images": json.dumps([images.name, images.count, data.train.classes, data.version]),
    }


def format_table(data: ProbeData, sets: Mapping[str, FeatureSet], results: Sequence[probes.ProbeResult]) -> str:
    """Return the results as a table, below a line on the images of {"train": features, ...}."""
    counts = ", ".join(f"{role} {len(split.labels):,}" for role, split in sets.items())
    width = sets["train"].features.shape[1]
    first = f"  data     {data.label}: {counts}; {len(data.train.classes)} classes; {width} features"
    return "\n".join([first, *(f"  {result}" for result in results)])


def write_results(directory: pathlib.Path, about: dict[str, Any], results: list[probes.ProbeResult]) -> None:
    """Write probes.json: what was probed, and each classifier's accuracy, interval and settings."""
    directory.mkdir(parents=True, exist_ok=True)
    content = about | {"probes": [dataclasses.asdict(result) for result in results]}
    write_atomically(directory / FILE_NAME, json.dumps(content, indent=2, allow_nan=False) + "\n")
