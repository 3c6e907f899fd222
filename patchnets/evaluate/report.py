"""What an evaluation leaves and shows: files, pictures, and a table on the terminal."""

import contextlib
import csv
import dataclasses
import functools
import json
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from patchnets import __version__
from patchnets.inference import evaluation as evaluation_lib
from patchnets.inference.calibration import BINS
from patchnets.inference.evaluation import Evaluation
from patchnets.plots import figures, predictions
from patchnets.plots.predictions import Predictions
from patchnets.runtime.files import removed_afterwards
from patchnets.runtime.format import list_names, printable

WORST = 5  # classes on the terminal
FILES = (
    "predictions.csv",
    "per_class.csv",
    "confusion.csv",
    "confusion.png",
    "class_accuracy.png",
    "calibration.png",
    "calibration_scaled.png",
    "mistakes.png",
    "evaluation.json",
)


@contextlib.contextmanager
def output_folder(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield an empty folder whose files are moved into `directory` after the block, evaluation.json last.

    Files of an earlier evaluation give way, others stay. If the block raises, `directory` stays as it was.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent)
    try:
        with removed_afterwards(pathlib.Path(temporary)) as partial:
            partial.chmod(0o755)
            yield partial
            directory.mkdir(exist_ok=True)
            (directory / "evaluation.json").unlink(missing_ok=True)
            for name in FILES:
                if (partial / name).exists():
                    (partial / name).replace(directory / name)
                else:
                    (directory / name).unlink(missing_ok=True)
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # it holds something now
                path.rmdir()


def write_files(
    evaluation: Evaluation, about: Mapping[str, Any], directory: pathlib.Path, *, title: str, numbered: bool
) -> list[str]:
    """Write the files and pictures of an evaluation; return their names.

    Args:
      about: what evaluation.json begins with.
      title: the name of the data in pictures.
      numbered: whether images are named by their number.
    """
    _write_csv(directory / "predictions.csv", _prediction_rows(evaluation, "index" if numbered else "filename"))
    _write_csv(directory / "per_class.csv", _class_rows(evaluation))
    _write_csv(directory / "confusion.csv", _confusion_rows(evaluation))
    for name, figure in make_figures(evaluation, title).items():
        figures.save(figure, directory / f"{name}.png")
    content = dict(about) | to_json(evaluation)
    (directory / "evaluation.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    return [name for name in FILES if (directory / name).exists()]


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of evaluation.json."""
    macro = dataclasses.asdict(evaluation.macro)
    del macro["images"]
    return {
        "data": evaluation.data,
        "images": evaluation.images,
        "accuracy": evaluation.accuracy,
        "top5_accuracy": evaluation.top5_accuracy,
        "loss": evaluation.loss,
        "macro": macro | {"classes": len(evaluation.classes) - len(evaluation.missing_classes)},
        "calibration": {"bins": BINS} | dataclasses.asdict(evaluation.calibration),
        "classes": list(evaluation.classes),
        "classes_without_images": list(evaluation.missing_classes),
        "classes_not_in_model": evaluation.unknown_classes,
        "unreadable": [printable(line) for line in evaluation.unreadable],
        "patchnets": __version__,
    }


def _write_csv(path: pathlib.Path, rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _prediction_rows(evaluation: Evaluation, name: str) -> Iterator[Sequence[Any]]:
    yield name, "label", "prediction", "probability", "correct"
    outputs, classes = evaluation.outputs, evaluation.classes
    columns = outputs.names, outputs.labels, evaluation.predicted, evaluation.confidence
    for image, label, predicted, confidence in zip(*columns):
        yield image, classes[label], classes[predicted], f"{confidence:.6g}", int(label == predicted)


def _class_rows(evaluation: Evaluation) -> Iterator[Sequence[Any]]:
    yield "class", "precision", "recall", "f1", "support"
    for name, values in evaluation.per_class.items():
        yield name, f"{values.precision:.6g}", f"{values.recall:.6g}", f"{values.f1:.6g}", values.images


def _confusion_rows(evaluation: Evaluation) -> Iterator[Sequence[Any]]:
    yield "label / prediction", *evaluation.classes
    for name, row in zip(evaluation.classes, evaluation.confusion.tolist()):
        yield name, *row


def make_figures(evaluation: Evaluation, title: str) -> dict[str, Any]:
    """Return {name: figure} of the pictures, in which the data are called `title`."""
    outputs = evaluation.outputs
    chosen, images = zip(*outputs.mistakes) if outputs.mistakes else ((), ())
    shown = np.stack(images) if images else np.zeros((0, 1, 1, 1), np.uint8)
    made = functools.partial(
        Predictions, outputs.labels, evaluation.predicted, mistaken=np.array(chosen, int), images=shown
    )
    plain = made(confidence=evaluation.confidence, split=_short(title))
    drawn = {
        "confusion": predictions.confusion(plain, evaluation.classes),
        "class_accuracy": predictions.per_class(plain, evaluation.classes),
        "calibration": predictions.calibration(plain),
        "mistakes": predictions.mistakes(plain, evaluation.classes),
    }
    if evaluation.scaled_confidence is not None:
        scaled = made(confidence=evaluation.scaled_confidence, split=_short(title))
        note = f"temperature {evaluation.calibration.temperature:.3g}"
        drawn["calibration_scaled"] = predictions.calibration(scaled, note)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def format_table(evaluation: Evaluation, val_name: str) -> str:
    """Return the lines for the terminal.

    Args:
      val_name: on which images the temperature was fitted, or why none was.
    """
    per_class, macro = evaluation.per_class, evaluation.macro
    with_images = [name for name, values in per_class.items() if values.images]
    worst = sorted(with_images, key=lambda name: per_class[name].f1)[:WORST]
    width = max(12, *(len(_short(name)) for name in worst))
    lines = [
        f"{evaluation.data}: {evaluation.images:,} images, {len(with_images):,} classes",
        f"  accuracy {_percent(evaluation.accuracy)}   top-5 {_percent(evaluation.top5_accuracy)}   "
        f"loss {evaluation.loss:.4f}",
        f"  {'':{width}}  precision    recall        F1  images",
        f"  {'macro':{width}}  {_row(macro)}",
    ]
    lines += [f"  {_short(name):{width}}  {_row(per_class[name])}" for name in worst]
    if len(with_images) > WORST:
        lines.append(f"  (the {WORST} classes of the lowest F1; the others are in per_class.csv)")
    calibration = evaluation.calibration
    text = f"  calibration error (ECE, {BINS} bins) {_percent(calibration.ece)}"
    if calibration.temperature is None:
        lines.append(f"{text}; no temperature was fitted: {val_name}")
    else:
        lines.append(
            f"{text}; {_percent(calibration.scaled_ece or 0.0)} at temperature {calibration.temperature:.3f}, "
            f"fitted on {val_name} ({calibration.fitted_images:,} images)"
        )
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{share:.2%}".replace("%", " %")


def _row(values: evaluation_lib.ClassMetrics) -> str:
    numbers = "  ".join(f"{_percent(share):>8}" for share in (values.precision, values.recall, values.f1))
    return f" {numbers}  {values.images:6,}"


def _short(name: str, limit: int = 32) -> str:
    name = printable(name)
    return name if len(name) <= limit else name[: limit - 3] + "..."


def format_notes(evaluation: Evaluation, limit: int = 20) -> list[str]:
    """Return a line for the classes that the model lacks, for those without images, and for each broken image."""
    notes = []
    if unknown := evaluation.unknown_classes:
        notes.append(
            f"the model does not have {_classes(list(unknown))}; "
            f"their {sum(unknown.values()):,} images are left out of the figures"
        )
    if missing := evaluation.missing_classes:
        notes.append(f"there are no images of {_classes(missing)} of the model")
    broken = evaluation.unreadable
    notes += [printable(line) for line in broken[:limit]]
    if len(broken) > limit:
        notes.append(f"{len(broken) - limit:,} more images cannot be read; evaluation.json names them")
    if broken:
        notes.append(f"{len(broken):,} images could not be read and are left out of the figures")
    return notes


def _classes(names: Sequence[str]) -> str:
    noun = "class" if len(names) == 1 else f"{len(names):,} classes"
    return f"{noun} {list_names(names, evaluation_lib.NAMES, quoted=True)}"
