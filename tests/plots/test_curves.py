"""Learning curves are drawn from metrics.jsonl alone, by the program that README names."""

import json

import numpy as np
from PIL import Image

from patchnets.plots import __main__ as program


def rows(count, value):
    figures = ("loss", "accuracy", "top5_accuracy")
    roles = [f"{role}_{figure}" for role in ("train", "val") for figure in figures]
    return [{"step": i, "epoch": i / 2, "learning_rate": 0.1, **dict.fromkeys(roles, value)} for i in range(1, count)]


def draw(path, content):
    path.mkdir()
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    assert program.run(["plots", str(path)]) == 0
    return np.asarray(Image.open(path / "plots" / "learning_curves.png").convert("RGB"))


def test_other_figures_make_another_picture_and_equal_ones_the_same(tmp_path, capsys):
    first, second, third = (draw(tmp_path / n / "run", rows(9, v)) for n, v in (("a", 0.5), ("b", 0.9), ("c", 0.5))
                            if not (tmp_path / n).mkdir())  # fmt: skip
    assert first.shape == second.shape and first.shape[1] > 1000
    assert (first != second).any()
    assert (first == third).all()
    assert "learning_curves.png" in capsys.readouterr().out


def test_what_is_no_work_directory_is_told_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").write_text("")
    for name in ("nowhere", "file", "empty"):
        assert program.run(["plots", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
