"""Plots of predictions: confusion matrix, accuracy by class, mistakes, calibration."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt

from patchnets.inference import calibration as calibration_lib
from patchnets.plots.figures import bare, label, pyplot, to_rgb

NAMED = 25  # largest number of classes whose names fit next to a matrix
ABOVE = 20  # columns of a name above a small image
BINS = calibration_lib.BINS


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions for every example of a split.

    Attributes:
      labels, predicted: true and predicted class.
      confidence: probability of the predicted class.
      mistaken: indices of the most confident mistakes.
      images: their images, in the same order.
      split: name of the split, for titles.
    """

    labels: Int[np.ndarray, " examples"]
    predicted: Int[np.ndarray, " examples"]
    confidence: Float[np.ndarray, " examples"]
    mistaken: Int[np.ndarray, " mistakes"]
    images: UInt[np.ndarray, "mistakes height width channels"]
    split: str = "test"

    @property
    def accuracy(self) -> float:
        return float((self.labels == self.predicted).mean())


def confusion_matrix(predictions: Predictions, classes: int) -> Int[np.ndarray, "true predicted"]:
    """Count the examples of each (true class, predicted class)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (predictions.labels, predictions.predicted), 1)
    return counts


def class_accuracy(counts: Int[np.ndarray, "true predicted"]) -> Float[np.ndarray, " classes"]:
    """Return the accuracy of each class; NaN for a class without examples."""
    totals = counts.sum(axis=1)
    return np.where(totals > 0, counts.diagonal() / np.maximum(totals, 1), np.nan)


def calibration_error(predictions: Predictions, bins: int = BINS) -> tuple[float, list[tuple[int, float, float]]]:
    """Return the expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3), and (examples, mean
    confidence, accuracy) of each of `bins` equal bins of confidence."""
    return calibration_lib.calibration_error(predictions.confidence, predictions.labels == predictions.predicted, bins)


def confusion(predictions: Predictions, names: Sequence[str]) -> Any:
    """Plot the confusion matrix, rows normalized by class, with counts if there are few classes."""
    counts = confusion_matrix(predictions, len(names))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    plt = pyplot()
    few = len(names) <= NAMED
    side = 3.5 + 0.32 * len(names) if few else 9.0
    figure, axis = plt.subplots(figsize=(side + 1, side), layout="constrained")
    shown = axis.imshow(shares, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    if few:
        axis.set_xticks(range(len(names)), list(map(label, names)), rotation=90, fontsize=8)
        axis.set_yticks(range(len(names)), list(map(label, names)), fontsize=8)
        for i, j in zip(*np.nonzero(counts)):
            color = "black" if shares[i, j] > 0.6 else "white"
            axis.text(j, i, counts[i, j], ha="center", va="center", fontsize=6, color=color)
    axis.set(
        xlabel="predicted class" + ("" if few else " (number)"), ylabel="true class" + ("" if few else " (number)")
    )
    figure.colorbar(shown, ax=axis, label="share of the class", shrink=0.8)
    figure.suptitle(
        f"Confusion over {len(predictions.labels):,} {predictions.split} images: top-1 {predictions.accuracy:.2%}",
        fontsize=10,
    )
    return figure


def per_class(predictions: Predictions, names: Sequence[str], shown: int = 20) -> Any:
    """Plot the accuracy of every class, or of the best and worst if there are many, and the overall accuracy."""
    accuracy = class_accuracy(confusion_matrix(predictions, len(names)))
    order = [int(i) for i in np.argsort(-accuracy) if np.isfinite(accuracy[i])]
    many = len(order) > 2 * shown
    chosen = order[:shown] + order[-shown:] if many else order
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(8, 1.6 + 0.19 * len(chosen)), layout="constrained")
    positions = [i + (2 if many and i >= shown else 0) for i in range(len(chosen))]
    axis.barh(positions, 100 * accuracy[chosen], color="tab:blue", height=0.75)
    axis.set_yticks(positions, [label(names[i]) for i in chosen], fontsize=8)
    axis.invert_yaxis()
    axis.axvline(100 * predictions.accuracy, color="tab:orange", linestyle="--")
    axis.set(xlabel=f"top-1 accuracy (%); dashed: all images, {predictions.accuracy:.2%}", xlim=(0, 100))
    subset = f"the {shown} best and the {shown} worst of {len(order)} classes" if many else f"{len(order)} classes"
    figure.suptitle(
        f"Accuracy by class on {len(predictions.labels):,} {predictions.split} images: {subset}", fontsize=10
    )
    return figure


def mistakes(predictions: Predictions, names: Sequence[str]) -> Any:
    """Plot the most confident mistakes with their images; None if there are none."""
    if not len(predictions.mistaken):
        return None
    plt = pyplot()
    columns = min(8, len(predictions.mistaken))
    rows = -(-len(predictions.mistaken) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(4.5, 1.55 * columns), 2.15 * rows + 0.5), squeeze=False, layout="constrained"
    )
    for axis in axes.ravel():
        bare(axis)
    for axis, i, image in zip(axes.ravel(), predictions.mistaken, predictions.images):
        axis.imshow(to_rgb(image / np.iinfo(image.dtype).max))
        true, predicted = (label(names[k], ABOVE) for k in (predictions.labels[i], predictions.predicted[i]))
        axis.set_title(f"{predicted} ({predictions.confidence[i]:.0%})\ntrue: {true}", fontsize=7.5)
    figure.suptitle(
        f"The most confident mistakes on {len(predictions.labels):,} {predictions.split} images", fontsize=10
    )
    return figure


def calibration(predictions: Predictions, note: str = "") -> Any:
    """Plot accuracy and number of examples against confidence, with the expected calibration error.

    Args:
      note: to add to the title.
    """
    error, rows = calibration_error(predictions)
    plt = pyplot()
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(5.4, 6.2), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    middles, width = (np.arange(BINS) + 0.5) / BINS, 1 / BINS
    above.bar(middles, [row[2] for row in rows], width=0.94 * width, color="tab:blue", label="accuracy of the bin")
    above.plot([0, 1], [0, 1], color="tab:gray", linestyle="--", label="perfectly calibrated")
    above.plot(*zip(*[(row[1], row[2]) for row in rows if row[0]]), "o", color="tab:orange", markersize=4)
    above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    above.legend(fontsize=8, loc="upper left")
    below.bar(middles, [row[0] for row in rows], width=0.94 * width, color="tab:gray")
    below.set(xlabel="confidence: probability of the predicted class", ylabel="images")
    figure.suptitle(
        f"Calibration on {len(predictions.labels):,} {predictions.split} images\n"
        + ", ".join(filter(None, [f"ECE {error:.2%} ({BINS} bins)", note])),
        fontsize=10,
    )
    return figure
