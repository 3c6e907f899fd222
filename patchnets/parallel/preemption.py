"""Stop requests: SIGTERM from a scheduler, SIGINT from the keyboard."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PreemptionHandler:
    """Context manager that records the first SIGTERM or SIGINT in `signal_number`. After that, the previous handlers
    are back, so that a second signal ends the process. Only the main thread can enter it."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}
        self._exits = False

    def __enter__(self) -> "PreemptionHandler":
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        self.__exit__()
        if not self._exits:
            print(f"{signal.Signals(number).name}: saving and stopping; repeat to stop at once", file=sys.stderr)

    @contextlib.contextmanager
    def exit_immediately(self, name: str = "patchnets") -> Iterator[None]:
        """Exit at once on a signal, earlier ones included, with one line and status 128 + its number. This works while
        the main thread waits in C++ code, where Python's signal handlers do not run."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)

        def end(number: int) -> None:
            print(f"{name}: stopped by signal {number} before the run began", file=sys.stderr, flush=True)
            os._exit(128 + number)

        def watch() -> None:
            with reader:
                while received := reader.recv(1):
                    if received[0] in SIGNALS:
                        end(received[0])

        self._exits = True
        previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=watch, daemon=True).start()
        try:
            if self.signal_number is not None:
                end(self.signal_number)
            yield
        finally:
            signal.set_wakeup_fd(previous)
            writer.close()
            self._exits = False
