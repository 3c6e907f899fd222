"""TensorBoard events through clu, written by a thread so that importing TensorFlow delays no step."""

import importlib.util
import pathlib
import queue
import sys
import threading
from collections.abc import Mapping

from patchnets.errors import one_line


class TensorBoard:
    """Takes scalars at once and writes them when it can. Failing to write is told once and stops no run."""

    def __init__(self, directory: pathlib.Path, enabled: bool):
        self._directory = directory
        self._queue: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._enabled = enabled and all(importlib.util.find_spec(name) for name in ("tensorflow", "tensorboard", "clu"))
        if enabled and not self._enabled:
            print("TensorBoard events are not written: tensorflow or tensorboard is not installed", file=sys.stderr)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        if not self._enabled:
            return
        self._queue.put((step, dict(scalars)))
        if self._thread is None:  # only now: the import must not compete with the start of the run
            self._thread = threading.Thread(target=self._work, name="tensorboard", daemon=True)
            self._thread.start()

    def close(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        try:
            import tensorflow as tf

            tf.config.set_visible_devices([], "GPU")  # writing events must not take an accelerator's memory
            from clu import metric_writers

            writer = metric_writers.SummaryWriter(str(self._directory))
            while (item := self._queue.get()) is not None:
                writer.write_scalars(*item)
                writer.flush()
            writer.close()
        except Exception as error:
            self._enabled = False
            print(f"TensorBoard events are no longer written: {one_line(error)}", file=sys.stderr)
