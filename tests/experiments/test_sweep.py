"""Sweeps: their runs and the report."""

import json

import pytest

from experiments.runner import jobs
from experiments.sweep import __main__ as sweep
from experiments.sweep import report
from patchnets.config import common, flags

LR = "experiments/sweeps/mixer_digits_lr.py"
TWO = "CONFIG = 'configs/mixer_digits.py'\ndef get_sweep():\n    yield 'a', {'batch_size': 64}\n    yield 'b', %s\n"


def start(path, *options, file=LR):
    return sweep.main(["sweep", f"--sweep={file}", f"--workdir={path}", *options])


@pytest.mark.slow
def test_entries_are_trained_with_each_seed_and_gathered(fake, tmp_path, capsys):
    path = tmp_path / "out"
    assert start(path, "--seeds=2", "--config.total_epochs=3") == 0
    options = [(settings["config.optimizer.learning_rate"], settings["config.seed"]) for settings, *_ in fake()]
    rates = ["0.0005", "0.0015", "0.005", "0.015"]
    assert options == [(rate, seed) for seed in "01" for rate in rates]
    assert {(settings["config"], settings["config.total_epochs"]) for settings, *_ in fake()} == {
        ("configs/mixer_digits.py", "3")
    }
    written = json.loads((path / "sweep.json").read_text())
    for actual, rate in zip(written["entries"], rates, strict=True):
        assert actual["changes"] == {"optimizer.learning_rate": float(rate)}
        assert actual["measured"]["test"]["accuracy"]["values"] == pytest.approx(
            [0.10, 0.12]
        )  # what the stand-in claims
    text = (path / "sweep.md").read_text()
    assert "|lr-0.005|optimizer.learning_rate=0.005|1|2|-|-|11.00 ± 1.41|32.00 ± 0.00|1 min|" in text
    assert text.count("python -m patchnets.main --config=configs/mixer_digits.py") == 8
    assert {file.name for file in path.iterdir() if file.is_file()} == set(report.FILES)
    for name in ("sweep.png", "curves.png"):
        assert (path / name).read_bytes().startswith(b"\x89PNG")
    assert "11.00 ± 1.41" in capsys.readouterr().out
    assert start(path, "--seeds=2", "--config.total_epochs=3") == 0 and len(fake()) == 8  # nothing is done again


@pytest.mark.slow
@pytest.mark.parametrize("options", ["2", "lr-0.005"])
def test_one_entry_alone_leaves_the_report_to_whoever_gathers(options, fake, tmp_path, capsys):
    path = tmp_path / "out"
    assert start(path, f"--only={options}") == 0
    assert [settings["config.optimizer.learning_rate"] for settings, *_ in fake()] == ["0.005"]
    assert not (path / "sweep.md").exists()
    assert start(path, "--report") == 0 and len(fake()) == 1
    actual = {each["id"]: each for each in json.loads((path / "sweep.json").read_text())["entries"]}
    assert [name for name, each in actual.items() if each["seeds"]] == ["lr-0.005"]
    assert "0 of 1, not final" in (path / "sweep.md").read_text()


@pytest.mark.slow
def test_a_run_that_fails_is_told(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FAIL", "1")
    assert start(tmp_path / "out", "--seeds=2") == 1
    assert "lr-0.0005: seed 1 failed, status 1: no images" in capsys.readouterr().out
    assert start(tmp_path / "out", "--only=0", "--seeds=2") == 1
    assert capsys.readouterr().err == "lr-0.0005: seed 1 failed, status 1: no images\n"


def test_a_configuration_may_name_its_own_sweep(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("from configs.mixer_digits import get_config\n" + (TWO % "{'model.depth': 2}").split("\n", 1)[1])
    assert start(tmp_path, "--list", file=file) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["0", "a", "batch_size=64"],
        ["1", "b", "model.depth=2"],
    ]
    requested = sweep.parse_args([f"--sweep={file}", f"--workdir={tmp_path}"])
    first, second = (flags.parse_flags(["main", *job.arguments])[0] for job in sweep.jobs_of(requested))
    assert (first.batch_size, second.model.depth) == (64, 2)
    assert start(tmp_path, "--list", "--config=configs/gmlp_digits.py", file=file) == 0


NUMPY = """
import numpy as np
CONFIG = "configs/mixer_digits.py"
def get_sweep():
    for batch in np.array([32, 64]):
        rules = (("head/.*", np.float64(2)), (".*", 1.0))
        rate = np.float32(0.5)
        yield f"b{batch}", {"batch_size": batch, "optimizer.learning_rate": rate, "optimizer.lr_mults": rules}
"""


@pytest.mark.slow
def test_numbers_of_numpy_are_numbers(fake, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(NUMPY)
    assert start(tmp_path / "out", file=file) == 0
    assert [settings["config.batch_size"] for settings, *_ in fake()] == ["32", "64"]
    assert fake()[0][0]["config.optimizer.lr_mults"] == "(('head/.*', 2.0), ('.*', 1.0))"
    written = json.loads((tmp_path / "out/sweep.json").read_text())["entries"]
    rules = [["head/.*", 2.0], [".*", 1.0]]
    assert [actual["changes"] for actual in written] == [
        {"batch_size": batch, "optimizer.learning_rate": 0.5, "optimizer.lr_mults": rules} for batch in (32, 64)
    ]


def entry(**changes):
    return {"changes": changes}


@pytest.mark.parametrize(
    "entries, key",
    [
        ([entry(a=1), entry(a=2.5)], "a"),
        ([entry(a=1), entry(a=1)], None),
        ([entry(a=1)], None),
        ([entry(a=True), entry(a=False)], None),
        ([entry(a="x"), entry(a="y")], None),
        ([entry(a=1), entry(a=2, b=1)], None),
        ([entry(a=1), entry()], None),
    ],
)
def test_a_line_is_drawn_against_the_one_number_in_which_all_differ(entries, key):
    assert report.axis_of(entries) == key


@pytest.mark.parametrize(
    "text, message",
    [
        (TWO % "{'batch_sise': 32}", "unknown key config.batch_sise; did you mean config.batch_size?"),
        (TWO % "{'batch_size': 'x'}", "b of --sweep="),
        ((TWO % "{}").replace("'b'", "'a'"), "two entries are named 'a'"),
        ((TWO % "{}").replace("'b'", "'../b'"), "'../b' is not a valid name; expected letters, digits, "),
        ((TWO % "{}").replace("'b'", "'7'"), "'7' is not a valid name"),
        ((TWO % "{}").replace("'b'", "'sweep.md'"), "'sweep.md' is a file of the report; give the entry another name"),
        ((TWO % "{}").replace("'b'", "'curves.png'"), "'curves.png' is a file of the report"),
        (
            TWO % "{'seed': 3}",
            "seed=3, but each entry runs with seeds 0 to N - 1; remove it and use --seeds=N",
        ),
        (TWO % "{'model.name': b'vit'}", "model.name=b'vit' is of type bytes; expected a number, string"),
        (TWO % "{'batch_size': __import__('numpy').ones((9, 9))}", "is of type ndarray; expected a number"),
        ((TWO % "{}").replace("yield 'b', ", "yield "), "yields {}; expected (name, {key: value})"),
        ("CONFIG = 'configs/mixer_digits.py'\ndef get_sweep():\n    return []\n", "get_sweep() has no entries"),
        ("def get_sweep():\n    return [('a', {})]\n", "has neither CONFIG nor get_config()"),
        (TWO % "1 / 0", "cannot be loaded: ZeroDivisionError: division by zero (line 4)"),
        ("CONFIG = ''\n", "cannot be loaded: KeyError: 'get_sweep'"),
    ],
)
def test_a_file_that_does_not_do_costs_one_line(text, message, tmp_path, capsys):
    (tmp_path / "bad.py").write_text(text)
    assert start(tmp_path / "out", file=tmp_path / "bad.py") == 2
    out, error = capsys.readouterr()
    assert message in error and error.count("\n") == 1 and not out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--only=4"], "--only=4 is not an entry; known: 0 to 3: lr-0.0005, lr-0.0015"),
        (["--only=1", "--report"], "--only=1 and --report are both given"),
        (["--config.optimizer.learning_rate=1"], "--config.optimizer.learning_rate=1: --sweep="),
        (["--report"], "none of these runs has finished there"),
        (["--seeds=0"], "--seeds: expected a whole number above 0, and at most 9,999, got '0'"),
    ],
)
def test_a_mistake_costs_one_line_and_writes_nothing(options, message, tmp_path, capsys):
    assert start(tmp_path / "out", *options) == 2
    out, error = capsys.readouterr()
    assert message in error and error.count("\n") == 1 and not out
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_sweep_is_refused(fake, tmp_path, monkeypatch, capsys):
    path = tmp_path / "out"
    assert start(path, "--only=1") == 0
    (path / "lr-0.0015/seed-0/config.json").write_text(
        common.base(total_epochs=1.0, model=dict(name="fnet", variant="S/16")).to_json()
    )
    monkeypatch.setattr(jobs.config_lib, "config_hash", lambda config: config.model.name)
    assert start(path) == 2 and len(fake()) == 1
    assert "lr-0.0015 was run there with another configuration (fnet, not keras_mixer)" in capsys.readouterr().err
