"""The program that trains tables, in a folder with earlier rows, running processes or damaged files."""

import fcntl
import io
import json

import pytest
from PIL import Image

from experiments.reproduce import __main__ as reproduce
from experiments.runner import jobs, learning_curves, report
from patchnets.config import common
from patchnets.run import workdir


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    """The curves of tests/experiments/test_reproduce.py are drawn; here the reports hold a picture without any."""
    nothing = io.BytesIO()
    Image.new("L", (1, 1)).save(nothing, format="png")
    drawn = lambda results: nothing.getvalue() if any(r["curve"]["val_accuracy"] for r in results) else None
    monkeypatch.setattr(learning_curves, "curves", drawn)


def start(path, *options):
    return reproduce.main(["reproduce", "--table=keras_examples", f"--workdir={path}", *options])


def rows_of(path):
    return {row["id"]: row for row in json.loads((path / "report.json").read_text())["rows"]}


@pytest.mark.slow
def test_rows_of_earlier_commands_stay_in_the_report(fake, tmp_path, monkeypatch):
    path, drawn = tmp_path / "out", []
    curves = learning_curves.curves
    monkeypatch.setattr(
        report.learning_curves, "curves", lambda actual: drawn.append([each["id"] for each in actual]) or curves(actual)
    )
    assert start(path, "--rows=mixer-1", "--seeds=2") == 0
    (path / "fnet-1/seed-0/checkpoints").mkdir(parents=True)  # of a run that was cut
    assert start(path, "--rows=gmlp-1,vit-1", "--config.dataset.data_dir=/d") == 0
    assert len(fake()) == 4, "and what was not asked for is not trained"
    rows = rows_of(path)
    assert list(rows) == drawn[-1] == ["gmlp-1", "vit-1", "mixer-1", "fnet-1"]
    assert (rows["mixer-1"]["seeds"], rows["mixer-1"]["verdict"]) == ([0, 1], "not reproduced")
    assert (rows["fnet-1"]["verdict"], rows["fnet-1"]["seeds_asked"]) == ("not run", 1)
    assert all(not row["reasons"] or row["id"] != "vit-1" for row in rows.values())
    assert "|mixer-1|cifar100|1|top-1|9.76|11.00 ± 1.41|" in (path / "report.md").read_text()
    assert start(path, "--rows=vit-10", "--report") == 0
    assert list(rows_of(path)) == ["vit-10", "mixer-1", "fnet-1", "gmlp-1", "vit-1"]


def test_rows_of_earlier_commands_are_shown_as_they_were_run(fake, tmp_path, monkeypatch):
    path = tmp_path / "out"
    monkeypatch.setattr(jobs.config_lib, "config_hash", lambda config: "hash" if config.batch_size == 64 else "another")
    assert start(path, "--rows=mixer-1", "--config.batch_size=64") == 0
    assert start(path, "--rows=gmlp-1", "--config.batch_size=64", "--data=digits") == 0
    gmlp, mixer = rows_of(path).values()
    assert (gmlp["dataset"], gmlp["verdict"]) == ("digits", "other data")
    assert (mixer["dataset"], mixer["verdict"], mixer["seeds"]) == ("cifar100", "other recipe", [0])
    config = common.base(batch_size=64, total_epochs=1.0, model=dict(name="fnet", variant="S/16"))
    (path / "mixer-1/seed-0/config.json").write_text(config.to_json())
    assert start(path, "--rows=vit-1", "--report") == 0
    mixer = rows_of(path)["mixer-1"]
    assert (mixer["verdict"], mixer["seeds"]) == ("not run", [])
    assert "seed 0 was run in mixer-1/seed-0 with another configuration, which is not shown" in mixer["reasons"]


def test_keys_that_an_earlier_row_cannot_have_do_not_keep_it_out(fake, tmp_path):
    path = tmp_path / "out"
    assert start(path, "--rows=mixer-1") == 0
    assert start(path, "--rows=convmixer-2", "--config.model.kernel_size=7") == 0
    convmixer, mixer = rows_of(path).values()
    assert "changed: model.kernel_size" in convmixer["reasons"]
    assert (mixer["verdict"], mixer["seeds"]) == ("not reproduced", [0])


def test_a_log_goes_on_and_a_run_at_work_is_left_alone(fake, tmp_path, monkeypatch, capsys):
    path = tmp_path / "out"
    monkeypatch.setenv("FAIL", "0")
    assert start(path, "--rows=mixer-1") == 1
    log = path / "mixer-1/seed-0.log"
    (path / "mixer-1/seed-0/.lock").touch()
    with (path / "mixer-1/seed-0/.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        capsys.readouterr()
        assert start(path, "--rows=mixer-1,fnet-1", "--seeds=2") == 1
    message = (
        "another process is running in mixer-1/seed-0: wait for it or end it (pgrep -f mixer-1/seed-0 finds it), "
        "then run the same command again"
    )
    assert f"mixer-1 seed 0 failed, {message}\n" in capsys.readouterr().out
    assert f"seed 0 failed, {message}" in rows_of(path)["mixer-1"]["reasons"]
    assert log.read_text() == "patchnets: no images\n" and len(fake()) == 4
    assert rows_of(path)["mixer-1"]["seeds"] == [1] and rows_of(path)["fnet-1"]["seeds"] == [1]
    monkeypatch.delenv("FAIL")
    assert start(path, "--rows=mixer-1") == 0  # as soon as nobody is at work there
    assert log.read_text() == "patchnets: no images\ndone 0\n"


def test_what_an_earlier_process_said_is_not_taken_for_a_later_ones(tmp_path):
    job = jobs.Job(None, 0, (), tmp_path / "out" / "row" / "seed-0", "hash", ())
    job.log.parent.mkdir(parents=True)
    job.log.write_text("patchnets: no images\n")
    began = job.log.stat().st_size
    assert job.last_log_line(began) == ""
    job.log.write_text("patchnets: no images\nepoch 1\n")
    assert (job.last_log_line(began), job.last_log_line()) == ("epoch 1", "patchnets: no images")


@pytest.mark.parametrize(
    "damage",
    [
        lambda summary: [],
        lambda summary: None,
        lambda summary: 3,
        lambda summary: {"config_hash": "hash"},
        lambda summary: summary | {"params": None},
        lambda summary: summary | {"test_accuracy": "x"},
        lambda summary: summary | {"images_per_second": "fast"},
        lambda summary: summary | {"wall_seconds": float("nan")},
        lambda summary: summary | {"versions": []},
        lambda summary: {name: value for name, value in summary.items() if name != "device"},
    ],
)
def test_a_damaged_summary_is_none(damage, fake, tmp_path):
    path = tmp_path / "out"
    assert start(path, "--rows=mixer-1") == 0
    summary = path / "mixer-1/seed-0/summary.json"
    full = json.loads(summary.read_text())
    summary.write_text(json.dumps(damage(full)))
    assert start(path, "--rows=mixer-1", "--report") == 0
    assert rows_of(path)["mixer-1"]["verdict"] == "not run"
    assert start(path, "--rows=mixer-1") == 0  # run again
    assert len(fake()) == 2 and json.loads(summary.read_text()) == full
    assert summary.with_name("summary.json.damaged").exists()


def test_rows_of_metrics_that_are_no_figures_are_passed_over(fake, tmp_path):
    path = tmp_path / "out"
    assert start(path, "--rows=mixer-1") == 0
    metrics = path / "mixer-1/seed-0/metrics.jsonl"
    good = dict(epoch=2.0, val_accuracy=0.5)
    rows = [3, None, [], dict(epoch="x", val_accuracy=0.1), dict(epoch=1.0, val_accuracy="x"), dict(epoch=[1]), good]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert start(path, "--rows=mixer-1", "--report") == 0
    assert rows_of(path)["mixer-1"]["curve"]["val_accuracy"] == [[2.0, 0.5, 0.5, 0.5]]


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", "{"])
def test_a_damaged_configuration_is_told_in_one_line(text, tmp_path):
    job = jobs.Job(None, 0, (), tmp_path / "out" / "row" / "seed-0", "hash", ())
    job.workdir.mkdir(parents=True)
    (job.workdir / "config.json").write_text(text)
    with pytest.raises(workdir.UserError, match=r"config\.json cannot be read|is not set|was run there"):
        jobs.check_unmixed([job])
