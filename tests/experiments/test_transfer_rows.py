"""Rows that start from weights: skipped in a line until their file is there."""

import json

import pytest

from experiments.reproduce import __main__ as reproduce
from experiments.tables.transfer import B32

ROWS = "--rows=vit-B-16-cifar10,vit-B-32-pets"


@pytest.fixture
def folder(tmp_path):
    """A folder with the weights of one of two rows."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / B32.rpartition("/")[2]).touch()
    return tmp_path / "files"


def start(path, folder, *options):
    return reproduce.main(["reproduce", "--table=transfer", ROWS, f"--workdir={path}", f"--weights={folder}", *options])


def test_a_list_says_which_rows_need_their_weights(folder, tmp_path, capsys):
    assert start(tmp_path / "out", folder, "--list") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert f"needs the weights: put gs://vit_models/imagenet21k/ViT-B_16.npz into {folder}" in first
    assert "10,000 steps on 8 accelerators" in first
    assert "needs the weights" not in second and "500 steps" in second


@pytest.mark.slow
def test_rows_without_their_weights_are_named_and_the_others_are_trained(fake, folder, tmp_path, capsys):
    assert start(tmp_path / "out", folder) == 0
    assert "vit-B-16-cifar10: skipped, needs the weights" in capsys.readouterr().out
    ((settings, *_),) = fake()
    assert settings["config.init.weights"] == str(folder / B32.rpartition("/")[2])
    rows = {row["id"]: row for row in json.loads((tmp_path / "out" / "report.json").read_text())["rows"]}
    assert rows["vit-B-32-pets"]["verdict"] == "not reproduced"  # compared, though the weights came by a flag
    assert f"--config.init.weights=weights/{B32.rpartition('/')[2]}" in rows["vit-B-32-pets"]["commands"][0]
    missing = rows["vit-B-16-cifar10"]
    assert missing["verdict"] == "not run" and any("needs the weights" in reason for reason in missing["reasons"])
