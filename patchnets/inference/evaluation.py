"""What a model's predictions on labeled images are worth: scikit-learn's metrics, and calibration."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int, UInt
from sklearn import metrics

from patchnets.errors import RunError, UserError
from patchnets.inference import calibration, labeled
from patchnets.inference import images as images_lib
from patchnets.inference.labeled import LabeledImages
from patchnets.run.model_spec import ModelSpec
from patchnets.runtime.format import list_names, same_name
from patchnets.step.losses import LOSSES, smooth_one_hot

Logits = Float32[np.ndarray, "examples classes"]
CHUNK = 4096  # examples whose loss is computed at a time
MISTAKES = 24  # most confident mistakes whose images are kept
NAMES = 10  # names in a message before it counts the rest


class Classifier(Protocol):
    """What is evaluated: a `Model`."""

    spec: ModelSpec

    def logits_of_decoded(self, decoded: UInt[np.ndarray, "..."], batch_size: int) -> Logits: ...
    def to_probabilities(self, logits: Logits) -> Logits: ...


@dataclasses.dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall, F1 and number of images of a class, or their means (and the sum of images) over classes.

    They are 0 where they are undefined, as scikit-learn's `classification_report` has them.
    """

    precision: float
    recall: float
    f1: float
    images: int


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Expected calibration error (15 bins), before and after temperature scaling.

    Attributes:
      ece: of the model's probabilities.
      temperature: fitted on the validation split; None, as the following are, if there was none.
      scaled_ece, scaled_loss: with logits divided by the temperature.
      fitted_images: the number of validation images.
    """

    ece: float
    temperature: float | None = None
    scaled_ece: float | None = None
    scaled_loss: float | None = None
    fitted_images: int = 0


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The logits of a model for labeled images.

    Attributes:
      names: of the images that were read and are of a class of the model.
      labels: indices of the model's classes.
      unreadable: a line for each image that could not be read.
      unknown_classes: {class of the data that the model does not have: images}.
      mistakes: index and decoded image of the most confident mistakes, most confident first.
    """

    names: tuple[str, ...]
    labels: Int[np.ndarray, " examples"]
    logits: Logits
    unreadable: tuple[str, ...]
    unknown_classes: dict[str, int]
    mistakes: tuple[tuple[int, UInt[np.ndarray, "size size channels"]], ...] = ()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Predictions for labeled images, and what they are worth.

    Attributes:
      data: the name of the data.
      classes: those of the model, in the order of logits.
      outputs: names, labels and logits of the images.
      predicted: index of the predicted class.
      confidence: its probability.
      accuracy, top5_accuracy: shares of the images.
      loss: mean cross-entropy as in training (softmax or sigmoid), without label smoothing.
      per_class: {class: metrics}, for every class of the model.
      macro: their means over the classes that have images.
      confusion: number of images of each (true class, predicted class).
      scaled_confidence: probability of the predicted class with logits divided by the temperature.
      missing_classes: those of the model that have no images.
    """

    data: str
    classes: tuple[str, ...]
    outputs: Outputs
    predicted: Int[np.ndarray, " examples"]
    confidence: Float32[np.ndarray, " examples"]
    accuracy: float
    top5_accuracy: float
    loss: float
    per_class: dict[str, ClassMetrics]
    macro: ClassMetrics
    confusion: Int[np.ndarray, "classes classes"]
    calibration: Calibration
    scaled_confidence: Float32[np.ndarray, " examples"] | None = None

    @property
    def images(self) -> int:
        return len(self.outputs.labels)

    @property
    def unreadable(self) -> tuple[str, ...]:
        return self.outputs.unreadable

    @property
    def unknown_classes(self) -> dict[str, int]:
        return self.outputs.unknown_classes

    @property
    def missing_classes(self) -> tuple[str, ...]:
        return tuple(name for name, values in self.per_class.items() if not values.images)


def as_labeled(data: Any, classes: Sequence[str]) -> LabeledImages:
    """Return a folder, or a pair (images, labels), as labeled images. Raise as `from_folder` and `from_pairs` do."""
    if isinstance(data, LabeledImages):
        return data
    if isinstance(data, str | os.PathLike):
        return labeled.from_folder(data)
    if isinstance(data, tuple) and len(data) == 2:
        return labeled.from_pairs(*data, classes)
    raise TypeError(f"data are a {type(data).__name__}; give a folder, or a pair (images, labels)")


def match_classes(names: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Return {name: index of the class} for the names that are classes, or else differ in their Unicode form alone."""
    exact = {name: i for i, name in enumerate(classes)}
    alike = {same_name(name): i for name, i in reversed(exact.items())} | exact
    return {name: alike[key] for name in names if (key := name if name in exact else same_name(name)) in alike}


def compute_outputs(model: Classifier, data: LabeledImages, batch_size: int) -> Outputs:
    """Apply a model to labeled images.

    Images of classes that the model does not have are counted and left out, unreadable ones are named and left out.

    Raises:
      UserError: the data and the model have no class in common, or none of the images is of one.
      RunError: no image can be read, or an output is not finite.
    """
    index = match_classes(data.classes, model.spec.classes)
    if not index:
        raise UserError(
            f"{data.name} has no class of the model: it has {list_names(data.classes, NAMES, quoted=True)}; "
            f"the model has {list_names(model.spec.classes, NAMES, quoted=True)}"
        )
    names: list[str] = []
    labels: list[int] = []
    unknown = {name: 0 for name in data.classes if name not in index}

    def known_images() -> Any:
        for name, image, label in data.examples():
            if label in unknown:
                unknown[label] += 1
                continue
            names.append(name)
            labels.append(-1 if label is None else index[label])
            yield image

    batches: list[Logits] = []
    kept: list[int] = []
    unreadable: list[str] = []
    worst: list[tuple[float, int, np.ndarray]] = []
    name_of = lambda number: f"image {names[number]} of {data.name}"
    for numbers, decoded in images_lib.readable_batches(known_images(), model.spec, batch_size, name_of, unreadable):
        logits = model.logits_of_decoded(decoded, batch_size)
        batches.append(logits)
        confidence, predicted = model.to_probabilities(logits).max(axis=-1), logits.argmax(axis=-1)
        for i, (number, image) in enumerate(zip(numbers, decoded)):
            if predicted[i] != labels[number]:
                worst.append((float(confidence[i]), len(kept) + i, image.copy()))
        kept += numbers
        worst.sort(key=lambda mistake: -mistake[0])
        del worst[MISTAKES:]
    if not kept and unreadable:
        raise RunError(f"none of the {len(unreadable):,} images of {data.name} can be read; the first: {unreadable[0]}")
    if not kept:
        raise UserError(
            f"{data.name} has no images of the model's classes, {list_names(model.spec.classes, NAMES, quoted=True)}"
        )
    logits = np.concatenate(batches)
    if broken := int((~np.isfinite(logits)).any(axis=-1).sum()):
        raise RunError(f"the outputs for {broken:,} of {len(kept):,} images of {data.name} are not finite")
    return Outputs(
        names=tuple(names[i] for i in kept),
        labels=np.array(labels)[kept],
        logits=logits,
        unreadable=tuple(unreadable),
        unknown_classes=unknown,
        mistakes=tuple((i, image) for _, i, image in worst),
    )


def mean_loss(logits: Logits, labels: Int[np.ndarray, " examples"], loss: str) -> float:
    """Return the mean of a loss of `step.losses` over examples, without label smoothing."""
    chunks = [slice(first, first + CHUNK) for first in range(0, len(labels), CHUNK)]
    losses = [
        np.asarray(LOSSES[loss](logits[rows], smooth_one_hot(jnp.asarray(labels[rows]), logits.shape[1])), np.float64)
        for rows in chunks
    ]
    return float(np.concatenate(losses).mean())


def top_k_accuracy(logits: Logits, labels: Int[np.ndarray, " examples"], k: int) -> float:
    """Return the share of examples whose class is among the `k` of the highest logits; of equal ones the earlier first.

    scikit-learn puts the later of two equal classes first; so it gets them in reverse order.
    """
    classes = logits.shape[1]
    if k >= classes:
        return 1.0
    return float(metrics.top_k_accuracy_score(classes - 1 - labels, logits[:, ::-1], k=k, labels=np.arange(classes)))


def evaluate(
    model: Classifier, data: LabeledImages, val: LabeledImages | None = None, batch_size: int = 64
) -> Evaluation:
    """Evaluate a model on labeled images, with a temperature fitted on the validation images `val`.

    Raises: as `compute_outputs`.
    """
    outputs = compute_outputs(model, data, batch_size)
    return compute_metrics(model, data.name, outputs, compute_outputs(model, val, batch_size) if val else None)


def compute_metrics(model: Classifier, name: str, outputs: Outputs, val: Outputs | None = None) -> Evaluation:
    """Return the evaluation of outputs; those of validation images fit the temperature."""
    spec, labels, logits = model.spec, outputs.labels, outputs.logits
    predicted = logits.argmax(axis=-1)
    rows = np.arange(len(labels))

    def confidence_of(logits: Logits) -> Float[np.ndarray, " examples"]:
        return model.to_probabilities(logits)[rows, predicted]

    every = np.arange(len(spec.classes))
    scores = functools.partial(metrics.precision_recall_fscore_support, labels, predicted, zero_division=0)
    macro = scores(labels=np.unique(labels), average="macro")
    confidence = confidence_of(logits)
    correct = predicted == labels
    ece = calibration.calibration_error(confidence, correct)[0]
    calibrated, scaled_confidence = Calibration(ece), None
    if val is not None:
        temperature = calibration.fit_temperature(val.logits, val.labels, spec.loss)
        scaled = scale_logits(logits, temperature)
        scaled_confidence = confidence_of(scaled)
        calibrated = Calibration(
            ece=ece,
            temperature=temperature,
            scaled_ece=calibration.calibration_error(scaled_confidence, correct)[0],
            scaled_loss=mean_loss(scaled, labels, spec.loss),
            fitted_images=len(val.labels),
        )
    return Evaluation(
        data=name,
        classes=spec.classes,
        outputs=outputs,
        predicted=predicted,
        confidence=confidence,
        accuracy=float(metrics.accuracy_score(labels, predicted)),
        top5_accuracy=top_k_accuracy(logits, labels, 5),
        loss=mean_loss(logits, labels, spec.loss),
        per_class={
            class_name: ClassMetrics(float(precision), float(recall), float(f1), int(support))
            for class_name, precision, recall, f1, support in zip(spec.classes, *scores(labels=every))
        },
        macro=ClassMetrics(float(macro[0]), float(macro[1]), float(macro[2]), len(labels)),
        confusion=metrics.confusion_matrix(labels, predicted, labels=every),
        calibration=calibrated,
        scaled_confidence=scaled_confidence,
    )


def scale_logits(logits: Logits, temperature: float) -> Logits:
    """Return logits divided by a temperature."""
    return (logits / np.float32(temperature)).astype(np.float32)
