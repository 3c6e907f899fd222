"""A run that several real processes share (Gloo, on this machine): the figures of one, through every kind of end."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
TIMEOUT = 300.0


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("", 0))
        return some.getsockname()[1]


def start(workdir, index=0, count=1, port=0, devices=2, options=()):
    environ = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    config = ROOT / "tests" / "processes_config.py"
    command = [sys.executable, "-m", "patchnets.main", f"--config={config}", f"--workdir={workdir}", *options]
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


def saved(workdir) -> int:
    steps = [int(place.name) for place in (workdir / "checkpoints").glob("[0-9]*") if place.name.isdigit()]
    return max(steps, default=0)


def once_saved(workdir, beyond, processes):
    end = time.monotonic() + TIMEOUT
    while saved(workdir) <= beyond:
        assert time.monotonic() < end and processes[0].poll() is None, finish(processes)
        time.sleep(0.02)


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


def assert_alike(ours, others):
    assert len(ours) == len(others) == 4
    for our, other in zip(ours, others):
        assert our == pytest.approx(other, rel=1e-4, abs=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """By one process, on four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    [(status, out, err)] = finish([start(workdir, devices=4)])
    assert status == 0, out + err
    return workdir


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """By two processes, with two devices each."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    found = finish(crew(workdir, 2))
    assert [status for status, *_ in found] == [0, 0], found
    assert "4 x cpu in 2 processes" in found[0][1] and (found[1][1], found[1][2]) == ("", "")
    assert "test     top-1" in found[0][1]
    return workdir


def test_two_processes_measure_what_one_does(alone, together):
    assert_alike(figures(together), figures(alone))
    summary = json.loads((together / "summary.json").read_text())
    assert summary["device"].startswith("4 x cpu in 2 processes")


def test_four_processes_that_split_the_parameters_measure_what_one_does(alone, tmp_path):
    options = ("--config.mesh.data=2", "--config.mesh.fsdp=2")
    found = finish(crew(tmp_path / "run", 4, devices=1, options=options))
    assert [status for status, *_ in found] == [0] * 4, found
    assert_alike(figures(tmp_path / "run"), figures(alone))


def test_killed_stopped_and_continued_they_end_with_the_same_bits(together, tmp_path):
    workdir = tmp_path / "run"
    processes = crew(workdir, 2)
    once_saved(workdir, 0, processes)
    second = crew(workdir, 2)  # two jobs on one work directory at once
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

    processes = crew(workdir, 2)
    once_saved(workdir, kept, processes)
    # One of them is asked to stop, and its child too, as schedulers do: that counts as once.
    children = subprocess.run(["pgrep", "-P", str(processes[1].pid)], capture_output=True, text=True).stdout.split()
    for pid in [processes[1].pid, *map(int, children)]:
        os.kill(pid, signal.SIGTERM)
    found = finish(processes)
    assert [status for status, *_ in found] == [143, 143]
    steps = {re.search(r"stopped by signal 15 at step (\d+)", err)[1] for _, _, err in found}
    assert steps == {str(saved(workdir))}

    found = finish(crew(workdir, 2))
    assert [status for status, *_ in found] == [0, 0], found
    assert f"going on from the checkpoint of step {steps.pop()}" in found[0][1]
    assert figures(workdir) == figures(together)
    ours, others = last_arrays(workdir), last_arrays(together)
    assert ours.keys() == others.keys() and len(ours) > 30
    for name, array in ours.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


def test_a_finished_run_is_told_by_all_at_once(together):
    found = finish(crew(together, 2))
    assert [status for status, *_ in found] == [0, 0]
    assert "holds a finished run" in found[0][1]


def test_a_mistake_is_told_and_all_end(tmp_path):
    found = finish(crew(tmp_path / "run", 2, options=("--config.mesh.fsdp=3",)))
    assert [status for status, *_ in found] == [2, 2]
    assert "config.mesh.fsdp=3 does not divide the 4 devices" in found[0][2] and found[0][2].count("\n") == 1
    assert not (tmp_path / "run").exists()
