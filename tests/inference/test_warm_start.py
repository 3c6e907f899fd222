"""Runs that start from trained weights."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import patchnets
from patchnets import train
from patchnets.errors import UserError
from patchnets.weights import __main__ as command

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The work directory of a finished run of eight steps."""
    path = tmp_path_factory.mktemp("first") / "run"
    train.train(configuration(total_steps=8), path)
    return path


def configuration(**changes):
    from patchnets.config import common

    values = dict(
        dataset=dict(name="digits", train_split="train[:700]", val_split="train[700:800]", test_split="test[:130]"),
        image_size=8,
        model=dict(name="mlp_mixer", patch_size=4, depth=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32),
        augment=dict(translate=0.1),
        batch_size=64,
        mesh=dict(data=1),
        optimizer=dict(learning_rate=1e-2),
        tensorboard=False,
        plots=False,
        steps_per_call=2,
        eval_every_steps=4,
    )
    return common.base(**values | changes)


def warm(source, **changes):
    init = dict(weights=str(source)) | changes.pop("init", {})
    return configuration(**dict(init=init, total_steps=8) | changes)


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_keeps_the_head_starts_where_the_other_ended(first, tmp_path):
    before = json.loads((first / "summary.json").read_text())
    config = warm(first, init=dict(head="keep"), optimizer=dict(learning_rate=0.0))
    summary = train.train(config, tmp_path / "run")
    assert summary["test_loss"] == pytest.approx(before["test_loss"], rel=1e-6)
    account = json.loads((tmp_path / "run" / "init.json").read_text())
    assert account["new"] == account["left_out"] == account["adapted"] == {}


def test_the_weights_say_what_the_network_is(first, tmp_path, capsys):
    from patchnets.config import default_config

    config = default_config(
        dataset=dict(name="digits"),
        image_size=12,
        init=dict(weights=str(first)),
        batch_size=64,
        total_steps=2,
        mesh=dict(data=1),
        plots=False,
        tensorboard=False,
    )
    train.train(config, tmp_path / "run")
    model = patchnets.load(tmp_path / "run")
    assert (model.network.hidden_dim, model.spec.image_size) == (16, 12)
    account = json.loads((tmp_path / "run" / "init.json").read_text())
    assert "params/MixerBlock_0/token_mixing/Dense_0/kernel" in account["adapted"]

    capsys.readouterr()  # and python -m patchnets.weights says the same of it, from the run's configuration
    assert command.main(["weights", str(first), f"--against={tmp_path / 'run' / 'config.json'}"]) == 0
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert {row[1] for row in rows if row[:1] == ["taken"]} == set(account["taken"])
    assert {row[1]: row[2] for row in rows if row[:1] == ["adapted"]} == account["adapted"]
    assert {row[1]: row[2] for row in rows if row[:1] == ["new"]} == account["new"] != {}


def test_one_and_eight_devices_take_the_same_steps(first, tmp_path):
    for devices in (1, 8):
        train.train(warm(first, image_size=12, mesh=dict(data=devices)), tmp_path / str(devices))
    for row, expected in zip(rows(tmp_path / "8"), rows(tmp_path / "1"), strict=True):
        for name in row.keys() - {"images_per_second"}:
            assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


def test_an_interrupted_run_resumes_without_the_weights_bit_for_bit(first, tmp_path, monkeypatch):
    source = tmp_path / "source"
    shutil.copytree(first, source)
    config = warm(source, checkpoint=dict(save_interval_steps=2, max_to_keep=5))
    full = train.train(config, tmp_path / "full")
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "full", cut)
    (cut / "summary.json").unlink()
    for step in (6, 8):
        shutil.rmtree(cut / "checkpoints" / str(step), ignore_errors=True)
    other = tmp_path / "other"
    shutil.copytree(cut, other)
    shutil.rmtree(source)
    assert sorted(int(path.name) for path in (cut / "checkpoints").iterdir() if path.name.isdigit())
    resumed = train.train(config, cut)
    for name in ("test_loss", "test_accuracy", "val_loss"):
        assert resumed[name] == full[name]
    a, b = patchnets.load(tmp_path / "full", "latest"), patchnets.load(cut, "latest")
    np.testing.assert_array_equal(a.variables["params"]["head"]["kernel"], b.variables["params"]["head"]["kernel"])

    train.train(configuration(total_steps=4, seed=5), source)  # other weights in the same place
    with pytest.raises(UserError, match="has changed since"):
        train.train(config, other)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model=dict(name="vit", variant="S/16", patch_size=4)), "holds a MlpMixer"),
        (dict(init=dict(weights="/no/such/folder")), "/no/such/folder"),
    ],
)
def test_weights_that_do_not_fit_leave_nothing_behind(first, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train.train(warm(first, **changes), tmp_path / "run")
    assert not pathlib.Path(tmp_path / "run").exists()
