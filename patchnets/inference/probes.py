"""Accuracy of simple classifiers on a network's features: nearest neighbors, few examples a class, logistic regression.

Features are rows, one for each image; labels are whole numbers from 0. Everything is a function of its arguments and
the seed.
"""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from patchnets.errors import UserError

Features = Float[np.ndarray, "images width"]
Labels = Int[np.ndarray, " images"]
PROBES = ("knn", "fewshot", "linear")
SHOTS = (1, 5, 10, 25)
REGULARIZATION = tuple(10.0**e for e in range(-6, 5))  # times half the squared norm, added to the mean loss


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """The accuracy of a classifier on features.

    Attributes:
      name: knn, fewshot or linear.
      accuracy: on the test images; the mean over draws.
      interval: half of its 95 % confidence interval: over draws of the training images if there are several (Student's
        t), else of a share of as many test images (Wilson's).
      settings: what the classifier was.
    """

    name: str
    accuracy: float
    interval: float
    settings: dict[str, int | float]

    @property
    def metric(self) -> str:
        """The name among the metrics of a run: knn, fewshot_5, linear."""
        return f"{self.name}_{self.settings['shots']}" if self.name == "fewshot" else self.name

    def __str__(self) -> str:
        """Format as "knn      top-1 93.20% +- 1.10%  (k 20, temperature 0.07)"."""
        settings = ", ".join(f"{name} {value:g}" for name, value in self.settings.items())
        return f"{self.name:<8} top-1 {self.accuracy:.2%} +- {self.interval:.2%}  ({settings})"


@dataclasses.dataclass(frozen=True)
class ProbeSettings:
    """Which probes, and their settings: of knn `k` and `temperature`, of fewshot `shots`, `draws` and `seed`."""

    names: Sequence[str] = PROBES
    k: int = 20
    temperature: float = 0.07
    shots: Sequence[int] = SHOTS
    draws: int = 5
    seed: int = 0


class LabeledFeatures(NamedTuple):
    """Features of images and indices of their classes."""

    features: Features
    labels: Labels


def run_probes(
    settings: ProbeSettings, train: LabeledFeatures, test: LabeledFeatures, val: LabeledFeatures | None = None
) -> tuple[list[ProbeResult], list[str]]:
    """Return the results of probes, few-shot ones for as many shots as every class has images, and lines on what was
    left out. linear needs `val`."""
    fit, on = (train.features, train.labels), (test.features, test.labels)
    results: list[ProbeResult] = []
    notes: list[str] = []
    if "knn" in settings.names:
        results.append(knn(*fit, *on, k=settings.k, temperature=settings.temperature))
    if "fewshot" in settings.names:
        fewest = int(np.unique(train.labels, return_counts=True)[1].min())
        possible = [shots for shots in settings.shots if shots <= fewest]
        results += [fewshot(*fit, *on, shots, draws=settings.draws, seed=settings.seed) for shots in possible]
        if len(possible) < len(settings.shots):
            notes.append(f"a class has {fewest} training images; no more shots than that")
    if "linear" in settings.names:
        assert val is not None
        results.append(linear(*fit, val.features, val.labels, *on))
    return results, notes


def knn(
    train: Features, train_labels: Labels, test: Features, test_labels: Labels, k: int = 20, temperature: float = 0.07
) -> ProbeResult:
    """Classify by the `k` most similar training images, each with a vote of exp(cosine / temperature).

    This is the classifier of DINO (arXiv 2104.14294, section 4.1) and its authors' code.
    """
    from sklearn.neighbors import KNeighborsClassifier

    k = min(k, len(train))

    def votes(distances: np.ndarray) -> np.ndarray:  # as shares of the nearest's, which is never too small for a float
        return np.exp((distances.min(axis=1, keepdims=True) - distances) / temperature)

    classifier = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=votes)
    predicted = classifier.fit(train, train_labels).predict(test)
    accuracy = float((predicted == test_labels).mean())
    return ProbeResult("knn", accuracy, _of_share(accuracy, len(test)), dict(k=k, temperature=temperature))


def fewshot(
    train: Features,
    train_labels: Labels,
    test: Features,
    test_labels: Labels,
    shots: int,
    *,
    draws: int = 5,
    l2: float = 2.0**10,
    seed: int = 0,
) -> ProbeResult:
    """Classify by linear least squares fitted to `shots` training images of each class, the mean over `draws`.

    As in ViT (arXiv 2010.11929, section 4.1) and big_vision: targets of 1 and -1, features scaled to mean 0 and
    deviation 1, a bias, and `l2` times the squared norm of the weights.

    Raises:
      UserError: a class has fewer images.
    """
    from scipy import stats

    classes = np.unique(train_labels)
    counts = {int(label): int((train_labels == label).sum()) for label in classes}
    if min(counts.values()) < shots:
        label = min(counts, key=counts.__getitem__)
        raise UserError(f"there are {counts[label]} training images of class {label}, and {shots} are needed")
    accuracies = []
    for draw in range(draws):
        chosen = draw_shots(train_labels, shots, draw, seed)
        scores = least_squares(train[chosen], np.searchsorted(classes, train_labels[chosen]), test, len(classes), l2)
        accuracies.append(float((classes[scores.argmax(axis=1)] == test_labels).mean()))
    accuracy = float(np.mean(accuracies))
    error = float(np.std(accuracies, ddof=1)) / math.sqrt(draws) if draws > 1 else 0.0
    interval = float(stats.t.ppf(0.975, draws - 1)) * error if draws > 1 else _of_share(accuracy, len(test))
    return ProbeResult("fewshot", accuracy, interval, dict(shots=shots, draws=draws, l2=l2, seed=seed))


def draw_shots(labels: Labels, shots: int, draw: int, seed: int = 0) -> Labels:
    """Return the positions of `shots` images of each class, drawn at random for each `draw`."""
    random = np.random.default_rng((seed, shots, draw))
    return np.concatenate(
        [random.choice(np.flatnonzero(labels == label), shots, replace=False) for label in np.unique(labels)]
    )


def least_squares(
    train: Features, labels: Labels, test: Features, num_classes: int, l2: float
) -> Float[np.ndarray, "images classes"]:
    """Return the scores of test images by ridge regression on targets of 1 and -1, in closed form."""
    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-5
    x, z = (
        np.pad((f.astype(np.float64) - mean) / deviation, ((0, 0), (0, 1)), constant_values=1) for f in (train, test)
    )
    targets = 2 * np.eye(num_classes)[labels] - 1
    if len(x) > x.shape[1]:
        return z @ np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ targets)
    return z @ (x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), targets))


def linear(
    train: Features,
    train_labels: Labels,
    val: Features,
    val_labels: Labels,
    test: Features,
    test_labels: Labels,
    regularization: Sequence[float] = REGULARIZATION,
) -> ProbeResult:
    """Classify by logistic regression (L-BFGS), with the regularization that is best on validation images.

    As in CLIP (arXiv 2103.00020, appendix A.3), whose features are also used as they are but for their scale.
    """
    if len(np.unique(train_labels)) < 2:
        raise UserError("a linear probe takes training images of at least two classes, and there is one")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    scale = float(np.sqrt((train.astype(np.float64) ** 2).mean())) or 1.0
    train, val, test = (features / scale for features in (train, val, test))
    best: tuple[float, float, LogisticRegression] | None = None
    for value in sorted(regularization, reverse=True):
        classifier = LogisticRegression(C=1 / (value * len(train)), max_iter=500)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(train, train_labels)
        accuracy = float(classifier.score(val, val_labels))
        if best is None or accuracy > best[0]:
            best = accuracy, value, classifier
    assert best is not None
    accuracy = float(best[2].score(test, test_labels))
    settings = dict(regularization=best[1], val_accuracy=best[0])
    return ProbeResult("linear", accuracy, _of_share(accuracy, len(test)), settings)


def _of_share(share: float, count: int) -> float:
    """Return half of the 95 % confidence interval (Wilson) of a share of `count` images."""
    z = 1.96
    return z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
