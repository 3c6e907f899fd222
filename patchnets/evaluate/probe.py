"""Evaluate the features of a model: simple classifiers fitted to labeled images, whose classes may be any."""

import dataclasses
import json
import pathlib
import sys
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

PROBES = ("knn", "fewshot", "linear")
FILE_NAME = "probes.json"


@dataclasses.dataclass(frozen=True)
class ProbeData:
    """Images to fit classifiers to, to choose among them, and to test them on; `version` changes with the images."""

    label: str
    train: LabeledImages
    val: LabeledImages
    test: LabeledImages
    version: str = ""


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of images and indices of their classes."""

    features: Float[np.ndarray, "images width"]
    labels: Int[np.ndarray, " images"]
    unreadable: tuple[str, ...]


def select(
    spec: ModelSpec,
    directory: pathlib.Path,
    *,
    folder: pathlib.Path | None,
    dataset: str | None,
    data_dir: str | None,
    chosen: Mapping[str, str | None] | None = None,
) -> ProbeData:
    """Return the images of a folder with train/ and test/, of a data set with these splits, or of the model's run.

    Without a validation split these are the last tenth of the training images.

    Args:
      chosen: splits in TFDS's syntax, by train, val and test.

    Raises:
      UserError: there are no such images.
    """
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
        text_of = {role: (chosen or {}).get(role) or run.spec_of(role) for role in splits.ROLES}
        source, label, images = run.source, run.name, {role: run.images(text) for role, text in text_of.items()}
    for role in splits.ROLES:
        if role not in images:
            raise UserError(f"{label} has no {role} split, which --probe needs; name other images")
    return ProbeData(str(label), **images, version=source.version)


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


def run_probes(
    names: Sequence[str],
    train: FeatureSet,
    val: FeatureSet,
    test: FeatureSet,
    all_shots: Sequence[int] = probes.SHOTS,
) -> list[probes.ProbeResult]:
    """Return the results of classifiers called `names`; few-shot ones for as many shots as every class has images."""
    fit, on = (train.features, train.labels), (test.features, test.labels)
    results = []
    if "knn" in names:
        results.append(probes.knn(*fit, *on))
    if "fewshot" in names:
        fewest = np.unique(train.labels, return_counts=True)[1].min()
        results += [probes.fewshot(*fit, *on, shots) for shots in all_shots if shots <= fewest]
        if fewest < max(all_shots):
            print(f"patchnets.evaluate: a class has {fewest} training images; no more shots than that", file=sys.stderr)
    if "linear" in names:
        results.append(probes.linear(*fit, val.features, val.labels, *on))
    return results


def format_table(data: ProbeData, sets: tuple[FeatureSet, FeatureSet, FeatureSet], results: Any) -> str:
    """Return the results as a table, below a line on the images."""
    counts = ", ".join(f"{role} {len(s.labels):,}" for role, s in zip(splits.ROLES, sets))
    lines = [
        f"  data     {data.label}: {counts}; {len(data.train.classes)} classes; {sets[0].features.shape[1]} features"
    ]
    for result in results:
        settings = ", ".join(f"{name} {value:g}" for name, value in result.settings.items())
        lines.append(f"  {result.name:<8} top-1 {result.accuracy:.2%} +- {result.interval:.2%}  ({settings})")
    return "\n".join(lines)


def write_results(directory: pathlib.Path, about: dict[str, Any], results: list[probes.ProbeResult]) -> None:
    """Write probes.json: what was probed, and each classifier's accuracy, interval and settings."""
    directory.mkdir(parents=True, exist_ok=True)
    content = about | {"probes": [dataclasses.asdict(result) for result in results]}
    write_atomically(directory / FILE_NAME, json.dumps(content, indent=2, allow_nan=False) + "\n")
