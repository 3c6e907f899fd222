"""The program that trains within a wall-time limit: steps that fit, the report, and one run of patchnets."""

import json
import pathlib
import sys
import textwrap
from types import SimpleNamespace

import pytest

from experiments import time_to_accuracy
from experiments.benchmark import __main__ as benchmark
from experiments.micro import on_gpu
from patchnets import config as config_lib
from patchnets.config.flags import parse_flags
from patchnets.errors import UserError

# In place of patchnets: starts in 0.1 s, or in 0.5 s with nothing compiled, and takes 10 ms a step.
FAKE = """
import json, pathlib, sys, time, os
given = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
steps, flat = int(given["config.total_steps"]), given.get("config.schedule.name") == "constant"
cache, place = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]), pathlib.Path(given["workdir"])
cache.mkdir(exist_ok=True)
program = cache / f"{flat}-{steps}"
first = 0.1 if program.exists() else 0.5
slow = float(os.environ.get("SLOW_PILOT" if flat else "SLOW_RUN", 0))
time.sleep(first)
program.touch()
print(f"first step after {first} s", flush=True)
with open(os.environ["NOTES"], "a") as file:
    file.write(f"{given['config']} {flat} {steps} {first}\\n")
if os.environ.get("FAULT") and not flat:
    print("patchnets: the loss stopped being finite\\nbye", file=sys.stderr)
    sys.exit(int(os.environ["FAULT"]))
time.sleep(0.01 * steps + slow)
place.mkdir()
(place / "summary.json").write_text(json.dumps(dict(
    steps=steps, epochs=steps / 8, images_per_second=64 / 0.01, first_step_seconds=first, test_accuracy=0.9,
    test_top5_accuracy=1.0, test_loss=0.3, device="1 x fake", versions={"jax": "0"})))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The fake program in place of the real one, and the file in which it notes its runs."""
    (tmp_path / "fake.py").write_text(textwrap.dedent(FAKE))
    monkeypatch.setattr(time_to_accuracy, "PROGRAM", (sys.executable, str(tmp_path / "fake.py")))
    monkeypatch.setattr(time_to_accuracy.flags, "parse_flags", lambda argv: (SimpleNamespace(batch_size=64), ""))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    return tmp_path / "notes"


def start(*options):
    return time_to_accuracy.main(["sprint", *options])


def test_steps_fill_what_the_rest_of_a_run_leaves_of_95_percent_of_the_limit():
    summary = dict(steps=200, epochs=4.0, images_per_second=6400.0, first_step_seconds=5.0)
    pace = time_to_accuracy.Speed.of(12.0, summary, batch_size=64)  # 200 steps of 10 ms, and 10 s
    assert (pace.overhead, pace.step, pace.per_epoch) == pytest.approx((10.0, 0.01, 50.0))
    assert pace.steps_within(60.0) == pytest.approx((0.95 * 60 - 10) / 0.01, abs=1)
    assert pace.steps_within(10.0) == 0


@pytest.mark.slow
def test_a_limited_run_finds_its_own_program_compiled_and_ends_within(fake, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(time_to_accuracy, "SHARE", 0.5)  # so that a busy machine has time to spare
    out = tmp_path / "out"
    assert start("--config=x.py:n-{epochs}", "--seconds=3", "--pilot=10", f"--out={out}") == 0
    pilot, again, warm, limited = (line.split() for line in fake.read_text().splitlines())
    assert pilot == ["x.py:n-1000", "True", "10", "0.5"] and again == [*pilot[:3], "0.1"]
    assert warm[1:3] == limited[1:3] and (warm[3], limited[3]) == ("0.5", "0.1")
    steps = int(limited[2])
    assert limited[0] == f"x.py:n-{steps // 8}" and 10 < steps < (0.5 * 3 - 0.1) / 0.01
    (row,) = map(json.loads, (out / "sprint.jsonl").read_text().splitlines())
    assert (row["steps"], row["over"], row["test_accuracy"]) == (steps, False, 0.9)
    assert 0.1 + 0.01 * steps < row["seconds"] < 3
    assert (row["first_step_seconds"], row["cold_first_step_seconds"]) == (0.1, 0.5)
    table = (out / "sprint.md").read_text()
    assert f"|{steps / 8:.1f}|6,400|0.1|+0.4|90.00%|" in table and table in capsys.readouterr().out


@pytest.mark.slow
def test_an_overshoot_is_told(fake, monkeypatch, tmp_path):
    monkeypatch.setenv("SLOW_RUN", "1")
    out = tmp_path / "out"
    assert start("--config=x.py", "--seconds=1.5", "--pilot=10", "--compile=within", f"--out={out}") == 1
    assert json.loads((out / "sprint.jsonl").read_text())["over"]
    assert ", over the limit|" in (out / "sprint.md").read_text()
    assert [line.split()[3] for line in fake.read_text().splitlines()] == ["0.5", "0.5"]  # nothing found compiled


@pytest.mark.parametrize(("status", "options"), [(1, 1), (2, 2)])
def test_a_run_that_fails_says_why_in_one_line(fake, monkeypatch, capsys, status, options):
    monkeypatch.setenv("FAULT", str(status))
    assert start("--config=x.py", "--seconds=3", "--pilot=10", "--compile=within") == options
    out, err = capsys.readouterr()
    assert f"ended with status {status}: patchnets: the loss stopped being finite" in (err if status == 2 else out)
    assert "bye" not in out + err


def test_a_limit_that_leaves_no_time_for_a_step_is_told(fake, monkeypatch, capsys):
    monkeypatch.setenv("SLOW_PILOT", "0.6")
    assert start("--config=x.py", "--seconds=1", "--pilot=10", "--compile=within") == 1
    assert "leaves no time for a step" in capsys.readouterr().out


@pytest.mark.slow
def test_patchnets_itself_is_measured_to_its_end(tmp_path):
    tiny = [f"--config.{each}" for each in ("model.depth=1", "batch_size=256", "mesh.data=1")]
    requested = time_to_accuracy.parse_args(["--config=configs/mixer_digits.py:paper", "--seconds=20", *tiny])
    runs = time_to_accuracy.Runs(requested, tmp_path, 256)
    seconds, summary = runs.run(12, 1, "compiled", 100.0, pilot=True)  # shorter than the recipe's warm-up
    assert time_to_accuracy.STARTED_TRAINING in (tmp_path / "run-1.log").read_text()
    assert (summary["steps"], summary["epochs"]) == (12, 12 / 6) and 0 < summary["test_accuracy"] < 1
    pace = time_to_accuracy.Speed.of(seconds, summary, 256)
    assert pace.per_epoch == 6 and 0 < 12 * pace.step < seconds and summary["first_step_seconds"] < seconds
    assert pace.overhead + 12 * pace.step == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (["--seconds=60"], "the following arguments are required: --config"),
        (["--config=configs/mixer_digits.py"], "the following arguments are required: --seconds"),
        (["--config=configs/mixer_digits.py", "--seconds=60,soon"], "'soon'"),
        (["--config=configs/mixer_digits.py", "--seconds=0"], "'0'"),
        (["--config=configs/mixer_digits.py", "--seconds=9", "--pilot=1.5"], "'1.5'"),
        (["--config=configs/mixer_digits.py", "--seconds=9", "--compile=never"], "--compile: invalid choice: 'never'"),
        (["--config=configs/mixer_digits.py", "--seconds=9", "--config.total_epochs=9"], "follows from --seconds"),
        (["--config=configs/mixer_digits.py", "--seconds=9", "--config.batch_sise=9"], "batch_size"),
        (["--config=configs/no_such.py", "--seconds=9"], "no such file"),
        (["--config=configs/mixer_digits.py", "--seconds=9", "--data=no/such"], "--data=no/such"),
        (["--config=configs/mixer_digits.py", "--seconds=9", f"--out={__file__}"], "is a file"),
        (["--config=x.py", "--seconds=9", "more"], "unrecognized arguments: more"),
    ],
)
def test_mistakes_cost_one_line(options, arguments, capsys):
    assert start(*options) == 2
    out, err = capsys.readouterr()
    assert not out and arguments in err and err.count("\n") == 1


def test_data_are_class_folders_or_prepared_data_sets(tmp_path):
    assert time_to_accuracy.data_options(str(tmp_path)) == [f"--config.dataset.data_dir={tmp_path.resolve()}"]
    (tmp_path / "train").mkdir()
    actual = time_to_accuracy.data_options(str(tmp_path))
    config, _ = parse_flags(["main", "--config=configs/convmixer_cifar10.py:sprint", *actual])
    assert (config.dataset.name, config.dataset.path) == ("folder", str(tmp_path.resolve()))


def test_the_recipe_gets_stronger_with_its_length():
    def of(variant):
        flat = config_lib.flatten(parse_flags(["main", f"--config=configs/convmixer_cifar10.py:{variant}"])[0])
        names = (
            "total_epochs",
            "augment.random_erasing_prob",
            "augment.hue",
            "augment.saturation",
            "augment.crop_scale_min",
        )
        return [flat[name] for name in names]

    assert of("sprint") == of("sprint-25") == [25, 0, 0, 0, 1]
    assert of("sprint-99")[1:] == of("sprint")[1:] and of("sprint-100") == [100, 0.2, 0, 0.2, 1]
    assert of("sprint-200") == [200, 0.2, 0, 0.2, 0.75]
    with pytest.raises(UserError, match="no variant 'sprint-0'"):
        of("sprint-0")


def test_everything_on_a_gpu_goes_on_where_a_part_fails(monkeypatch, tmp_path, capsys):
    started = []

    def program(module, *options):
        started.append((module, options))
        if module != "experiments.time_to_accuracy":
            raise on_gpu.RunError(f"python -m {module} ended with status 1")

    monkeypatch.setattr(on_gpu, "program", program)
    assert on_gpu.main(["on_gpu", f"--out={tmp_path / 'new'}", "--rounds=3", "--turn=2", f"--data={tmp_path}"]) == 1
    (bench, (_, rounds)), *tutorials, (last, limits) = [(m, o[-2:]) for m, o in started]
    assert (bench, rounds, last) == ("experiments.benchmark", "--seconds=2", "experiments.time_to_accuracy")
    assert len(tutorials) == 2 * len(on_gpu.TUTORIALS) and limits[-1] == f"--data={tmp_path}"
    err = capsys.readouterr().err
    assert "benchmark: python -m experiments.benchmark ended with status 1; the other parts continue" in err
    assert "epochs: 10 of 10 runs failed" in err and "sprint" not in err


def test_the_benchmark_understands_what_it_is_told(monkeypatch):
    arguments = []
    monkeypatch.setattr(on_gpu, "program", lambda module, *options: arguments.extend(options))
    on_gpu.benchmark(on_gpu.parse_args(["--out", "new", "--rounds=3", "--turn", "2"]))
    requested = benchmark.parse_args(arguments, "")
    assert (
        requested.suite
        and (requested.settings.rounds, requested.settings.seconds) == (3, 2.0)
        and str(requested.out) == "new"
    )


def test_an_epoch_is_timed_after_the_first(monkeypatch, tmp_path):
    def program(module, *options):
        config, workdir = parse_flags(["main", *options])
        assert (config.total_epochs, config.model.name) == (4, "keras_mixer") and config.model.dtype in on_gpu.DTYPES
        path = pathlib.Path(workdir)
        path.mkdir()
        rates = {1: 1.0, 2: 90_000.0, 3: 45_000.0, 4: 60_000.0}
        rows = [{"step": 9 * epoch, "epoch": epoch, "images_per_second": rate} for epoch, rate in rates.items()]
        text = "".join(json.dumps(row) + "\n" for row in [*rows, {"step": 36, "test_loss": 1.0}])
        (path / "metrics.jsonl").write_text(text)
        (path / "summary.json").write_text(json.dumps({"device": "1 x fake"}))

    monkeypatch.setattr(on_gpu, "program", program)
    monkeypatch.setattr(on_gpu, "TUTORIALS", {"mixer": None})
    assert on_gpu.main(["on_gpu", f"--out={tmp_path}", "--parts=epochs"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "epochs.jsonl").read_text().splitlines()]
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]
    assert {row["epoch_seconds"] for row in rows} == {0.75}
    assert "|mixer|bfloat16|60,000|0.75|" in (tmp_path / "epochs.md").read_text()


@pytest.mark.parametrize("options", [[], ["--out=x", "--parts=sprint,lunch"], ["--out=x", "--fast"]])
def test_mistakes_about_a_gpu_cost_one_line(options, capsys):
    assert on_gpu.main(["on_gpu", *options]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
