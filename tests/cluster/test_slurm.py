"""Jobs of experiments.launch on a SLURM cluster of this machine: make cluster."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import slurm

ROOT = pathlib.Path(__file__).resolve().parents[2]
NODES = (1, 2)
SHORT = ("--config.batch_size=64", "--config.plots=False", "--config.early_stopping.patience=None")
DIGITS = ("--config=configs/mixer_digits.py", *SHORT)
LENGTH = "--config.total_epochs=12"
PATIENCE = 900  # seconds for a job, on a machine that has other things to do
QUICK = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # to compile; not the many devices of other tests

pytestmark = pytest.mark.skipif(bool(slurm.why_not()), reason=slurm.why_not() or "-")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    try:
        slurm.up(folder, max(NODES))
        yield Cluster(folder)
    finally:
        slurm.down(folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run of LENGTH that knows of no cluster."""
    path = tmp_path_factory.mktemp("plain") / "run"
    program = [sys.executable, "-m", "patchnets.main", *DIGITS, LENGTH, f"--workdir={path}"]
    subprocess.run(program, cwd=ROOT, env=os.environ | QUICK, check=True, timeout=PATIENCE)
    return path


class Cluster:
    def __init__(self, folder):
        self.environ = slurm.environment(folder) | QUICK

    def tell(self, *command):
        return subprocess.run(
            command, cwd=ROOT, env=self.environ, check=True, capture_output=True, text=True, timeout=PATIENCE
        ).stdout

    def submit(self, path, *arguments):
        """Launches, and returns the number of the job."""
        command = [sys.executable, "-m", "experiments.launch", "slurm", *arguments, f"--workdir={path}"]
        message = self.tell(*command, f"--out={path.parent / 'job.sbatch'}", "--submit")
        (line,) = [line for line in message.splitlines() if line.startswith("Submitted batch job ")]
        return line.split()[-1]

    def about(self, job):
        """What SLURM says of a job, or of each of an array."""
        options = self.tell("scontrol", "show", "job", "--oneliner", job).splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in options]

    def wait(self, job):
        """The job or those of an array, ended; SLURM remembers them for five minutes."""
        for _ in waiting():
            actual = self.about(job)
            if all(each["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED") for each in actual):
                break
        return actual


def waiting():
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        yield
        time.sleep(0.5)
    pytest.fail(f"not within {PATIENCE} s")


def rows(path):
    """Those of metrics.jsonl, less what depends on the clock."""
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines]


def figures(path):
    summary = json.loads((path / "summary.json").read_text())
    return {k: v for k, v in summary.items() if k.startswith(("test_", "val_", "best_")) or k in ("steps", "epochs")}


def logged(path):
    return "".join(file.read_text() for file in sorted(path.glob("slurm-*.out")))


@pytest.mark.parametrize("nodes", NODES)
def test_a_job_trains_as_a_run_without_a_cluster(nodes, cluster, uninterrupted, tmp_path):
    path = tmp_path / "a run"
    (ended,) = cluster.wait(cluster.submit(path, *DIGITS, LENGTH, f"--nodes={nodes}"))
    assert (ended["JobState"], ended["NumNodes"]) == ("COMPLETED", str(nodes)), logged(path)
    assert ("in 2 processes" in logged(path)) == (nodes == 2)
    tolerance = 0 if nodes == 1 else 1e-3  # sums in another order
    for row, expected in zip(rows(path), rows(uninterrupted), strict=True):
        assert row == pytest.approx(expected, rel=tolerance, abs=0)


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("how", [("scancel", "--signal=TERM"), ("scontrol", "requeue")], ids=["SIGTERM", "requeue"])
def test_a_job_that_is_cut_ends_as_if_it_had_not_been(how, nodes, cluster, uninterrupted, tmp_path):
    path = tmp_path / "run"
    job = cluster.submit(path, *DIGITS, LENGTH, f"--nodes={nodes}")
    for _ in waiting():
        if (path / "metrics.jsonl").exists() and len(rows(path)) >= 2:
            break
    cluster.tell(*how, job)
    (ended,) = cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), logged(path)
    assert "resuming from" in logged(path)
    assert ("stopped by signal 15" in logged(path)) == (how[0] == "scancel")  # SLURM's own requeue does not wait
    tolerance = 0 if nodes == 1 else 1e-3
    for row, expected in zip(rows(path), rows(uninterrupted), strict=True):
        assert row == pytest.approx(expected, rel=tolerance, abs=0)
    assert figures(path) == pytest.approx(figures(uninterrupted), rel=tolerance, abs=0)


TWO_STEPS = """#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --output={place}/slurm-%j.out
cd {root}
for run in 0 1; do
    srun --overlap --kill-on-bad-exit=1 {program} --config.seed=$run --workdir={place}/$run &
    steps+=($!)
done
status=0
for step in ${{steps[@]}}; do wait $step || status=$?; done
exit $status
"""


def test_two_steps_of_a_job_are_two_runs(cluster, tmp_path):
    script = tmp_path / "steps.sbatch"
    program = " ".join([sys.executable, "-m", "patchnets.main", *DIGITS, "--config.total_epochs=2"])
    script.write_text(TWO_STEPS.format(place=tmp_path, root=ROOT, program=program))
    (ended,) = cluster.wait(cluster.tell("sbatch", str(script)).split()[-1])
    assert ended["JobState"] == "COMPLETED", logged(tmp_path)
    for run in (0, 1):
        summary = json.loads((tmp_path / str(run) / "summary.json").read_text())
        assert (summary["epochs"], "in 2 processes" in summary["device"]) == (2.0, True)
        assert json.loads((tmp_path / str(run) / "config.json").read_text())["seed"] == run


def test_a_lost_task_ends_the_job(cluster, tmp_path):
    path = tmp_path / "run"
    job = cluster.submit(path, *DIGITS, "--config.total_epochs=10000", "--nodes=2")
    for _ in waiting():
        if (path / "metrics.jsonl").exists() and rows(path):
            break
    options = subprocess.run(["pgrep", "-f", f"patchnets.main .*--workdir={path}$"], capture_output=True, text=True)
    tasks = [int(pid) for pid in options.stdout.split() if b"\0-m\0patchnets.main" in command_of(pid)]
    (lost,) = [pid for pid in tasks if b"SLURM_PROCID=1" in environment_of(pid)]
    os.kill(lost, signal.SIGKILL)
    (ended,) = cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), logged(path)


def command_of(pid):
    return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()


def environment_of(pid):
    return pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed (apt-get install openmpi-bin)")
def test_processes_of_open_mpi_train_as_one(tmp_path, uninterrupted):
    path = tmp_path / "run"
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    program = [sys.executable, "-m", "patchnets.main", *DIGITS, LENGTH, f"--workdir={path}"]
    done = subprocess.run([*mpirun, *program], cwd=ROOT, env=os.environ | QUICK, timeout=PATIENCE, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert "in 2 processes" in json.loads((path / "summary.json").read_text())["device"]
    for row, expected in zip(rows(path), rows(uninterrupted), strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=0)


def test_a_request_that_cannot_be_carried_out_is_not_tried_again(cluster, tmp_path):
    path = tmp_path / "run"
    nowhere = ("--config.dataset.name=folder", f"--config.dataset.path={tmp_path / 'nowhere'}")
    (ended,) = cluster.wait(cluster.submit(path, *DIGITS, *nowhere))
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0"), logged(path)
    assert "patchnets: " in logged(path) and "nowhere" in logged(path)


def test_a_job_that_is_cancelled_has_ended_for_good(cluster, tmp_path):
    path = tmp_path / "run"
    job = cluster.submit(path, *DIGITS, "--config.total_epochs=10000")
    for _ in waiting():
        if (path / "metrics.jsonl").exists() and rows(path):
            break
    cluster.tell("scancel", job)
    (ended,) = cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0"), logged(path)


def test_a_sweep_is_an_array_whose_report_is_gathered(cluster, tmp_path):
    path = tmp_path / "sweep"
    sweep = ("--sweep=experiments/sweeps/mixer_digits_lr.py", *SHORT, "--config.total_epochs=1")
    ended = cluster.wait(cluster.submit(path, *sweep))
    assert [each["JobState"] for each in ended] == ["COMPLETED"] * 4, logged(path)
    cluster.tell(sys.executable, "-m", "experiments.sweep", *sweep, f"--workdir={path}", "--report")
    actual = json.loads((path / "sweep.json").read_text())["entries"]
    assert [entry["changes"]["optimizer.learning_rate"] for entry in actual] == [5e-4, 1.5e-3, 5e-3, 1.5e-2]
    for entry in actual:
        summary = json.loads((path / entry["id"] / "seed-0/summary.json").read_text())
        assert entry["measured"]["test"]["accuracy"]["values"] == [summary["test_accuracy"]]
    assert len({entry["measured"]["test"]["accuracy"]["mean"] for entry in actual}) > 1
    assert (path / "sweep.md").exists() and (path / "sweep.png").read_bytes().startswith(b"\x89PNG")
