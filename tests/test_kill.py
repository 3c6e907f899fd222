"""Real processes that are stopped or killed and resumed end bit-identical to an uninterrupted one."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from patchnets import train
from patchnets.config import flags

ROOT = pathlib.Path(__file__).parent.parent
TIMEOUT = 300.0


CONFIG = f"--config={ROOT / 'tests' / 'kill_config.py'}"
SMALL = (  # a run of seconds: 60 steps, saved every 10, on one device
    CONFIG,
    *(
        f"--config.{options}"
        for options in ("total_steps=60", "eval_every_steps=20", "checkpoint.save_interval_steps=10", "mesh.data=1")
        + ("model.patch_size=4", "model.hidden_dim=16", "model.tokens_mlp_dim=8", "model.channels_mlp_dim=32")
    ),
)


def start(workdir: pathlib.Path) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return program(environment, CONFIG, f"--workdir={workdir}")


def program(environment: dict[str, str], *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "patchnets.main", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, process: subprocess.Popen) -> None:
    """Returns as soon as `condition` holds; fails if the process ends or time runs out before."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, f"ended too early: {process.communicate()[0]}"
        assert time.monotonic() < end, "timed out"
        time.sleep(0.0005)


def checkpoints(workdir: pathlib.Path) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit()}


def final_arrays(workdir: pathlib.Path, step: int = 240) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, read without the code under test."""
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore((workdir / "checkpoints" / str(step) / "state").absolute())
    import jax

    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def figures(workdir: pathlib.Path) -> list[dict]:
    """The rows of metrics.jsonl, without how fast they came."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


@pytest.mark.slow
def test_killed_once_and_continued_it_ends_with_the_bits_of_a_run_by_the_process_of_the_tests(tmp_path):
    workdir, straight = tmp_path / "run", tmp_path / "straight"
    train.train(flags.parse_flags(["main", *SMALL])[0], straight)

    process = program(dict(os.environ), *SMALL, f"--workdir={workdir}")
    wait_for(lambda: checkpoints(workdir), process)
    process.kill()
    process.communicate()
    assert not (workdir / "summary.json").exists()

    process = program(dict(os.environ), *SMALL, f"--workdir={workdir}")
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0 and "resuming from the checkpoint of step " in output, output
    expected, actual = final_arrays(straight, 60), final_arrays(workdir, 60)
    assert expected.keys() == actual.keys() and len(expected) > 30
    for name in expected:
        np.testing.assert_array_equal(expected[name], actual[name], err_msg=name)
    assert figures(workdir) == figures(straight)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    process = start(workdir)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    return workdir


@pytest.mark.slow
def test_killed_and_continued_again_and_again_it_ends_with_the_same_bits(uninterrupted, tmp_path):
    workdir = tmp_path / "run"

    process = start(workdir)  # killed before there is a checkpoint
    wait_for(lambda: (workdir / "config.json").exists(), process)
    process.kill()
    process.communicate()
    assert not checkpoints(workdir)

    for _ in range(5):  # killed inside a save; a save may be over before the signal arrives, then once more
        process = start(workdir)
        wait_for(lambda: len(checkpoints(workdir)) >= 1 and list((workdir / "checkpoints").glob("*tmp*")), process)
        process.kill()
        process.communicate()
        if list((workdir / "checkpoints").glob("*tmp*")):
            break
    else:
        pytest.fail("no save was cut")

    process = start(workdir)  # asked to stop: it saves, wherever it is
    before = checkpoints(workdir)
    wait_for(lambda: checkpoints(workdir) - before, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + signal.SIGTERM, output
    stopped_at = max(int(step) for step in checkpoints(workdir))
    assert f"stopped by signal 15 at step {stopped_at}" in output

    process = start(workdir)  # killed between two saves
    wait_for(lambda: any(int(step) > stopped_at for step in checkpoints(workdir)), process)
    process.kill()
    output, _ = process.communicate()
    assert f"resuming from the checkpoint of step {stopped_at}" in output

    process = start(workdir)  # left alone
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    expected, actual = final_arrays(uninterrupted), final_arrays(workdir)
    assert expected.keys() == actual.keys() and len(expected) > 50
    for name in expected:
        np.testing.assert_array_equal(expected[name], actual[name], err_msg=name)
    assert figures(workdir) == figures(uninterrupted)
    summaries = [json.loads((path / "summary.json").read_text()) for path in (workdir, uninterrupted)]
    for name in ("test_accuracy", "test_loss", "best_step", "val_accuracy", "config_hash"):
        assert summaries[0][name] == summaries[1][name]


@pytest.mark.slow
def test_a_second_process_in_the_same_work_directory_stops_at_once(tmp_path):
    workdir = tmp_path / "run"
    first = start(workdir)
    try:
        wait_for(lambda: (workdir / "config.json").exists(), first)
        second = start(workdir)
        output, _ = second.communicate(timeout=TIMEOUT)
        assert second.returncode == 2
        assert "another process is running" in output and "Traceback" not in output
    finally:
        first.send_signal(signal.SIGINT)
        output, _ = first.communicate(timeout=TIMEOUT)
    assert first.returncode == 128 + signal.SIGINT, output


@pytest.mark.slow
def test_a_save_that_fails_ends_the_program_at_once(tmp_path):
    """Threads of orbax wait for five minutes for a folder that could not be made."""
    workdir = tmp_path / "run"
    process = program(dict(os.environ), *SMALL, "--config.total_steps=100_000", f"--workdir={workdir}")
    try:
        wait_for(lambda: checkpoints(workdir), process)
        (workdir / "checkpoints").rename(workdir / "others")
        (workdir / "checkpoints").touch()
        output = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 1, output
    assert f"patchnets: a checkpoint could not be written to {workdir / 'checkpoints'}" in output.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_program_without_standard_streams_trains(tmp_path, closed):
    arguments = [
        *SMALL,
        "--config.total_steps=20",
        "--config.schedule.warmup_epochs=0",
        f"--workdir={tmp_path / 'run'}",
    ]
    line = f'"$0" -m patchnets.main "$@" {closed}'
    done = subprocess.run(["bash", "-c", line, sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 20
    assert checkpoints(tmp_path / "run") == {"10", "20"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGHUP", "| head"])
def test_a_terminal_that_closes_or_a_pipe_that_nobody_reads_saves_and_stops(tmp_path, how):
    workdir = tmp_path / "run"
    longer = ("--config.total_steps=100_000", "--config.checkpoint.save_interval_steps=50_000")
    process = program(dict(os.environ), *SMALL, *longer, f"--workdir={workdir}")
    while "first step after" not in process.stdout.readline():
        assert process.poll() is None
    if how == "SIGHUP":
        process.send_signal(signal.SIGHUP)
        output, _ = process.communicate(timeout=TIMEOUT)
        assert "SIGTERM: saving and stopping" in output and "stopped by signal 15 at step" in output
    else:
        process.stdout.close()
    assert process.wait(timeout=TIMEOUT) == 128 + signal.SIGTERM
    assert len(checkpoints(workdir)) == 1
