"""Calibration: how far probabilities are from accuracies, and the temperature that brings them closer.

C. Guo et al., "On Calibration of Modern Neural Networks", 2017 (arXiv 1706.04599).
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

BINS = 15  # as in the paper's tables
LOWEST, HIGHEST = 0.01, 100.0  # bounds of the temperature


def calibration_error(
    confidence: Float[np.ndarray, " examples"], correct: Bool[np.ndarray, " examples"], bins: int = BINS
) -> tuple[float, list[tuple[int, float, float]]]:
    """Return the expected calibration error (equation 3), and (examples, mean confidence, accuracy) of each bin.

    Args:
      confidence: the probability of the predicted class.
      correct: whether that class is the true one.
      bins: the number of bins of equal width.
    """
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    rows, error = [], 0.0
    for i in range(bins):
        held = which == i
        if count := int(held.sum()):
            mean, accuracy = float(confidence[held].mean()), float(correct[held].mean())
            rows.append((count, mean, accuracy))
            error += count / len(which) * abs(mean - accuracy)
        else:
            rows.append((0, (i + 0.5) / bins, float("nan")))
    return error, rows


def fit_temperature(
    logits: Float32[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"], loss: str
) -> float:
    """Return the temperature by which to divide logits so that the loss on validation examples is lowest (section 4.2).

    It lies between `LOWEST` and `HIGHEST`; a validation split without a mistake pulls it down.

    Args:
      loss: softmax, or sigmoid, whose loss is the sum over classes of the cross-entropy of each.
    """
    from scipy import optimize, special

    logits = logits.astype(np.float64)
    rows = np.arange(len(labels))

    def mean_loss(log_temperature: float) -> float:
        scaled = logits * np.exp(-log_temperature)
        if loss == "softmax":
            return float(-special.log_softmax(scaled, axis=-1)[rows, labels].mean())
        # -log sigmoid(z) of the label, -log(1 - sigmoid(z)) = z - log sigmoid(z) of the other classes
        return float((scaled.sum(axis=-1) - scaled[rows, labels] - special.log_expit(scaled).sum(axis=-1)).mean())

    bounds = np.log([LOWEST, HIGHEST])  # the loss is convex in 1 / temperature, so it has one minimum here
    fit = optimize.minimize_scalar(mean_loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(fit.x))
