"""A work directory of version 0.1, which every later version must continue and load: tests/fixtures/make_workdir.py.

It is a run that was killed after its checkpoint of step 16 of 24. Its arrays are restored to the last bit anywhere. The
steps after it round as the processor and the release of XLA do, and Adam enlarges that where a normalization cancels a
parameter; what the network computes is compared, within a tolerance. That a run continues to the last bit on one
machine is what tests/test_kill.py shows.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest
from fixtures import make_workdir

import patchnets
from patchnets import config as config_lib
from patchnets import train

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "0.1"


@pytest.fixture
def expected():
    with np.load(FIXTURE / "arrays.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(FIXTURE / "workdir", tmp_path / "run")


def test_it_is_small_and_names_no_folder_of_the_machine_that_made_it():
    files = [path for path in FIXTURE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 200_000
    for path in files:
        assert not [word for word in (b"/tmp", b"/home", b"/root", b"/work") if word in path.read_bytes()], path


def test_its_checkpoint_is_loaded_to_the_last_bit_and_predicts_what_it_did(expected, copy):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for which in ("best", "latest", 16):
        model = patchnets.load(copy, which)
        params = make_workdir.flat_params(model)
        assert model.step == 16
    assert {f"params/{path}" for path in params} == {name for name in expected if name.startswith("params/")}
    for path, array in params.items():
        np.testing.assert_array_equal(array, expected[f"params/{path}"])
    np.testing.assert_allclose(model.probabilities(make_workdir.digits_images(20)), expected["saved"], atol=1e-6)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before  # reading changes nothing


@pytest.mark.slow
def test_it_continues_to_what_the_uninterrupted_run_ended_with(expected, copy, capsys):
    config = config_lib.from_saved(json.loads((copy / "config.json").read_text()))
    rows = [json.loads(line) for line in (FIXTURE / "metrics.jsonl").read_text().splitlines()]
    summary = train.train(config, copy)
    assert "resuming from the checkpoint of step 16" in capsys.readouterr().out
    assert summary["steps"] == 24
    again = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert again[:2] == rows[:2]  # those up to the checkpoint stay as they were
    for row, recorded in zip(again, rows, strict=True):
        for name in row.keys() - {"images_per_second"}:
            assert row[name] == pytest.approx(recorded[name], rel=1e-4, abs=1e-6), name
    probabilities = patchnets.load(copy, 24).probabilities(make_workdir.digits_images(20))
    np.testing.assert_allclose(probabilities, expected["final"], atol=1e-5)
    assert np.abs(probabilities - expected["saved"]).max() > 1e-2  # so that the steps count
