"""Being asked to stop: by a scheduler (SIGTERM) or at the keyboard (SIGINT)."""

import signal
import sys
import time
from types import FrameType, TracebackType

AT_ONCE = 0.5  # seconds within which two signals are one


class StopRequest:
    """Within this context the first SIGTERM or SIGINT is only noted, in `number`; a second one ends the process."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, handed_on: bool = False) -> None:
        """`handed_on`: a signal may come twice, by itself and from a parent that hands it on."""
        self.number: int | None = None
        self._handed_on, self._noted = handed_on, 0.0
        self._before: dict[int, object] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            if time.monotonic() - self._noted > AT_ONCE:
                self._restore()
                signal.raise_signal(number)
            return
        self.number, self._noted = number, time.monotonic()
        if not self._handed_on:
            self._restore()
        print(f"{signal.Signals(number).name}: saving and stopping; once more to stop at once", file=sys.stderr)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
