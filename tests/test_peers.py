"""Processes that find each other and end together: real ones, which train nothing (tests/peer.py)."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from patchnets import meeting, peers
from patchnets.cluster import Member

PROGRAM = pathlib.Path(__file__).with_name("peer.py")
ROOT = PROGRAM.parents[1]


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("", 0))
        return some.getsockname()[1]


def start(index, count, port, what, wait="20"):
    command = [sys.executable, str(PROGRAM), str(count), str(port), what]
    environ = os.environ | {"PATCHNETS_WAIT_SECONDS": wait, "PYTHONPATH": str(ROOT), "PEER": str(index)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, text=True)


def finish(processes, seconds=30):
    """[(status, what was written, errors)]; within so many seconds."""
    until = time.monotonic() + seconds
    found = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(0.1, until - time.monotonic()))
            found.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return found


def crew(count, what, **options):
    port = free_port()
    return [start(index, count, port, what, **options) for index in range(count)]


def under_way(processes):
    """Once the child of process 0 has begun; the others' have soon after."""
    assert processes[0].stdout.readline() == "began\n"
    time.sleep(0.5)
    return processes


def test_process_0_speaks_for_all_and_errors_come_from_each():
    (status0, out0, err0), (status1, out1, err1) = finish(crew(2, "say"))
    assert (status0, status1) == (0, 0)
    # Both are on this machine, and see the same GPUs. What is written below Python is kept back.
    assert (out0, err0) == ("0 speaks, 0 of 2\n", "0 errs\n")
    assert (out1, err1) == ("", "1 errs\n")


@pytest.mark.parametrize("status", [0, 2, 143])
def test_the_status_of_all_is_that_of_each(status):
    assert [found[0] for found in finish(crew(3, f"all:{status}"))] == [status] * 3


def test_an_error_of_one_ends_the_others_with_its_status():
    found = finish(crew(3, "end:1:2"))
    assert [status for status, *_ in found] == [2, 2, 2]
    for _, _, err in (found[0], found[2]):
        assert err.count("\n") == 1 and "process 1 ended with status 2; it said what has to change first" in err
    assert found[1][2] == ""  # it told its own


def test_a_child_that_was_killed_is_named_at_once():
    began = time.monotonic()
    found = finish(crew(3, f"signal:2:{int(signal.SIGKILL)}"), seconds=20)
    assert time.monotonic() - began < 10
    assert [status for status, *_ in found] == [1, 1, 1]
    for _, _, err in found:
        assert err.count("\n") == 1 and "process 2" in err and "was ended by signal 9" in err


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_gone_is_named_by_the_others_and_its_child_is_gone_too(lost):
    processes = under_way(crew(3, "wait"))
    processes[lost].kill()
    found = finish([process for i, process in enumerate(processes) if i != lost], seconds=20)
    processes[lost].communicate(timeout=5)  # ends only once its child has closed what it shares with it
    for status, _, err in found:
        assert status == 1 and err.count("\n") == 1 and f"process {lost} was lost" in err
        assert "the same command continues" in err


def children(process):
    told = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout
    return [int(pid) for pid in told.split()]


def test_a_signal_reaches_the_child_and_counts_once_however_often_and_late_the_child_itself_gets_it():
    processes = under_way(crew(2, "wait:2"))
    for process in processes:
        process.terminate()
    for _ in range(2):
        time.sleep(0.6)
        for process in processes:
            for pid in children(process):
                os.kill(pid, signal.SIGTERM)
    assert [status for status, *_ in finish(processes)] == [143, 143]


def test_a_second_signal_stops_at_once():
    processes = under_way(crew(2, "wait:60"))
    for _ in range(2):
        processes[1].terminate()
        time.sleep(0.3)
    (status0, _, err0), (status1, _, err1) = finish(processes, seconds=15)
    assert (status0, status1) == (1, 143)
    assert "process 1 of 2 was stopped at once; the same command continues" in err1.splitlines()[-1]
    assert err0.count("\n") == 1 and "process 1 was ended by signal 15" in err0


def test_who_never_comes_is_named_after_the_time_to_wait():
    port = free_port()
    processes = [start(index, 4, port, "wait", wait="2") for index in (0, 2)]
    (status0, _, err0), (status2, _, err2) = finish(processes, seconds=15)
    assert (status0, status2) == (1, 1)
    assert err0.count("\n") == 1 and "processes 1, 3 of 4 did not come within 2 s" in err0 and str(port) in err0
    assert err2.count("\n") == 1 and "processes 1, 3 did not come within 2 s" in err2


def test_no_process_0_is_told_after_the_time_to_wait():
    port = free_port()
    [(status, _, err)] = finish([start(1, 2, port, "wait", wait="1")], seconds=15)
    assert status == 1 and err.count("\n") == 1 and f"process 0 was not at localhost:{port} within 1 s" in err


def test_who_comes_late_is_waited_for():
    port = free_port()
    first = start(1, 2, port, "all:0")
    time.sleep(1.0)
    assert [status for status, *_ in finish([first, start(0, 2, port, "all:0")])] == [0, 0]


def test_a_number_that_two_processes_have_is_refused_and_the_run_goes_on():
    port = free_port()
    processes = [start(0, 3, port, "all:0"), start(1, 3, port, "all:0")]
    time.sleep(1.5)
    [(status, _, err)] = finish([start(1, 3, port, "all:0")])
    assert status == 1 and err.count("\n") == 1 and "there is a process 1 already" in err
    assert [status for status, *_ in finish([*processes, start(2, 3, port, "all:0")])] == [0, 0, 0]


def test_processes_that_count_otherwise_are_refused():
    port = free_port()
    first = start(0, 2, port, "all:0")
    [(status, _, err)] = finish([start(1, 3, port, "all:0")])
    assert status == 1 and "process 0 runs with 2 processes, and this one said it was 1 of 3" in err
    assert [status for status, *_ in finish([first, start(1, 2, port, "all:0")])] == [0, 0]


def test_processes_with_another_command_are_refused_and_the_last_is_told_where_nobody_else_comes():
    port = free_port()
    first = start(0, 2, port, "all:0", wait="3")
    [(status, _, err)] = finish([start(1, 2, port, "all:1")])
    assert status == 2 and err.count("\n") == 1
    why = "process 1 was started with all:1, and process 0 with all:0; start all by the same command"
    assert err == f"patchnets: process 1 of 2: {why}\n"
    [(status, _, err)] = finish([first])
    assert status == 1 and err.count("\n") == 1 and f"(one came and was refused: {why})" in err


def test_those_on_one_machine_share_it_and_those_that_see_the_same_gpus_take_one_each():
    def member(index, machine, gpus=None):
        return {"hello": index, "machine": machine, "gpus": gpus}

    def places(*hellos):
        return [tuple(meeting._place(index, dict(enumerate(hellos))).values()) for index in range(len(hellos))]

    assert places(member(0, "a"), member(1, "b")) == [(None, 1), (None, 1)]
    assert places(member(0, "a"), member(1, "b"), member(2, "a")) == [(0, 2), (None, 1), (1, 2)]
    assert places(member(0, "a", "0,1"), member(1, "a", "2,3")) == [(None, 2), (None, 2)]


@pytest.mark.parametrize(
    ("local", "beside", "visible", "taken"),
    [(1, 2, None, [1]), (1, 2, "4,5", [1]), (0, 2, "4", None), (None, 2, "0,1", None), (0, 1, None, None)],
)
def test_connecting_takes_a_gpu_where_several_see_them_all_and_leaves_signals_alone(
    monkeypatch, local, beside, visible, taken
):
    import jax

    asked = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **options: asked.update(options))
    monkeypatch.setattr(jax.config, "update", lambda name, value: asked.update({name: value}))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    peers.connect(Member(1, 2, "h", 1, local, beside), "h:2")
    assert asked["local_device_ids"] == taken
    assert asked["jax_enable_preemption_service"] is False  # JAX's own takes SIGTERM until the first step


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        [(status, _, err)] = finish([start(0, 2, port, "wait", wait="2")])
    assert status == 2 and err.count("\n") == 1 and f"cannot listen on port {port}" in err


def test_a_signal_before_all_have_come_ends_the_wait():
    process = start(0, 2, free_port(), "wait")
    time.sleep(1.0)
    process.terminate()
    [(status, _, err)] = finish([process])
    assert status == 143 and "stopped by signal 15 before the run began" in err
