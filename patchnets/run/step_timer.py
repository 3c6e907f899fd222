"""Measure training speed, and choose the number of steps per dispatch."""

import contextlib
import time
from collections.abc import Iterator

# Long enough to hide the overhead of a dispatch (on a CPU, XLA maps its working memory each time: 0.1 to 0.4 s for a
# step that needs half a GiB), short enough to update the progress bar and to react to a signal.
SECONDS_PER_CALL = 2.0
MIN_STEPS, MAX_SECONDS = 4, 10.0  # at least MIN_STEPS slow steps per dispatch, within MAX_SECONDS


class StepTimer:
    """Counter of images and of the seconds spent on them, without the first dispatch, which compiles."""

    def __init__(self, fixed_steps: int | None = None, images: int = 0, seconds: float = 0.0):
        """Set up the counter.

        Args:
          fixed_steps: steps per dispatch; None to choose them by time.
          images, seconds: counts of the earlier processes of a resumed run.
        """
        self.images, self.seconds = images, seconds
        self._lap_start = (images, seconds)
        self._dispatches = 0
        self._fixed = fixed_steps
        self._step_seconds: float | None = None
        self._first_rate: float | None = None

    def steps_per_call(self, at_most: int) -> int:
        """Return the number of steps of the next dispatch, at most `at_most`."""
        if self._fixed:
            return min(self._fixed, at_most)
        if self._step_seconds is None:
            return 1
        least = min(MIN_STEPS, max(1, int(MAX_SECONDS / self._step_seconds)))
        return min(at_most, max(least, int(SECONDS_PER_CALL / self._step_seconds)))

    @contextlib.contextmanager
    def measure(self, steps: int, images: int, began: float | None = None) -> Iterator[None]:
        """Time one dispatch; the body must wait for its result.

        `began`, a time.perf_counter(), starts the clock earlier, to include time spent waiting for images.
        """
        began = time.perf_counter() if began is None else began
        yield
        seconds = time.perf_counter() - began
        self._dispatches += 1
        if self._dispatches == 1:
            self._first_rate = images / max(seconds, 1e-9)
        else:
            self._step_seconds = max(seconds / steps, 1e-9)
            self.images += images
            self.seconds += seconds

    @property
    def images_per_second(self) -> float | None:
        """Images per second over all dispatches but the first, or of the first if it is the only one; else None."""
        return self.images / self.seconds if self.seconds else self._first_rate

    def rate_since_last(self) -> float | None:
        """Return images per second since the last call; None if nothing was counted."""
        images, seconds = self.images - self._lap_start[0], self.seconds - self._lap_start[1]
        self._lap_start = (self.images, self.seconds)
        return images / seconds if seconds else None
