"""Plots of predictions against counts by hand and scikit-learn."""

import dataclasses

import numpy as np
import pytest
from sklearn import metrics

from patchnets.plots import predictions
from patchnets.plots.predictions import Predictions


def seen_of(labels, actual, confidence, mistaken=()):
    images = np.zeros((len(mistaken), 4, 4, 3), np.uint8)
    return Predictions(*map(np.asarray, (labels, actual, confidence)), np.asarray(mistaken, int), images)


@pytest.fixture
def many():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 30, 2000)
    actual = np.where(rng.random(2000) < 0.6, labels, rng.integers(0, 30, 2000))
    return seen_of(labels, actual, rng.random(2000).astype(np.float32), mistaken=np.flatnonzero(labels != actual)[:5])


def test_confusion_and_accuracy_by_class_agree_with_scikit_learn(many):
    counts = predictions.confusion_matrix(many, 30)
    np.testing.assert_array_equal(counts, metrics.confusion_matrix(many.labels, many.predicted, labels=range(30)))
    expected = metrics.recall_score(many.labels, many.predicted, average=None, labels=range(30))
    np.testing.assert_allclose(predictions.class_accuracy(counts), expected)
    assert many.accuracy == metrics.accuracy_score(many.labels, many.predicted)


def test_a_class_without_examples_has_no_accuracy():
    accuracy = predictions.class_accuracy(predictions.confusion_matrix(seen_of([0, 0, 2], [0, 1, 2], [1, 1, 1]), 3))
    np.testing.assert_array_equal(accuracy, [0.5, np.nan, 1.0])


def test_calibration_error_by_hand():
    # Two bins of 10: confidences .92 and .98 with one right, .31 with none right, 1.0 in the last bin and right.
    observed = seen_of([0, 0, 0, 0], [0, 1, 1, 0], [0.92, 0.98, 0.31, 1.0])
    error, rows = predictions.calibration_error(observed, bins=10)
    last = abs((0.92 + 0.98 + 1.0) / 3 - 2 / 3)
    assert error == pytest.approx(3 / 4 * last + 1 / 4 * 0.31)
    assert [row[0] for row in rows] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 3]


def test_a_network_as_sure_as_it_is_right_has_no_calibration_error():
    rng = np.random.default_rng(1)
    confidence = rng.random(200_000).astype(np.float32)
    right = rng.random(200_000) < confidence
    error, _ = predictions.calibration_error(seen_of(np.zeros(200_000, int), np.where(right, 0, 1), confidence))
    assert error < 0.01


def test_pictures_say_what_they_show(many):
    names = [f"class {i}" for i in range(30)]
    assert "top-1" in predictions.confusion(many, names).get_suptitle()
    figure = predictions.per_class(many, names)
    assert len(figure.axes[0].get_yticklabels()) == 30
    best = figure.axes[0].get_yticklabels()[0].get_text()
    accuracy = predictions.class_accuracy(predictions.confusion_matrix(many, 30))
    assert best == names[int(accuracy.argmax())]
    shown = predictions.mistakes(many, names)
    first = many.mistaken[0]
    assert (
        names[many.predicted[first]] in shown.axes[0].get_title()
        and names[many.labels[first]] in shown.axes[0].get_title()
    )
    assert "ECE" in predictions.calibration(many).get_suptitle()
    assert predictions.mistakes(seen_of([0], [0], [1.0]), names) is None


def test_of_very_many_classes_the_best_and_the_worst_are_shown():
    labels = np.repeat(np.arange(200), 10)
    right = np.tile(np.arange(10), 200) < np.repeat(np.arange(200), 10) / 20  # the more, the later the class
    figure = predictions.per_class(
        seen_of(labels, np.where(right, labels, 0), np.ones(2000)), list(map(str, range(200)))
    )
    assert len(figure.axes[0].get_yticklabels()) == 40 and "20 best and the 20 worst of 200" in figure.get_suptitle()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_mistakes_are_shown_whatever_their_channels(channels, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (1, 4, 4, channels)).astype(np.uint8)
    observed = dataclasses.replace(seen_of([0, 1], [1, 1], [0.9, 0.8], mistaken=[0]), images=images)
    figure = predictions.mistakes(observed, ["a", "b"])
    shown = figure.axes[0].get_images()[0].get_array()
    expected = images[0] if channels == 3 else images[0].mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    np.testing.assert_allclose(shown, expected / 255)
    predictions.pyplot().close(figure)
