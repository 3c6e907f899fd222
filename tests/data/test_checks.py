"""What is said of a data set whose figures mean less than they seem to, and that nothing is said of a sound one."""

import numpy as np

from patchnets.data import checks
from patchnets.data.sources import digits


def labels(*counts):
    return np.repeat(np.arange(len(counts)), counts)


def test_a_single_class_is_named():
    (line,) = checks.check_classes(["ant"], labels(7))
    assert line == "WARNING: there is one class only, ant: every prediction will be right"


def test_classes_of_one_image_or_none_are_named():
    assert checks.check_classes(["ant", "bee", "wasp"], labels(1, 5, 0)) == [
        "WARNING: no training image of wasp",
        "WARNING: a single training image of ant",
    ]
    (line,) = checks.check_classes([f"c{i}" for i in range(8)], labels(*[1] * 7, 4))
    assert line == "WARNING: a single training image of c0, c1, c2, c3, c4 and 2 more"


def test_imbalance_is_named_from_three_times_on():
    assert checks.check_classes(["ant", "bee"], labels(10, 29)) == []
    (line,) = checks.check_classes(["ant", "bee"], labels(1_000, 30_000))
    assert "1,000 training images of ant, 30,000 of bee" in line


def test_images_of_train_in_other_splits_are_counted():
    generator = np.random.default_rng(0)
    train = generator.integers(0, 256, (20, 4, 4, 3), np.uint8)
    val, test = generator.integers(0, 256, (2, 10, 4, 4, 3), np.uint8)
    assert checks.check_duplicates({"train": train, "val": val, "test": test}) == []
    test[[2, 5, 7]] = train[[1, 1, 3]]
    test[9] = val[0]
    assert checks.check_duplicates({"train": train, "val": val, "test": test}) == [
        "WARNING: 3 of 10 test images are in train too, pixel for pixel",
        "WARNING: 1 of 10 test images are in val too, pixel for pixel",
    ]


def test_large_splits_are_not_searched(monkeypatch):
    monkeypatch.setattr(checks, "MAX_HASHED_BYTES", 100)
    same = np.zeros((10, 4, 4, 3), np.uint8)
    assert checks.check_duplicates({"train": same, "test": same}) == []


def test_nothing_is_said_of_the_digits():
    images, targets = digits._load()["train"]
    assert checks.check_classes(digits.Digits.class_names, targets) == []
    assert checks.check_duplicates({"train": images, "test": digits._load()["test"][0]}) == []
