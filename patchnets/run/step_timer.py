"""How fast a run goes, and how many steps to give the device at a time."""

import contextlib
import time
from collections.abc import Iterator

# Long enough to hide what a dispatch costs (on a CPU, XLA maps its working memory anew each time: 0.1 to 0.4 s for a
# step that needs half a GiB), short enough to move a bar and to stop on a signal.
SECONDS_PER_CALL = 2.0
MIN_STEPS, MAX_SECONDS = 4, 10.0  # slow steps go by a few at a time, as long as that stays short


class StepTimer:
    """Counts images and the seconds spent on them. The first dispatch, which compiles, is not counted."""

    def __init__(self, fixed_steps: int | None = None, images: int = 0, seconds: float = 0.0):
        """`fixed_steps` fixes the steps of a dispatch; `images` and `seconds` are those of an earlier process."""
        self.images, self.seconds = images, seconds
        self._lap_start = (images, seconds)
        self._dispatches = 0
        self._fixed = fixed_steps
        self._step_seconds: float | None = None
        self._first_rate: float | None = None

    def steps_per_call(self, at_most: int) -> int:
        """How many steps to dispatch now."""
        if self._fixed:
            return min(self._fixed, at_most)
        if self._step_seconds is None:
            return 1
        least = min(MIN_STEPS, max(1, int(MAX_SECONDS / self._step_seconds)))
        return min(at_most, max(least, int(SECONDS_PER_CALL / self._step_seconds)))

    @contextlib.contextmanager
    def measure(self, steps: int, images: int, began: float | None = None) -> Iterator[None]:
        """Times one dispatch, which the caller waits for inside; from the time.perf_counter() `began` on, where the
        caller has waited for images before."""
        began = time.perf_counter() if began is None else began
        yield
        took = time.perf_counter() - began
        self._dispatches += 1
        if self._dispatches == 1:
            self._first_rate = images / max(took, 1e-9)
        else:
            self._step_seconds = max(took / steps, 1e-9)
            self.images += images
            self.seconds += took

    @property
    def images_per_second(self) -> float | None:
        """Over all dispatches but the first, or of that one where there is no other; None before there is any."""
        return self.images / self.seconds if self.seconds else self._first_rate

    def rate_since_last(self) -> float | None:
        """Images per second since the last call."""
        images, seconds = self.images - self._lap_start[0], self.seconds - self._lap_start[1]
        self._lap_start = (self.images, self.seconds)
        return images / seconds if seconds else None
