"""A run that several real processes share (Gloo, on this machine): the figures of one, through every kind of end."""

import json
import re
import shutil
import signal

import numpy as np
import pytest
from PIL import Image
from processes import CONFIG, error_of, free_port, start, start_processes, wait_all, wait_until, wait_until_joined
from sklearn import datasets

from patchnets import train
from patchnets.config import flags


def test_a_signal_to_one_stops_all_at_the_same_step(tmp_path):
    processes = start_processes(tmp_path, "run", 2)
    wait_until_joined(tmp_path, processes)
    processes[1].send_signal(signal.SIGINT)
    actual = wait_all(processes)
    assert [status for status, *_ in actual] == [130, 130], actual
    (step,) = {re.search(r"stopped by signal 2 at step (\d+); the same", err)[1] for _, _, err in actual}
    assert int(step) > 0


@pytest.mark.slow
def test_a_second_signal_ends_the_process_and_the_others_with_it(tmp_path):
    processes = start_processes(tmp_path, "hang:1", 2)  # process 1 never comes to the point where it would stop
    wait_until_joined(tmp_path, processes)
    wait_until((tmp_path / "hangs").exists, processes)
    for _ in range(2):
        processes[1].terminate()
        assert processes[1].stderr.readline() in ("SIGTERM: saving and stopping; repeat to stop at once\n", "")
    (status0, _, err0), (status1, _, _) = wait_all(processes)
    assert (status0, status1) == (1, -signal.SIGTERM)
    assert "another process was lost" in err0


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_an_error_at_the_door_reaches_all_with_its_status(tmp_path, index):
    actual = wait_all(start_processes(tmp_path, f"door:{index}", 2))
    assert [status for status, *_ in actual] == [2, 2]
    assert "the work directory is locked" in error_of(actual[index][2])
    assert f"process {index} failed; see its error message" in error_of(actual[1 - index][2])


@pytest.mark.slow
def test_a_failure_of_all_is_told_by_each_in_one_line(tmp_path):
    for status, _, err in wait_all(start_processes(tmp_path, "run-error", 3)):
        assert status == 1 and error_of(err).endswith(": the loss is not finite\n")


@pytest.mark.slow
def test_an_exception_in_one_process_ends_the_others(tmp_path):
    (status0, _, err0), (status1, _, err1) = wait_all(start_processes(tmp_path, "raise:1", 2))
    assert (status0, status1) == (1, 1)
    assert err1.endswith("ArithmeticError: a bug\n")
    assert "another process was lost" in error_of(err0) and "the same command resumes" in err0


@pytest.mark.slow
def test_an_exception_in_the_first_process_ends_the_others(tmp_path):
    (status0, _, err0), (status1, _, _) = wait_all(start_processes(tmp_path, "raise:0", 2))
    assert status0 == 1 and status1 != 0 and err0.endswith("ArithmeticError: a bug\n")


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_killed_process_ends_the_others(tmp_path, index):
    processes = start_processes(tmp_path, "run", 3)
    wait_until_joined(tmp_path, processes)
    processes[index].kill()
    actual = wait_all(processes)
    assert all(status != 0 for status, *_ in actual)
    if index:  # JAX's service, in process 0, outlives the others
        assert "another process was lost" in error_of(actual[0][2])


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_frozen_process_ends_the_others(tmp_path, index):
    processes = start_processes(tmp_path, "run", 2)
    wait_until_joined(tmp_path, processes)
    processes[index].send_signal(signal.SIGSTOP)
    try:
        [(status, _, _)] = wait_all([processes[1 - index]])
    finally:
        processes[index].kill()
        processes[index].communicate()
    assert status != 0


def train_here(workdir, *options):
    """By the process of the tests, on its eight devices."""
    config, _ = flags.parse_flags(["main", CONFIG, *options])
    train.train(config, workdir)


def saved(workdir) -> int:
    steps = [int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit()]
    return max(steps, default=0)


def once_saved(workdir, beyond, processes):
    wait_until(lambda: saved(workdir) > beyond, processes)


def figures(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def last_arrays(workdir):
    """Every array of the last checkpoint, read without the code under test."""
    import jax
    import orbax.checkpoint as ocp

    directory = (workdir / "checkpoints" / "60" / "state").absolute()
    with ocp.PyTreeCheckpointer() as checkpointer:
        full = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), checkpointer.metadata(directory).item_metadata.tree
        )
        tree = checkpointer.restore(directory, restore_args=full)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_alike(ours, others, rows=4):
    assert len(ours) == len(others) == rows
    for our, other in zip(ours, others):
        assert our == pytest.approx(other, rel=1e-4, abs=1e-4)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """Options by which the digits are read from files while training."""
    directory, digits = tmp_path_factory.mktemp("digits"), datasets.load_digits()
    for i, (image, label) in enumerate(zip(digits.images, digits.target)):
        split = "train" if i < 500 else "val" if i < 600 else "test"
        path = directory / split / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < 730:
            Image.fromarray((image * 15).astype(np.uint8)).save(path)
    return tuple(
        f"--config.dataset.{options}"
        for options in ("name=folder", f"path={directory}", "loader=streaming", "num_workers=0")
    )


@pytest.fixture(scope="module")
def alone(streamed, tmp_path_factory):
    """By one process, on four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    [(status, out, err)] = wait_all([start(workdir, None, devices=4, options=streamed)])
    assert status == 0, out + err
    assert "read while training" in out
    return workdir


@pytest.fixture(scope="module")
def together(streamed, tmp_path_factory):
    """By two processes, with two devices each."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    actual = wait_all(start_processes(workdir, None, 2, options=streamed))
    assert [status for status, *_ in actual] == [0, 0], actual
    assert "4 x cpu in 2 processes" in actual[0][1] and (actual[1][1], actual[1][2]) == ("", "")
    assert "test     top-1" in actual[0][1]
    return workdir


@pytest.mark.slow
def test_two_processes_that_read_from_files_measure_what_one_does(alone, together):
    assert_alike(figures(together), figures(alone))
    summary = json.loads((together / "summary.json").read_text())
    assert summary["device"].startswith("4 x cpu in 2 processes")


@pytest.mark.slow
def test_four_processes_that_split_the_parameters_measure_what_one_does(tmp_path):
    """From trained weights, which all of them read from a work directory."""
    train_here(tmp_path / "weights", "--config.total_steps=10")
    short = (f"--config.init.weights={tmp_path / 'weights'}", "--config.init.head=keep", "--config.seed=1")
    short += ("--config.total_steps=20", "--config.checkpoint.save_interval_steps=20")  # two cores have enough to do
    options = (*short, "--config.mesh.data=4", "--config.mesh.fsdp=2")
    actual = wait_all(start_processes(tmp_path / "run", None, 4, options=options))
    assert [status for status, *_ in actual] == [0] * 4, actual
    train_here(tmp_path / "alone", *short)
    assert_alike(figures(tmp_path / "run"), figures(tmp_path / "alone"), rows=2)
    accounts = [(tmp_path / name / "init.json").read_text() for name in ("run", "alone")]
    assert accounts[0] == accounts[1] and '"new": {}' in accounts[0]


@pytest.mark.slow
def test_killed_stopped_and_continued_they_end_with_the_same_bits(streamed, together, tmp_path):
    workdir = tmp_path / "run"
    processes = start_processes(workdir, None, 2, options=streamed)  # one of them asked to stop before the first step
    wait_until((workdir / "data.json").exists, processes)
    processes[1].terminate()
    actual = wait_all(processes)
    assert [status for status, *_ in actual] == [143, 143], actual
    assert all("stopped by signal 15 at step 0" in err for _, _, err in actual) and not saved(workdir)

    processes = start_processes(workdir, None, 2, options=streamed)
    once_saved(workdir, 0, processes)
    second = start_processes(workdir, None, 2, options=streamed)  # two jobs on one work directory at once
    (status, _, err), (other, _, its) = wait_all(second)
    assert (status, other) == (2, 2)
    assert f"another process is running in {workdir}" in error_of(err)
    assert "process 0 failed; see its error message" in error_of(its)

    processes[1].kill()  # the machine is lost
    [(status, _, err)] = wait_all(processes[:1])
    assert status != 0 and "Traceback" not in err, err
    kept = saved(workdir)
    assert 0 < kept < 60

    processes = start_processes(workdir, None, 2, options=streamed)
    once_saved(workdir, kept, processes)
    processes[1].terminate()
    actual = wait_all(processes)
    assert [status for status, *_ in actual] == [143, 143]
    steps = {re.search(r"stopped by signal 15 at step (\d+)", err)[1] for _, _, err in actual}
    assert steps == {str(saved(workdir))}

    shutil.copytree(workdir, tmp_path / "one")  # one process goes on with it as well
    train_here(tmp_path / "one", *streamed, "--config.mesh.data=4")
    assert_alike(figures(tmp_path / "one"), figures(together))

    actual = wait_all(start_processes(workdir, None, 2, options=streamed))
    assert [status for status, *_ in actual] == [0, 0], actual
    assert f"resuming from the checkpoint of step {steps.pop()}" in actual[0][1]
    assert figures(workdir) == figures(together)
    ours, others = last_arrays(workdir), last_arrays(together)
    assert ours.keys() == others.keys() and len(ours) > 30
    for name, array in ours.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


@pytest.mark.slow
def test_a_finished_run_is_told_by_all_at_once(streamed, together):
    actual = wait_all(start_processes(together, None, 2, options=streamed))
    assert [status for status, *_ in actual] == [0, 0]
    assert "holds a finished run" in actual[0][1]


@pytest.mark.slow
def test_a_mistake_is_told_and_all_end(tmp_path):
    actual = wait_all(start_processes(tmp_path / "run", None, 2, options=("--config.mesh.fsdp=3",)))
    assert [status for status, *_ in actual] == [2, 2]
    assert "config.mesh.fsdp=3 does not divide the 4 devices" in error_of(actual[0][2])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_other_configurations_and_work_directories_cost_one_line_each(tmp_path):
    def differ(*options):
        port = free_port()
        both = [start(path, None, i, 2, port, options=settings) for i, (path, *settings) in enumerate(options)]
        actual = wait_all(both)
        assert [status for status, *_ in actual] == [2, 2], actual
        return [error_of(err) for _, _, err in actual]

    for err in differ((tmp_path / "a",), (tmp_path / "a", "--config.seed=7")):
        assert "--config gives process 1 another configuration than process 0" in err
    for err in differ((tmp_path / "a",), (tmp_path / "b",)):
        assert "a is not the same folder in process 1" in err or "b is not the same folder in process 1" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_pictures_are_drawn_once_the_devices_are_free(tmp_path):
    short = ("--config.total_steps=10", "--config.plots=True")
    actual = wait_all(start_processes(tmp_path / "run", None, 2, options=short))
    assert [(status, err) for status, _, err in actual] == [(0, ""), (0, "")], actual
    assert len(list((tmp_path / "run" / "plots").glob("*.png"))) > 3
