"""SIGTERM and SIGINT: the first is noted, the second ends the process; while it waits for others, so does the first."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from processes import TIMEOUT, error_of, free_port, start, wait_all

from patchnets.parallel.preemption import SIGNALS, PreemptionHandler


@pytest.fixture(autouse=True)
def handlers():
    """Of pytest, as they were."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_the_second_does_what_it_did_before(number, handlers, capsys):
    with PreemptionHandler() as preemption:
        assert preemption.signal_number is None
        signal.raise_signal(number)
        assert preemption.signal_number == number
        assert {number: signal.getsignal(number) for number in SIGNALS} == handlers
    assert preemption.signal_number == number
    assert capsys.readouterr().err == f"{signal.Signals(number).name}: saving and stopping; repeat to stop at once\n"


PROGRAM = """
import sys, time
from patchnets.parallel.preemption import PreemptionHandler
with PreemptionHandler() as preemption:
    print("began", flush=True)
    while preemption.signal_number is None:
        time.sleep(0.01)
    print("noted", flush=True)
    if sys.argv[1] == "wait":
        time.sleep(600)
    with preemption.exit_immediately():
        print("not here", flush=True)
"""


def begin(what):
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, what], stdout=pipe, stderr=pipe, text=True)
    assert process.stdout.readline() == "began\n"
    process.terminate()
    assert process.stdout.readline() == "noted\n"
    return process


def test_a_second_signal_ends_a_process():
    process = begin("wait")
    process.terminate()
    assert process.wait(timeout=TIMEOUT) == -signal.SIGTERM


def test_where_a_signal_ends_the_process_at_once_so_does_one_that_came_before():
    out, err = begin("exit").communicate(timeout=TIMEOUT)
    assert out == "" and err.splitlines()[-1] == "patchnets: stopped by signal 15"


def test_signals_are_noted_again_after_they_would_have_ended_the_process(capsys):
    with PreemptionHandler() as preemption:
        with preemption.exit_immediately():
            pass
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert preemption.signal_number == signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("index, number", [(0, signal.SIGINT), (1, signal.SIGTERM)])
def test_a_signal_ends_the_wait_for_other_processes(tmp_path, index, number):
    port = free_port()
    if index == 0:
        process = start(tmp_path, "done", 0, 2, port)
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:  # until process 0 listens
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port)):
                break
            time.sleep(0.1)
    else:
        with socket.create_server(("localhost", port)) as server:
            process = start(tmp_path, "done", 1, 2, port)
            server.settimeout(TIMEOUT)
            server.accept()[0].close()  # from now on there is no process 0
    time.sleep(1.0)
    os.kill(process.pid, number)
    [(status, _, err)] = wait_all([process])
    name = "patchnets" + (": process 1 of 2" if index else "")
    assert status == 128 + number
    assert error_of(err) == f"{name}: stopped by signal {int(number)}\n"
