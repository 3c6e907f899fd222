"""Terminals that close and pipes that nobody reads (`| head`): the program is asked to stop, as by SIGTERM."""

import os
import signal
import sys
from typing import Any


def stop_when_disconnected() -> None:
    """Turn SIGHUP, and output that cannot be written any more, into one SIGTERM. SIGHUP under nohup stays ignored."""
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
