"""Probes as keys of a run, beside the command that probes its work directory."""

import json

import pytest

from patchnets import train
from patchnets.errors import UserError
from patchnets.evaluate import __main__ as program
from patchnets.evaluate import probe
from patchnets.experiment import build_experiment
from patchnets.inference.run_probes import RunProbes

PROBES = dict(names=("knn", "fewshot", "linear"), k=7, temperature=0.1, shots=(1, 3), draws=4, every_validations=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The work directory of a run with probes, at every second of four validations and at the end."""
    path = tmp_path_factory.mktemp("probed") / "run"
    train.train(configuration(probes=PROBES, total_steps=8, eval_every_steps=2), path)
    return path


def configuration(**changes):
    from patchnets.config import common

    values = dict(
        dataset=dict(name="digits", train_split="train[:300]", val_split="train[300:400]", test_split="test[:130]"),
        image_size=8,
        model=dict(name="mlp_mixer", patch_size=4, depth=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32),
        batch_size=64,
        seed=3,
        mesh=dict(data=1),
        ema_decay=0.5,
        optimizer=dict(learning_rate=1e-2),
        tensorboard=False,
        plots=False,
        steps_per_call=2,
    )
    return common.base(**values | changes)


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_results_are_those_of_the_command_on_the_same_checkpoint(finished, tmp_path):
    summary = json.loads((finished / "summary.json").read_text())
    options = ["--k=7", "--temperature=0.1", "--shots=1,3", "--draws=4", "--seed=3"]
    assert (
        program.main(["evaluate", str(finished), "--probe=knn,fewshot,linear", f"--output={tmp_path}", *options]) == 0
    )
    expected = json.loads((tmp_path / probe.FILE_NAME).read_text())["probes"]
    assert [row["name"] for row in expected] == ["knn", "fewshot", "fewshot", "linear"]
    for row, metric in zip(expected, ("knn", "fewshot_1", "fewshot_3", "linear")):
        assert summary[f"test_{metric}"] == pytest.approx(row["accuracy"], abs=1.1 / 130)
    assert [row["settings"] for row in summary["probes"]] == [row["settings"] for row in expected]
    assert summary["test_linear"] > 0.5


@pytest.mark.slow
def test_metrics_have_them_when_they_are_due(finished, capsys):
    validated, last = rows(finished)[:-1], rows(finished)[-1]
    assert ["val_knn" in row for row in validated] == [False, True, False, True]
    assert {"val_knn", "val_fewshot_1", "val_fewshot_3"} <= validated[1].keys() and "val_linear" not in validated[1]
    assert {"test_knn", "test_fewshot_1", "test_linear", "test_loss"} <= last.keys()
    before = json.loads((finished / "summary.json").read_text())
    (finished / "summary.json").unlink()  # as if it had been killed in the test
    again = train.train(configuration(probes=PROBES, total_steps=8, eval_every_steps=2), finished)
    assert again["probes"] == before["probes"] and len(rows(finished)) == 5
    assert "probes   knn " in capsys.readouterr().out


@pytest.mark.slow
def test_neither_training_nor_its_metrics_depend_on_them(finished, tmp_path):
    train.train(configuration(total_steps=8, eval_every_steps=2), tmp_path / "run")
    for row, other in zip(rows(tmp_path / "run"), rows(finished)):
        assert row.items() - {("images_per_second", row.get("images_per_second"))} <= other.items()


@pytest.mark.slow
def test_features_of_frozen_layers_are_probed_without_computing_them_again(tmp_path, capsys):
    frozen = dict(learning_rate=1e-2, frozen=(("head/.*", False), (".*", True)))
    dataset = configuration().dataset.to_dict() | dict(cache_dir=str(tmp_path / "cache"))
    config = configuration(probes=dict(names=("knn",)), total_steps=2, optimizer=frozen, dataset=dataset)
    once = train.train(config, tmp_path / "once")
    assert capsys.readouterr().out.count("features of ") == 3
    config.frozen_features = "never"
    never = train.train(config, tmp_path / "never")
    assert once["test_knn"] == pytest.approx(never["test_knn"], abs=1.1 / 130)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(val_split="none", names=("linear",)), r"^config\.probes\.names=linear needs a validation split"),
        (dict(val_split="none", every_validations=1), r"^config\.probes\.every_validations=1 needs a validation split"),
        (dict(test_split="none", names=("linear",)), r"^config\.probes\.names=linear needs a test split"),
        (dict(test_split="none", val_split="none"), r"^config\.probes\.names=knn needs a validation split"),
        (dict(names=("svm",)), r"^config\.probes\.names=\['svm'\] is out of range; expected some of knn, fewshot, "),
        (dict(shots=(1, 0)), r"^config\.probes\.shots=\[1, 0\] is out of range; expected whole numbers of at least 1"),
    ],
)
def test_what_a_probe_lacks_is_a_line(changes, message):
    splits = {name: value for name, value in changes.items() if name.endswith("_split")}
    probes = dict(names=("knn",)) | {name: value for name, value in changes.items() if name not in splits}
    dataset = configuration().dataset.to_dict() | splits
    config = configuration(dataset=dataset, probes=probes, total_steps=2)
    with pytest.raises(UserError, match=message):
        RunProbes(build_experiment(config))


def test_a_last_validation_that_comes_early_is_counted():
    experiment = build_experiment(configuration(total_steps=10, eval_every_steps=4))
    assert [experiment.num_validations(step) for step in (4, 8, 10)] == [1, 2, 3]


def test_nearest_neighbors_need_no_validation_split():
    dataset = configuration().dataset.to_dict() | dict(val_split="none")
    config = configuration(dataset=dataset, probes=dict(names=("knn", "fewshot")), total_steps=2)
    assert RunProbes(build_experiment(config)).role == "test"
