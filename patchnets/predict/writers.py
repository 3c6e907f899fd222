"""Predictions as a table (CSV), as lines of JSON, or as NumPy arrays. Nothing is kept in memory but for the arrays."""

import contextlib
import csv
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import IO, Any, Protocol

import numpy as np
from jaxtyping import Float32

from patchnets.runtime.files import atomic_path
from patchnets.runtime.format import shortest_float

SEPARATOR = ";"  # between the labels of one cell


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is written of each image.

    Attributes:
      classes: names, in the order of probabilities.
      topk: how many of the most probable classes.
      every_class: the probability of every class too.
      threshold: list the classes that are at least this probable; None for no such list.
      explained: whether there is a picture of the explanation.
    """

    classes: tuple[str, ...]
    topk: int = 5
    every_class: bool = False
    threshold: float | None = None
    explained: bool = False


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The outputs for one image file; `error` says why there are none.

    Attributes:
      order: indices of the most probable classes, the most probable first.
      explanation: path of a picture.
    """

    filename: str
    order: tuple[int, ...] = ()
    probabilities: Float32[np.ndarray, " classes"] | None = None
    features: np.ndarray | None = None
    explanation: str = ""
    error: str = ""

    def above(self, threshold: float) -> list[int]:
        """Return the indices of the classes that are at least so probable, the most probable first."""
        if self.probabilities is None:
            return []
        chosen = np.flatnonzero(self.probabilities >= threshold)
        return sorted(chosen.tolist(), key=lambda i: -self.probabilities[i])  # type: ignore[index]


class Writer(Protocol):
    """A file of predictions that is being written."""

    def write(self, prediction: Prediction) -> None: ...


class NoFile:
    """A writer that writes nothing."""

    def write(self, prediction: Prediction) -> None:
        del prediction


class CsvWriter:
    """One row an image: filename, label, probability, label_2, probability_2, ..., error.

    Before `error` stand, where the layout has them, `labels` (those above the threshold, separated by semicolons),
    `probability_of_CLASS` for every class, and `explanation`.
    """

    def __init__(self, file: IO[str], layout: Layout):
        self._layout = layout
        columns = ["filename", "label", "probability"]
        columns += [f"{name}_{i}" for i in range(2, layout.topk + 1) for name in ("label", "probability")]
        columns += ["labels"] * (layout.threshold is not None)
        columns += [f"probability_of_{name}" for name in layout.classes] * layout.every_class
        columns += ["explanation"] * layout.explained
        self._width = len(columns)
        self._rows = csv.writer(file, lineterminator="\n")
        self._rows.writerow([*columns, "error"])

    def write(self, prediction: Prediction) -> None:
        """Append a row."""
        layout, values = self._layout, prediction.probabilities
        if values is None:
            self._rows.writerow([prediction.filename, *[""] * (self._width - 1), prediction.error])
            return
        row: list[Any] = [prediction.filename]
        for i in prediction.order:
            row += [layout.classes[i], shortest_float(values[i])]
        if layout.threshold is not None:
            row.append(SEPARATOR.join(layout.classes[i] for i in prediction.above(layout.threshold)))
        if layout.every_class:
            row += map(shortest_float, values)
        row += [prediction.explanation] * layout.explained
        self._rows.writerow([*row, ""])


class JsonWriter:
    """One JSON object a line: {"filename", "predictions": [{"label", "probability"}, ...]}, or {"filename", "error"}.

    Where the layout has them, also "labels" (those above the threshold), "probabilities" ({label: probability} of every
    class) and "explanation".
    """

    def __init__(self, file: IO[str], layout: Layout):
        self._file, self._layout = file, layout

    def write(self, prediction: Prediction) -> None:
        """Append a line."""
        layout, values = self._layout, prediction.probabilities
        content: dict[str, Any] = {"filename": prediction.filename}
        if values is None:
            content["error"] = prediction.error
        else:
            content["predictions"] = [
                {"label": layout.classes[i], "probability": shortest_float(values[i])} for i in prediction.order
            ]
            if layout.threshold is not None:
                content["labels"] = [layout.classes[i] for i in prediction.above(layout.threshold)]
            if layout.every_class:
                content["probabilities"] = dict(zip(layout.classes, map(shortest_float, values)))
            if layout.explained:
                content["explanation"] = prediction.explanation
        self._file.write(json.dumps(content) + "\n")


class NpzWriter:
    """Arrays without pickles: filenames, probabilities (images, classes), classes, errors; features (images, width).

    The rows of images that cannot be read are NaN. They are held in memory until all are written.
    """

    def __init__(self, layout: Layout):
        self._layout, self._predictions = layout, list[Prediction]()

    def write(self, prediction: Prediction) -> None:
        """Keep a prediction until `save`."""
        self._predictions.append(prediction)

    def save(self, path: pathlib.Path) -> None:
        """Write the arrays of all predictions."""
        rows = self._predictions
        arrays = dict(
            filenames=np.array([row.filename for row in rows], np.str_),
            probabilities=_stack([row.probabilities for row in rows], (len(self._layout.classes),)),
            classes=np.array(self._layout.classes, np.str_),
            errors=np.array([row.error for row in rows], np.str_),
        )
        features = [row.features for row in rows]
        if shapes := {feature.shape for feature in features if feature is not None}:
            arrays["features"] = _stack(features, shapes.pop())
        np.savez(path, **arrays)  # type: ignore[arg-type]


def _stack(rows: list[np.ndarray | None], shape: tuple[int, ...]) -> np.ndarray:
    """Return rows as one array, NaN for those that are missing."""
    missing = np.full(shape, np.nan, np.float32)
    return np.stack([missing if row is None else row for row in rows]).astype(np.float32)


@contextlib.contextmanager
def open_writer(path: pathlib.Path | None, layout: Layout) -> Iterator[Writer]:
    """Yield what writes predictions to a file whose name ends in .csv, .jsonl or .npz; to none if `path` is None.

    The file takes its name when the block ends; where the block raises, there is none.

    Raises:
      OSError: it cannot be written.
    """
    if path is None:
        yield NoFile()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        if path.suffix == ".npz":
            arrays = NpzWriter(layout)
            yield arrays
            arrays.save(partial)
            return
        # The names of files may be no text; such bytes are written as they are.
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield CsvWriter(file, layout) if path.suffix == ".csv" else JsonWriter(file, layout)
