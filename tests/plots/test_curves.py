"""Learning curves are drawn from metrics.jsonl alone, by the program that README names."""

import json

import numpy as np
import pytest
from PIL import Image

from patchnets.plots import __main__ as program
from patchnets.plots import curves


def rows(count, value):
    figures = ("loss", "accuracy", "top5_accuracy")
    roles = [f"{role}_{figure}" for role in ("train", "val") for figure in figures]
    return [{"step": i, "epoch": i / 2, "learning_rate": 0.1, **dict.fromkeys(roles, value)} for i in range(1, count)]


def write(path, content):
    path.mkdir()
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))


def draw(path, content):
    write(path, content)
    assert program.main(["plots", str(path)]) == 0
    return np.asarray(Image.open(path / "plots" / "learning_curves.png").convert("RGB"))


@pytest.mark.slow
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
        assert program.main(["plots", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def drawn(path, monkeypatch):
    """The figure of a work directory's learning curves."""
    kept = []
    monkeypatch.setattr(curves.figures, "save", lambda figure, directory: kept.append(figure) or directory)
    curves.draw(path)
    return kept[0]


def test_one_epoch_is_drawn_from_0_with_few_labels_and_a_title(tmp_path, monkeypatch):
    write(tmp_path / "seed-0", rows(2, 0.5)[:1])
    config = dict(model=dict(name="mlp_mixer", variant="S/16"), dataset=dict(name="folder", path="/some/where/flowers"))
    (tmp_path / "seed-0" / "config.json").write_text(json.dumps(config))
    figure = drawn(tmp_path / "seed-0", monkeypatch)
    assert figure.get_suptitle() == "mlp_mixer S/16 on folder:flowers (seed-0): learning curves"
    for axis in figure.axes:
        low, high = axis.get_xlim()
        assert low == 0 and 2 < sum(low <= tick <= high for tick in axis.get_xticks()) <= 6


def test_damaged_rows_and_configurations_are_passed_over(tmp_path, monkeypatch):
    write(
        tmp_path / "run", [3, None, {"epoch": "x", "train_loss": 1}, {"train_loss": 1}, *rows(3, 0.5), {"test_loss": 2}]
    )
    (tmp_path / "run" / "config.json").write_text("[]")
    figure = drawn(tmp_path / "run", monkeypatch)
    assert figure.get_suptitle() == "run: learning curves"
    assert len(figure.axes[0].get_lines()[0].get_xdata()) == 2
