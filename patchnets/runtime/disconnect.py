"""Standard streams that are closed: terminals, pipes that nobody reads (`| head`), and programs started without."""

import os
import signal
import sys
from typing import Any


def open_closed_streams() -> None:
    """Open os.devnull as each standard stream that is closed.

    Else a file that is opened later gets its number, and with it what C++ libraries write to standard error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115, for good


def stop_when_disconnected() -> None:
    """Ask this program to stop, as by SIGTERM, once nobody can read it any more: turn SIGHUP, and
    output that cannot be written, into one SIGTERM. SIGHUP under nohup stays ignored."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    state = _State()
    sys.stdout, sys.stderr = _Output(sys.stdout, state), _Output(sys.stderr, state)


class _State:
    """Whether the program was asked to stop: a second SIGTERM would end it before its state is saved."""

    requested = False


class _Output:
    """A text stream that discards everything once it cannot be written."""

    def __init__(self, stream: Any, state: _State):
        self._stream, self._state = stream, state

    def write(self, text: str) -> int:
        if self._stream is None:  # the program was started without it
            return len(text)
        try:
            self._stream.write(text)
            if "\n" in text:
                self._stream.flush()
        except (OSError, ValueError):  # ValueError: it is closed
            self._discard()
        return len(text)

    def flush(self) -> None:
        if self._stream is None:
            return
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._discard()

    def _discard(self) -> None:
        self._stream = open(os.devnull, "w")  # noqa: SIM115, for the rest of the program
        if not self._state.requested:
            self._state.requested = True
            signal.raise_signal(signal.SIGTERM)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
