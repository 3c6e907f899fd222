"""Training from scratch on few images a class: the images of the classifiers' draws, and the results."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import few_labels as program
from patchnets.data.sources import digits
from patchnets.inference import probes


def test_folders_hold_the_images_that_the_classifiers_were_fitted_to(tmp_path):
    source = digits.Digits()
    program.write_folders(source, "train[:300]", "test[:20]", (1, 3), tmp_path)
    images, labels = zip(*source.records("train").examples(range(300)))
    for shots in (1, 3):
        files = sorted((tmp_path / "images" / str(shots) / "train").glob("*/*.png"), key=lambda file: file.stem)
        drawn = probes.draw_shots(np.array(labels), shots, draw=0)
        assert [file.parent.name for file in files] == [str(labels[i]) for i in drawn]
        for file, i in zip(files, drawn):
            np.testing.assert_array_equal(np.asarray(Image.open(file)), images[i][..., 0])
        assert len(list((tmp_path / "images" / str(shots) / "test").glob("*/*.png"))) == 20
    program.write_folders(source, "train[:300]", "test[:20]", (1, 3), tmp_path)  # which are there already


def test_a_draw_has_as_many_images_of_each_class_and_depends_on_its_number():
    labels = np.random.default_rng(0).integers(0, 4, 100)
    first, again, other = (probes.draw_shots(labels, 5, draw) for draw in (0, 0, 1))
    assert np.unique(labels[first], return_counts=True)[1].tolist() == [5] * 4
    assert len(set(first)) == 20 and first.tolist() == again.tolist() != other.tolist()


@pytest.mark.slow
def test_the_results_and_the_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(program, "MIXER", program.MIXER | dict(depth=1, hidden_dim=8))
    rows = [
        dict(name="fewshot", accuracy=0.5, interval=0.1, settings=dict(shots=2)),
        dict(name="linear", accuracy=0.9, interval=0.1, settings={}),
    ]
    content = dict(probes=rows, images=dict(train=300, test=20))
    (tmp_path / "probes.json").write_text(json.dumps(content))
    options = ["--dataset=digits", "--train_split=train[:300]", "--test_split=test[:20]", "--steps=10"]
    arguments = ["few_labels", str(tmp_path / "probes.json"), str(tmp_path / "out")]
    assert program.main([*arguments, *options]) == 0
    results = json.loads((tmp_path / "out" / "few_labels.json").read_text())
    assert [row["shots"] for row in results["from_scratch"]] == [2]
    assert all(0 <= row["accuracy"] <= 1 for row in results["from_scratch"])
    assert results["linear"] == dict(accuracy=0.9, images=300)
    assert Image.open(tmp_path / "out" / "few_labels.png").width > 300

    (tmp_path / "probes.json").write_text("{}")
    capsys.readouterr()
    assert program.main([*arguments, *options]) == 2
    assert "holds no results of patchnets.evaluate --probe" in capsys.readouterr().err
