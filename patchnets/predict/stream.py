"""Predictions one after another: images are decoded by threads while the network works on those before."""

import argparse
import collections
import itertools
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from patchnets.errors import RunError
from patchnets.inference import overlay
from patchnets.inference.images import decode_many
from patchnets.inference.model import Model, top_classes
from patchnets.predict import inputs
from patchnets.predict.writers import Layout, Prediction
from patchnets.runtime.format import printable

MAX_STEM = 200  # bytes of the name of a picture; file systems take 255, of which a partial file needs some


def line(prediction: Prediction, layout: Layout) -> str:
    """Return the line of an image: its name, its most probable classes, marked by * if above the threshold, and the
    path of its explanation, if there is one.
    """
    values = prediction.probabilities
    assert values is not None
    marked = set() if layout.threshold is None else set(prediction.above(layout.threshold))
    shown = [f"{printable(layout.classes[i])}{'*' * (i in marked)} {values[i]:.2%}" for i in prediction.order]
    picture = f" ({printable(prediction.explanation)})" if prediction.explanation else ""
    return f"{printable(prediction.filename)}: {', '.join(shown)}{picture}"


class Explanations:
    """Draws explanations into a folder, each under the name of its image. No file that is there is overwritten."""

    def __init__(self, model: Model, folder: pathlib.Path):
        self._model, self._folder = model, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._names = {name.casefold() for name in os.listdir(folder)}

    def __call__(self, filenames: list[str], decoded: np.ndarray, logits: np.ndarray) -> Iterator[str]:
        """Yield the path of the picture of each image."""
        classes, values = logits.argmax(axis=1), self._model.to_probabilities(logits)
        maps, images = self._model.explain_decoded(decoded, classes), self._model.displayed(decoded)
        for filename, image, heat, index, row in zip(filenames, images, maps, classes, values):
            title = f"{self._model.classes[index]} {row[index]:.1%}"
            target = self._folder / self._free_name(pathlib.Path(filename).stem)
            overlay.save(overlay.side_by_side(image, heat, title), target)
            yield str(target)

    def _free_name(self, stem: str) -> str:
        """Return STEM.png, or STEM-2.png and so on if another image or a file has that name, in whatever case."""
        while len(os.fsencode(stem)) > MAX_STEM:
            stem = stem[:-1]
        name, number = f"{stem}.png", 1
        while name.casefold() in self._names or os.path.lexists(self._folder / name):
            number += 1
            name = f"{stem}-{number}.png"
        self._names.add(name.casefold())
        return name


def predictions(
    model: Model, options: argparse.Namespace, layout: Layout, passed_over: collections.Counter[str] | None = None
) -> Iterator[Prediction]:
    """Yield the prediction of each image in order. Threads decode images while the network has those before.

    `passed_over` counts the suffixes of the files in folders that are no images.

    Raises:
      RunError: an image cannot be read, and the options are strict.
    """
    names, images = itertools.tee(inputs.image_paths(options.images, options.explain, passed_over=passed_over))
    decoded = zip(names, decode_many(images, model.spec))
    draw = Explanations(model, options.explain) if options.explain is not None else None
    while batch := list(itertools.islice(decoded, options.batch_size)):
        yield from _predict_batch(model, options, layout, batch, draw)


def _predict_batch(
    model: Model,
    options: argparse.Namespace,
    layout: Layout,
    batch: list[tuple[str | inputs.UnreadableFolder, np.ndarray | RunError]],
    draw: Explanations | None,
) -> Iterator[Prediction]:
    readable = {i: image for i, (_, image) in enumerate(batch) if isinstance(image, np.ndarray)}
    if options.strict and (errors := [image for _, image in batch if isinstance(image, RunError)]):
        raise RunError(printable(str(errors[0])))
    rows: Iterator[tuple[np.ndarray, np.ndarray]] = iter(())
    features: Iterator[np.ndarray] = iter(())
    drawn: Iterator[str] = iter(())
    if readable:
        stacked = np.stack(list(readable.values()))
        logits = model.logits_of_decoded(stacked, options.batch_size)
        rows = zip(logits, model.to_probabilities(logits)[:, : len(model.classes)])  # none of a network without a head
        if options.features:
            features = iter(model.features_of_decoded(stacked, batch_size=options.batch_size))
        if draw is not None:
            drawn = draw([str(batch[i][0]) for i in readable], stacked, logits)
    for i, (name, image) in enumerate(batch):
        if isinstance(name, inputs.UnreadableFolder):
            yield Prediction(name.path, error=printable(str(image)))
            continue
        if i not in readable:
            yield Prediction(str(name), error=printable(str(image)))
            continue
        logits_row, row = next(rows)
        order = tuple(top_classes(logits_row, layout.topk))
        yield Prediction(str(name), order, row, next(features, None), next(drawn, ""))
