"""Files of predictions, read back by the csv module, json and NumPy."""

import csv
import json

import numpy as np
import pytest

from patchnets.predict.writers import Layout, Prediction, open_writer

CLASSES = ("cat", 'a "dog"; old', "2")
ROWS = (
    Prediction("a.png", (1, 0), np.array([0.25, 0.7, 0.05], np.float32), np.arange(4, dtype=np.float32)),
    Prediction("b,c.png", error="b,c.png cannot be decoded"),
    Prediction("d\udcff.png", (0, 2), np.array([0.5, 1e-9, 0.5], np.float32), np.ones(4, np.float32)),
)


def written(path, **options):
    with open_writer(path, Layout(CLASSES, topk=2, **options)) as writer:
        for row in ROWS:
            writer.write(row)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return path


def test_rows_of_a_table(tmp_path):
    path = written(tmp_path / "out.csv")
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["filename", "label", "probability", "label_2", "probability_2", "error"],
        ["a.png", 'a "dog"; old', "0.7", "cat", "0.25", ""],
        ["b,c.png", "", "", "", "", "b,c.png cannot be decoded"],
        ["d\udcff.png", "cat", "0.5", "2", "0.5", ""],
    ]


def test_columns_of_classes_and_of_those_above_a_threshold(tmp_path):
    with written(tmp_path / "out.csv", every_class=True, threshold=0.5).open(errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    names = [f"probability_of_{name}" for name in CLASSES]
    actual = np.array([[float(row[name] or "nan") for name in names] for row in rows], np.float32)
    np.testing.assert_array_equal(actual, [ROWS[0].probabilities, [np.nan] * 3, ROWS[2].probabilities])
    assert [row["labels"] for row in rows] == ['a "dog"; old', "", "cat;2"]


def test_lines_of_json(tmp_path):
    lines = written(tmp_path / "out.jsonl", every_class=True, threshold=0.3).read_text().splitlines()
    first, second, third = map(json.loads, lines)
    assert first == {
        "filename": "a.png",
        "predictions": [{"label": 'a "dog"; old', "probability": 0.7}, {"label": "cat", "probability": 0.25}],
        "labels": ['a "dog"; old'],
        "probabilities": {"cat": 0.25, 'a "dog"; old': 0.7, "2": 0.05},
    }
    assert second == {"filename": "b,c.png", "error": "b,c.png cannot be decoded"}
    assert third["filename"] == "d\udcff.png" and third["labels"] == ["cat", "2"]


def test_arrays_without_pickles(tmp_path):
    with np.load(written(tmp_path / "deep" / "out.npz"), allow_pickle=False) as arrays:
        assert arrays["filenames"].tolist() == [row.filename for row in ROWS]
        assert arrays["classes"].tolist() == list(CLASSES)
        assert arrays["errors"].tolist() == [row.error for row in ROWS]
        np.testing.assert_array_equal(arrays["probabilities"][[0, 2]], [ROWS[0].probabilities, ROWS[2].probabilities])
        np.testing.assert_array_equal(arrays["features"], [np.arange(4), [np.nan] * 4, np.ones(4)])
        assert np.isnan(arrays["probabilities"][1]).all() and arrays["probabilities"].dtype == np.float32


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.npz"])
def test_what_is_interrupted_leaves_what_was_there(tmp_path, name):
    (tmp_path / name).write_text("before")
    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / name, Layout(CLASSES, topk=2)) as writer:
        writer.write(ROWS[0])
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "before"
