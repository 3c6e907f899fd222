"""Stop requests: SIGTERM from a scheduler, SIGINT from the keyboard."""

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from patchnets.runtime.signals import SIGNALS, exit_at_once, exit_stopped


class PreemptionHandler:
    """Context manager that records the first SIGTERM or SIGINT in `signal_number`. After that, the previous handlers
    are back, so that a second signal ends the process, in C++ code too. In a thread that is not the main one, in which
    Python handles no signals, it records none."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}
        self._exits = False

    def __enter__(self) -> "PreemptionHandler":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        self.__exit__()
        for other in SIGNALS:
            if signal.getsignal(other) is exit_at_once:  # which would wait for C++ code to return
                signal.signal(other, signal.SIG_DFL)
        if not self._exits:
            with contextlib.suppress(RuntimeError):  # the signal came while another line was being written
                print(f"{signal.Signals(number).name}: saving and stopping; repeat to stop at once", file=sys.stderr)

    @contextlib.contextmanager
    def exit_immediately(self, name: str = "patchnets") -> Iterator[None]:
        """Exit at once on a signal, earlier ones included, with one line and status 128 + its number. This works while
        the main thread waits in C++ code, where Python's signal handlers do not run."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)

        def watch() -> None:
            with reader:
                while received := reader.recv(1):
                    if received[0] in SIGNALS:
                        exit_stopped(name, received[0])

        self._exits = True
        previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=watch, daemon=True).start()
        try:
            if self.signal_number is not None:
                exit_stopped(name, self.signal_number)
            yield
        finally:
            signal.set_wakeup_fd(previous)
            writer.close()
            self._exits = False
