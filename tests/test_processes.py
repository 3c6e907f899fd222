"""A run that several real processes share (Gloo, on this machine): the figures of one, through every kind of end."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from patchnets import main, trainer

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = f"--config={ROOT / 'tests' / 'processes_config.py'}"
TIMEOUT = 300.0


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("", 0))
        return some.getsockname()[1]


def start(workdir, index=0, count=1, port=0, devices=2, options=()):
    environ = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    command = [sys.executable, "-m", "patchnets.main", CONFIG, f"--workdir={workdir}", *options]
    if count > 1:
        command += [f"--coordinator=localhost:{port}", f"--processes={count}", f"--process={index}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=pipe, stderr=pipe, text=True)


def crew(workdir, count, **options):
    port = free_port()
    return [start(workdir, index, count, port, **options) for index in range(count)]


def finish(processes):
    """[(status, what was written, errors)]"""
    until, found = time.monotonic() + TIMEOUT, []
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(1.0, until - time.monotonic()))
            found.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return found


def train_here(workdir, *options):
    """By the process of the tests, on its eight devices."""
    config, _ = main.parse(["main", CONFIG, *options])
    trainer.train(config, workdir)


def saved(workdir) -> int:
    steps = [int(place.name) for place in (workdir / "checkpoints").glob("[0-9]*") if place.name.isdigit()]
    return max(steps, default=0)


def once(condition, processes):
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end and processes[0].poll() is None, finish(processes)
        time.sleep(0.02)


def once_saved(workdir, beyond, processes):
    once(lambda: saved(workdir) > beyond, processes)


def figures(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def last_arrays(workdir):
    """Every array of the last checkpoint, read without the code under test."""
    import jax
    import orbax.checkpoint as ocp

    place = (workdir / "checkpoints" / "60" / "state").absolute()
    with ocp.PyTreeCheckpointer() as checkpointer:
        whole = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), checkpointer.metadata(place).item_metadata.tree
        )
        tree = checkpointer.restore(place, restore_args=whole)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_alike(ours, others, rows=4):
    assert len(ours) == len(others) == rows
    for our, other in zip(ours, others):
        assert our == pytest.approx(other, rel=1e-4, abs=1e-4)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """Options by which the digits are read from files while training."""
    place, digits = tmp_path_factory.mktemp("digits"), datasets.load_digits()
    for i, (image, label) in enumerate(zip(digits.images, digits.target)):
        split = "train" if i < 500 else "val" if i < 600 else "test"
        path = place / split / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < 730:
            Image.fromarray((image * 15).astype(np.uint8)).save(path)
    return tuple(f"--config.dataset.{told}" for told in ("name=folder", f"path={place}", "feed=streaming", "workers=0"))


@pytest.fixture(scope="module")
def alone(streamed, tmp_path_factory):
    """By one process, on four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    [(status, out, err)] = finish([start(workdir, devices=4, options=streamed)])
    assert status == 0, out + err
    assert "read while training" in out
    return workdir


@pytest.fixture(scope="module")
def together(streamed, tmp_path_factory):
    """By two processes, with two devices each."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    found = finish(crew(workdir, 2, options=streamed))
    assert [status for status, *_ in found] == [0, 0], found
    assert "4 x cpu in 2 processes" in found[0][1] and (found[1][1], found[1][2]) == ("", "")
    assert "test     top-1" in found[0][1]
    return workdir


@pytest.mark.slow
def test_two_processes_that_read_from_files_measure_what_one_does(alone, together):
    assert_alike(figures(together), figures(alone))
    summary = json.loads((together / "summary.json").read_text())
    assert summary["device"].startswith("4 x cpu in 2 processes")


@pytest.mark.slow
def test_four_processes_that_split_the_parameters_measure_what_one_does(tmp_path):
    short = ("--config.total_steps=20", "--config.checkpoint.every_steps=20")  # two cores have enough to do
    found = finish(crew(tmp_path / "run", 4, options=(*short, "--config.mesh.data=4", "--config.mesh.fsdp=2")))
    assert [status for status, *_ in found] == [0] * 4, found
    train_here(tmp_path / "alone", *short)
    assert_alike(figures(tmp_path / "run"), figures(tmp_path / "alone"), rows=2)


@pytest.mark.slow
def test_killed_stopped_and_continued_they_end_with_the_same_bits(streamed, together, tmp_path):
    workdir = tmp_path / "run"
    processes = crew(workdir, 2, options=streamed)  # one of them asked to stop before the first step
    once((workdir / "data.json").exists, processes)
    processes[1].terminate()
    found = finish(processes)
    assert [status for status, *_ in found] == [143, 143], found
    assert all("stopped by signal 15 at step 0" in err for _, _, err in found) and not saved(workdir)

    processes = crew(workdir, 2, options=streamed)
    once_saved(workdir, 0, processes)
    second = crew(workdir, 2, options=streamed)  # two jobs on one work directory at once
    (status, _, err), (other, _, its) = finish(second)
    assert (status, other) == (2, 2)
    assert err.count("\n") == its.count("\n") == 1 and f"another process is running in {workdir}" in err

    processes[1].kill()  # the machine is lost
    began = time.monotonic()
    [(status, _, err)] = finish(processes[:1])
    assert status == 1 and time.monotonic() - began < 35
    assert "process 0 of 2 ended, for process 1 was lost" in err.splitlines()[-1] and "Traceback" not in err
    kept = saved(workdir)
    assert 0 < kept < 60

    processes = crew(workdir, 2, options=streamed)
    once_saved(workdir, kept, processes)
    # One of them is asked to stop, and its child too, as schedulers do: that counts as once.
    children = subprocess.run(["pgrep", "-P", str(processes[1].pid)], capture_output=True, text=True).stdout.split()
    for pid in [processes[1].pid, *map(int, children)]:
        os.kill(pid, signal.SIGTERM)
    found = finish(processes)
    assert [status for status, *_ in found] == [143, 143]
    steps = {re.search(r"stopped by signal 15 at step (\d+)", err)[1] for _, _, err in found}
    assert steps == {str(saved(workdir))}

    shutil.copytree(workdir, tmp_path / "one")  # one process goes on with it as well
    train_here(tmp_path / "one", *streamed, "--config.mesh.data=4")
    assert_alike(figures(tmp_path / "one"), figures(together))

    found = finish(crew(workdir, 2, options=streamed))
    assert [status for status, *_ in found] == [0, 0], found
    assert f"going on from the checkpoint of step {steps.pop()}" in found[0][1]
    assert figures(workdir) == figures(together)
    ours, others = last_arrays(workdir), last_arrays(together)
    assert ours.keys() == others.keys() and len(ours) > 30
    for name, array in ours.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


@pytest.mark.slow
def test_a_finished_run_is_told_by_all_at_once(streamed, together):
    found = finish(crew(together, 2, options=streamed))
    assert [status for status, *_ in found] == [0, 0]
    assert "holds a finished run" in found[0][1]


def test_a_mistake_is_told_and_all_end(tmp_path):
    found = finish(crew(tmp_path / "run", 2, options=("--config.mesh.fsdp=3",)))
    assert [status for status, *_ in found] == [2, 2]
    assert "config.mesh.fsdp=3 does not divide the 4 devices" in found[0][2] and found[0][2].count("\n") == 1
    assert not (tmp_path / "run").exists()
