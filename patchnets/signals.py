"""Being asked to stop: by a scheduler (SIGTERM) or at the keyboard (SIGINT).

Of a run of several processes, the parent of each (peers.py) hands the first signal on to its child, and ends it at a
second one. A scheduler or a terminal may signal both at once, and how far apart the two arrive says nothing; so the
child takes whatever comes after the first for the same request.
"""

import signal
import subprocess
import sys
from types import FrameType, TracebackType
from typing import Any

from patchnets.errors import RunError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Within this context the first SIGTERM or SIGINT is only noted, in `number`; a second one ends the process."""

    def __init__(self, handed_on: bool = False) -> None:
        """`handed_on`: of a child whose parent hands signals on, and ends it where there is a second one. The context
        then lasts as long as the process, and begins with what has come since the child was started."""
        self.number: int | None = None
        self._handed_on = handed_on
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            return
        self.number = number
        if not self._handed_on:
            self._restore()
        print(f"{signal.Signals(number).name}: saving and stopping; once more to stop at once", file=sys.stderr)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        if self._handed_on:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._handed_on:
            self._restore()


class HandedOn:
    """Within this context the first signal is noted in `came`, and handed on to `child` once there is one; a second one
    kills that, as `twice` tells."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.came: int | None = None
        self.twice = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "HandedOn":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.twice = self.came is not None
        self.came = self.came or number
        if self.child is not None:
            self.child.send_signal(signal.SIGKILL if self.twice else number)

    def start(self, command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        """The child, by subprocess.Popen: a signal waits until it is ready to note it."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self.child = subprocess.Popen(command, **options)
            if self.came is not None:
                self.child.send_signal(signal.SIGKILL if self.twice else self.came)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self.child

    def check(self) -> None:
        """Raises RunError, with the status of the signal, where one came before there was anything to stop."""
        if self.came is not None:
            error = RunError(f"stopped by signal {self.came} before the run began")
            error.status = 128 + self.came
            raise error

    def status(self, status: int) -> int:
        """That of the child, which a second signal ended, whatever `_note` ended it by."""
        return -self.came if self.came and self.twice and status == -signal.SIGKILL else status

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
