"""Signals to a process and its child: held back until the child can note them, and counted by the parent alone."""

import signal
import subprocess
import sys

from patchnets.signals import HandedOn

CHILD = """
import sys, time
from patchnets.signals import StopRequest
time.sleep(0.2)
with StopRequest(handed_on=True) as stop:
    time.sleep(float(sys.argv[1]))
sys.exit(stop.number)
"""


def test_a_signal_waits_until_a_child_that_starts_can_note_it():
    with HandedOn() as signals:
        child = signals.start([sys.executable, "-c", CHILD, "0"], stderr=subprocess.PIPE)
        signal.raise_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=20)
    assert child.returncode == signals.came == signal.SIGTERM and b"Traceback" not in said
    assert not signals.twice and signals.status(child.returncode) == signal.SIGTERM


def test_a_second_signal_ends_the_child_as_if_by_that():
    with HandedOn() as signals:
        child = signals.start([sys.executable, "-c", CHILD, "60"])
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert signals.status(child.wait(timeout=20)) == -signal.SIGINT
