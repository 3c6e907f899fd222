"""Classifiers on features, against their definitions written out."""

import numpy as np
import pytest

from patchnets.errors import UserError
from patchnets.inference import probes


@pytest.fixture(scope="module")
def data():
    """Features of three classes that overlap: (train, labels, test, labels)."""
    random = np.random.default_rng(0)
    centers = random.standard_normal((3, 6))

    def draw(count):
        labels = random.integers(0, 3, count)
        return (centers[labels] + 0.8 * random.standard_normal((count, 6))).astype(np.float32), labels

    return *draw(90), *draw(60)


def test_neighbors_vote_by_their_similarity_as_in_dino(data):
    train, labels, test, test_labels = data
    unit = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in (train, test)]
    similarities = unit[1] @ unit[0].T
    correct = 0
    for row, label in zip(similarities, test_labels):
        nearest = np.argsort(-row)[:7]
        votes = np.zeros(3)
        for i in nearest:
            votes[labels[i]] += np.exp(row[i] / 0.07)
        correct += votes.argmax() == label
    result = probes.knn(train, labels, test, test_labels, k=7)
    assert result.accuracy == pytest.approx(correct / len(test))
    assert 0.4 < result.accuracy < 1


def test_the_nearest_neighbor_decides_alone_at_a_low_temperature(data):
    train, train_labels, test, test_labels = data
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
    nearest = train_labels[(unit(test) @ unit(train).T).argmax(axis=1)]
    result = probes.knn(train, train_labels, test, test_labels, k=9, temperature=1e-7)
    assert result.accuracy == pytest.approx((nearest == test_labels).mean())


@pytest.mark.parametrize("count", [5, 80], ids=["fewer images than features", "more"])
def test_least_squares_have_the_smallest_penalized_error(data, count):
    train, labels, test, _ = data
    x = (train[:count] - train[:count].mean(0)) / (train[:count].std(0) + 1e-5)
    x, z = np.pad(x, ((0, 0), (0, 1)), constant_values=1), None
    targets = 2 * np.eye(3)[labels[:count]] - 1
    stacked = np.concatenate([x, np.sqrt(2.0) * np.eye(7)]), np.concatenate([targets, np.zeros((7, 3))])
    weights = np.linalg.lstsq(*stacked, rcond=None)[0]
    z = np.pad((test - train[:count].mean(0)) / (train[:count].std(0) + 1e-5), ((0, 0), (0, 1)), constant_values=1)
    actual = probes.least_squares(train[:count], labels[:count], test, 3, l2=2.0)
    np.testing.assert_allclose(actual, z @ weights, atol=1e-5)


def test_few_shots_are_drawn_by_the_seed_and_more_of_them_are_better(data):
    results = [probes.fewshot(*data, shots=shots, l2=1.0, draws=20) for shots in (1, 20)]
    assert results[0].accuracy < results[1].accuracy
    assert probes.fewshot(*data, shots=1, l2=1.0, draws=20) == results[0]
    assert probes.fewshot(*data, shots=1, l2=1.0, draws=20, seed=1).accuracy != results[0].accuracy
    assert 0 < results[1].interval < results[0].interval
    with pytest.raises(UserError, match="training images of class . , and 60 are needed".replace(" ,", ",")):
        probes.fewshot(*data, shots=60)


def test_the_regularization_is_that_which_is_best_on_validation(data):
    from sklearn.linear_model import LogisticRegression

    train, labels, test, test_labels = data
    options = (1e-4, 1e2)
    result = probes.linear(train[:60], labels[:60], train[60:], labels[60:], test, test_labels, options)
    scale = np.sqrt((train[:60].astype(np.float64) ** 2).mean())
    scores = {}
    for value in options:
        classifier = LogisticRegression(C=1 / (value * 60), max_iter=500).fit(train[:60] / scale, labels[:60])
        scores[value] = (classifier.score(train[60:] / scale, labels[60:]), classifier.score(test / scale, test_labels))
    best = max(options, key=lambda value: scores[value][0])
    assert scores[options[0]][0] != scores[options[1]][0]
    assert result.settings["regularization"] == best
    assert result.accuracy == scores[best][1]


def test_the_interval_of_a_share_is_that_of_wilson():
    result = probes._of_share(0.5, 100)
    low, high = 0.4038, 0.5962  # the textbook's
    assert result == pytest.approx((high - low) / 2, abs=1e-4)
