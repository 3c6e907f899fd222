"""The benchmark: the order of turns, the figures, and failing candidates."""

import json
import os
import pathlib
import statistics
import sys

import jax
import numpy as np
import pytest

from experiments.benchmark import __main__ as program
from experiments.benchmark import bench_patchnets, ipc, measure, report, workloads
from experiments.benchmark.measure import Measured, Settings
from experiments.benchmark.workloads import WORKLOADS, Row
from experiments.runner.cli import join_values
from patchnets.errors import RunError
from patchnets.experiment import build_experiment

FAKE = pathlib.Path(__file__).with_name("fake_child.py")
ENVIRONMENT = dict(os.environ, PYTHONPATH=str(measure.ROOT))


@pytest.fixture
def start(tmp_path):
    """Starts fake children: {name: (speed, fault, turn)} is what each is told."""

    def start(name, options):
        command = [sys.executable, str(FAKE), str(tmp_path / "turns"), name, *map(str, options)]
        return ipc.Worker(name, command, ENVIRONMENT, tmp_path / f"{name}.log")

    return start


def turns_taken(tmp_path):
    return [line.split() for line in (tmp_path / "turns").read_text().splitlines()]


def test_turns_alternate_and_nobody_works_in_another_s(start, tmp_path):
    message = []
    measured, failures = measure.take_turns(
        {"a": [3], "b": [4]}, Settings(rounds=3, seconds=0.01), start, message.append
    )
    taken = turns_taken(tmp_path)
    assert [name for name, *_ in taken] == ["a", "b"] * 4 and not failures  # the first round warms up
    ends = [float(end) for *_, end in taken]
    assert all(float(began) >= end for (_, began, _), end in zip(taken[1:], ends))
    assert [len(actual.turns) for actual in measured.values()] == [3, 3]
    assert {turn["steps"] for turn in measured["b"].turns} == {4}
    assert all(0.01 <= turn["seconds"] < 1 for turn in measured["a"].turns)
    assert measured["a"].last == {"peak_memory_mib": 12.5} and message[0] == "a: first step after 0.5 s"


@pytest.mark.slow
def test_whoever_dies_or_hangs_costs_a_line_and_the_others_go_on(start, tmp_path):
    message = []
    options = {"a": [3], "dies": [4, "dies", 2], "b": [5], "hangs": [1, "hangs", 1]}
    measured, failures = measure.take_turns(
        options, Settings(rounds=2, seconds=0.01, patience=3), start, message.append
    )
    assert failures == {"dies": "it ended with status 3: MemoryError: no more", "hangs": "no answer in 3 s"}
    assert [f"{name}: {why}" for name, why in failures.items()] == [
        line for line in message if "first step" not in line
    ]
    assert [name for name, *_ in turns_taken(tmp_path)] == ["a", "dies", "b", "a", "b", "a", "b"]
    assert list(measured) == ["a", "b"] and all(len(actual.turns) == 2 for actual in measured.values())


@pytest.mark.parametrize(
    "fault, expected",
    [
        (ModuleNotFoundError("No module named 'torch'", name="torch"), r"^torch is not installed; pip install"),
        (ValueError("two\nlines"), r"^ValueError: two lines$"),
    ],
)
def test_a_child_tells_why_it_cannot(fault, expected, monkeypatch, capfd):
    def run(spec, exchange):
        raise fault

    answers = []
    monkeypatch.setattr(ipc.Exchange, "__init__", lambda self: None)
    monkeypatch.setattr(ipc.Exchange, "tell", lambda self, **message: answers.append(message))
    assert ipc.answering(run, {}) == 1
    with pytest.raises(RunError, match=expected):
        raise RunError(answers[0]["error"])


def measured(seconds, steps=1, **ready):
    turns = [{"steps": steps, "seconds": each} for each in seconds]
    return Measured({"ready": 2.0, **ready}, turns, {"peak_memory_mib": 100.0})


SETTINGS = Settings(rounds=4, dtype="bfloat16", peak_tflops=0.001)
OURS = measured([2.0, 1.0, 4.0, 2.0], steps=10, macs=1_000_000, params=5, device="cpu")
KERAS = measured([0.5, 0.5, 0.5, 8.0], params=5)
MATMUL = measured([1.0, 2.0, 4.0], steps=2, flops=10**9)


@pytest.fixture
def result(monkeypatch):
    """A comparison of the Mixer tutorial, batch 128, whose turns are made up."""
    actual = {"patchnets": OURS, "keras-jax": KERAS, "matmul": MATMUL}
    monkeypatch.setattr(measure, "take_turns", lambda *_: (dict(actual), {"timm": "it ended"}))
    row = Row("mixer", "train", ("keras-jax", "timm"))
    return measure.compare(row, SETTINGS, lambda *_: None, lambda line: None)


def test_figures_are_medians_and_their_ratios(result):
    ours, keras = result["entries"]["patchnets"], result["entries"]["keras-jax"]
    assert ours["images_per_second"] == pytest.approx(128 * 10 / statistics.median([2, 1, 4, 2]))
    assert ours["quartiles"] == pytest.approx(np.quantile([640, 1280, 320, 640], [0.25, 0.75]))
    assert keras["images_per_second"] == pytest.approx(256) and keras["ratio"] == pytest.approx(2.5)
    assert ours["ratio"] == 1 and ours["steps"] == 40
    # Forward and twice as much backward, two operations to a multiply-accumulate; Keras has the same network.
    assert ours["flops_per_image"] == keras["flops_per_image"] == 6_000_000
    assert ours["flops_per_second"] == pytest.approx(640 * 6e6)
    assert result["matmul_flops_per_second"] == pytest.approx(1e9)  # the median of 2, 1 and 1/2
    assert ours["share_of_matmul"] == pytest.approx(3.84) and ours["mfu"] == pytest.approx(3.84)
    assert ours["epoch_seconds"] == pytest.approx(45_000 / 640)


def test_what_cannot_be_said_is_left_out(monkeypatch):
    monkeypatch.setattr(measure, "take_turns", lambda *_: ({"keras-jax": KERAS}, {"patchnets": "it ended"}))
    actual = measure.compare(Row("mixer", "eval", ("keras-jax",)), Settings(), lambda *_: None, lambda line: None)
    (entry,) = actual["entries"].values()
    missing = ("ratio", "flops_per_image", "flops_per_second", "share_of_matmul", "mfu", "epoch_seconds")
    assert all(entry[name] is None for name in missing)
    assert "patchnets: not measured: it ended" in report.table(actual)


def test_the_table_the_document_and_the_picture_show_them(result, tmp_path):
    text = report.table(result).splitlines()
    assert text[0] == "mixer, training: 64 px, batch 128, bfloat16, cpu"
    assert text[1].split("  ")[-1].strip() == "epoch s" and "MFU" in text[1]
    assert text[3].split()[:4] == ["keras-jax", "256", "196-256", "2.50x"]
    assert text[-1] == "  timm: not measured: it ended"
    actual = {"command": "python -m experiments.benchmark", "machine": {"cores": 2}, "results": [result]}
    document = report.markdown(actual)
    assert "|keras-jax|256|196-256|2.50x|" in document and "timm: not measured: it ended." in document
    assert len({line.count("|") for line in document.splitlines() if line.startswith("|")}) == 1
    report.draw([result], tmp_path / "chart.png")
    from PIL import Image

    with Image.open(tmp_path / "chart.png") as image:
        assert image.size[0] > 1000 and len(image.convert("RGB").getcolors(2**20)) > 20


def test_only_those_who_have_the_network_take_part():
    every = workloads.COMPETITORS
    assert workloads.possible("fnet", "train", every) == workloads.KERAS
    assert workloads.possible("mixer", "train", every) == (*workloads.KERAS, "timm", "timm-compiled")
    assert workloads.possible("convmixer-512/16", "train", every) == workloads.TIMM
    assert workloads.possible("mixer", "input", every) == ("keras-tensorflow",)
    options = measure.participants(Row("mixer", "devices", ()), Settings(batch=4))
    assert list(options) == ["1 device", "2 devices", "4 devices", "matmul"]  # 4 images cannot be split over 8
    assert measure.environment(options["4 devices"], gpu=False)["XLA_FLAGS"].endswith("device_count=4")


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_suites_hold_only_what_can_be_measured(name):
    rows = workloads.suite(name)
    assert len(set(rows)) == len(rows)
    tutorials = [row.model for row in rows if row.task == "train" and row.model in workloads.TUTORIALS]
    assert tutorials == list(workloads.TUTORIALS)
    requested = program.parse_args([f"--suite={name}", "--batch=32"], "NVIDIA H200" if name == "gpu" else "")
    batches = {row.model: requested.settings_for(row).batch_of(row.model) for row in rows if row.task == "train"}
    assert batches["vit"] == 256 and batches["vit-B/16"] == 32
    assert requested.settings.peak_tflops == (989 if name == "gpu" else None)


BAD = ["--model=resnet", "--model=mixer --against=pytorch", "--model=mixer --work=play", "--rounds=0 --model=mixer"]
BAD += ["--seconds=nan --model=mixer", "--batch=1.5 --model=mixer", "--dtype=int8 --model=mixer", "--suite=tpu", ""]
BAD += ["--suite=cpu --model=mixer", "--model=vit-B/16 --work=input", "--model", "more", "--models=mixer", "--model="]
BAD += ["--model=mixer --python-of=timm=/nowhere/python", "--model=mixer --out=pyproject.toml"]


@pytest.mark.parametrize("arguments", BAD)
def test_mistakes_cost_one_line(arguments, capsys, monkeypatch):
    monkeypatch.chdir(measure.ROOT)
    assert program.main(["benchmark", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("patchnets: ") and err.count("\n") == 1


def test_no_folder_of_the_machine_is_published():
    assert join_values(["--model", "mixer", "--out", "/home/someone/x"]) == ["--model=mixer", "--out=/home/someone/x"]
    assert program.without_folder("--python-of=timm=/home/someone/bin/python") == "--python-of=timm=python"
    assert program.without_folder("--out=/home/someone/results") == "--out=results"
    assert program.without_folder("--model=mixer-S/16") == "--model=mixer-S/16"


@pytest.mark.slow
def test_what_is_measured_trains_as_a_run_does(tiny_config):
    experiment = build_experiment(tiny_config)
    inputs, _ = experiment.data.train.step_inputs(0)
    workload = WORKLOADS["digits"]
    same = bench_patchnets.planned(tiny_config, workload, np.asarray(inputs.images), np.asarray(inputs.labels))
    assert same.data.preprocess == experiment.data.preprocess
    assert (same.total_steps, same.eval_every) == (experiment.total_steps, experiment.eval_every)
    states = []
    for first in (experiment, same):
        steps = bench_patchnets.compile_train_steps(first.task, first.data.train.batch, first.mesh)
        states.append(steps(first.init_state(), first.data.train.step_inputs(0)[0], 3, 1.0)[0])
    jax.tree.map(np.testing.assert_array_equal, *(state.params for state in states))
    assert int(states[1].step) == 3


@pytest.mark.slow
def test_a_comparison_from_command_to_files(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    command = ["--model=digits", "--rounds=2", "--seconds=0.05", "--images=640", f"--out={tmp_path / 'out'}"]
    assert program.main(["benchmark", *command]) == 0, capsys.readouterr()
    actual = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    (result,) = actual["results"]
    entry = result["entries"]["patchnets"]
    assert actual["command"].endswith("--out=out") and result["failures"] == {} and result["batch"] == 64
    assert entry["images_per_second"] > 0 and entry["peak_memory_mib"] > 50 and entry["first_step_seconds"] > 0
    mlps = 64 * 2 * 16 * 16 + 16 * 2 * 64 * 16  # of tokens and of channels: 16 patches, 16 hidden units
    assert entry["flops_per_image"] == 6 * (16 * 4 * 64 + 4 * mlps + 64 * 10)
    assert (tmp_path / "out" / "benchmark.png").exists()
    assert report.rate(entry["images_per_second"]) in capsys.readouterr().out
