"""The end of a process by a signal, at any moment from its first line on."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from patchnets.runtime.files import remove_partial

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_program = "patchnets"


def exit_on_signals(program: str) -> None:
    """End the process at once on SIGTERM or SIGINT, with one line and status 128 + the signal's number.

    No exception is raised: libraries swallow it, or make another of it, while they are imported. PreemptionHandler
    takes over for the time of a run.
    """
    global _program
    _program = program
    for number in SIGNALS:
        signal.signal(number, exit_at_once)
    _block(False)


def exit_at_once(number: int, frame: FrameType | None) -> None:
    """Handle a signal after `exit_on_signals`."""
    exit_stopped(_program, number)


def exit_stopped(program: str, number: int) -> NoReturn:
    """End the process, stopped by a signal. What it was writing under temporary names is removed."""
    with contextlib.suppress(OSError):  # not by sys.stderr, which the main thread may be writing to
        os.write(2, f"{program}: stopped by signal {number}\n".encode())
    remove_partial()
    os._exit(128 + number)


@contextlib.contextmanager
def hold_signals() -> Iterator[None]:
    """Hold signals back, also over os.execve: `exit_on_signals` of the next program lets them through."""
    _block(True)
    try:
        yield
    finally:
        _block(False)


def _block(blocked: bool) -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK if blocked else signal.SIG_UNBLOCK, SIGNALS)
