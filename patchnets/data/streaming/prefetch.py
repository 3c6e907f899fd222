"""Make batches ahead of their use, in a thread with Grain's worker processes."""

import atexit
import contextlib
import functools
import gc
import itertools
import multiprocessing
import os
import pathlib
import queue
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from multiprocessing import resource_tracker
from typing import Any

import numpy as np

from patchnets import runtime
from patchnets.data.loader import Batch
from patchnets.data.streaming.batch_reader import BatchReader
from patchnets.errors import RunError, UserError, first_line

PREFETCH_BATCHES = 2  # batches ready on the devices
THREADS_PER_WORKER = 2  # one reads while the other decodes
CLOSE_SECONDS = 30.0  # limit, for workers blocked on a disk
UNLINK_SECONDS = 1.0  # limit, for shared memory to be unlinked
ENDLESS = 2**40  # steps, more than any run has
Unreadable = list[tuple[int, str, str]]  # row of the batch, name of the record, error


class Prefetcher:
    """Thread that assembles the batches from a step on and places them on the devices ahead of their use."""

    def __init__(self, reader: BatchReader, first: int, steps: int, workers: int, put: Callable[[Any], Batch]):
        self._ready: queue.Queue[tuple[Batch, Unreadable] | BaseException] = queue.Queue(PREFETCH_BATCHES)
        self._closing, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(reader, first, steps, workers, put), name="patchnets-loader", daemon=True
        )
        # Exit handlers run in reverse order, and importing Grain registers its own; ours must run first.
        import grain  # noqa: F401

        wait_for_unlinking_at_exit()
        atexit.register(self._close_at_exit)
        self._thread.start()

    def take(self) -> tuple[Batch, Unreadable]:
        """Return the next batch and its unreadable records. Raise the thread's error, if any."""
        while True:
            try:
                item = self._ready.get(timeout=1.0)
            except queue.Empty:
                if not self._thread.is_alive() and self._ready.empty():
                    raise RunError(
                        "the thread that reads images died; rerun with config.dataset.num_workers=0 to see the error"
                    ) from None
                continue
            if isinstance(item, RunError | UserError):
                raise item
            if isinstance(item, BaseException):
                raise _failure(item) from item
            return item

    def close(self) -> None:
        """Stop the thread and its workers. A keyboard interrupt is raised only afterwards: otherwise Grain would close
        the same objects from another thread at exit."""
        self._closing.set()
        interrupt, deadline = None, time.monotonic() + CLOSE_SECONDS
        while threading.current_thread() is not self._thread:  # garbage collection may call this in the thread itself
            try:
                self._ended.wait(max(deadline - time.monotonic(), 0.0))  # join would return at once after an interrupt
                break
            except KeyboardInterrupt as error:
                interrupt = error
        atexit.unregister(self._close_at_exit)
        if interrupt is not None:
            raise interrupt

    def _close_at_exit(self) -> None:
        with contextlib.suppress(KeyboardInterrupt):  # the program is exiting already
            self.close()

    def _offer(self, item: tuple[Batch, Unreadable] | BaseException) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return

    def _run(self, reader: BatchReader, first: int, steps: int, workers: int, put: Callable[[Any], Batch]) -> None:
        if workers:
            leave_signals_to_the_main_thread()
        numbers = range(first * reader.chunks_per_step, (first + steps) * reader.chunks_per_step)
        try:
            with contextlib.closing(read(reader, numbers, workers)) as made:
                while not self._closing.is_set() and (step_chunks := self._gather(reader, made)):
                    arrays = {
                        name: np.concatenate([chunk[name] for chunk in step_chunks])
                        for name in ("image", "label", "mask")
                    }
                    lengths = (len(chunk["label"]) for chunk in step_chunks)
                    starts = itertools.accumulate(lengths, initial=0)
                    unreadable = [
                        (start + i, *why)
                        for start, chunk in zip(starts, step_chunks)
                        for i, *why in chunk["unreadable"]
                    ]
                    del step_chunks, lengths, starts  # free the workers' memory
                    self._offer((put(arrays), unreadable))
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # drop Grain's iterators, which hold the workers' memory
            gc.collect()
            self._offer(error)
        finally:
            self._ended.set()

    def _gather(self, reader: BatchReader, made: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the chunks of the next step; none after the last, or when closing."""
        step_chunks = []
        for chunk in made:
            if "error" in chunk:
                raise chunk["error"]
            step_chunks.append(chunk)
            if self._closing.is_set():
                return []
            if len(step_chunks) == reader.chunks_per_step:
                break
        return step_chunks


def _failure(error: BaseException) -> RunError:
    """Return the error for a failed worker, with its likely cause."""
    ended = re.search(r"process was terminated unexpectedly with exit code (-?\d+)", str(error))
    if ended is None:
        return RunError(f"reading images failed ({type(error).__name__}: {first_line(error)})")
    code, cause = int(ended[1]), ""
    reason = f"a worker ended with exit status {code}"
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        reason = f"a worker was ended by {names.get(-code, f'signal {-code}')}"
    if code == -signal.SIGKILL:
        cause = "; memory may be short: set fewer config.dataset.num_workers"
    elif code == -getattr(signal, "SIGBUS", 0):
        cause = "; shared memory is full: give /dev/shm more, or set fewer config.dataset.num_workers"
    elif code == 1:  # Python's status after an exception; the worker has printed it
        cause = '; a program that starts workers needs `if __name__ == "__main__":` around its main code'
    return RunError(f"reading images failed: {reason}{cause}")


def read(reader: BatchReader, numbers: range, workers: int) -> Generator[dict[str, Any], None, None]:
    """Yield the chunks of these numbers in order, made by worker processes, or by threads if `workers` is 0."""
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain reads its absl flags; keep their defaults
        flags.FLAGS.mark_as_parsed()
    workers = min(workers, len(numbers))
    threads = THREADS_PER_WORKER if workers else runtime.cores()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    # Keep Grain from reaching its end: its iterators would then leave the last arrays to Python's garbage collection,
    # which may not run before the program exits.
    data = grain.MapDataset.range(numbers.start, numbers.stop + ENDLESS).map(
        functools.partial(reader.before, numbers.stop)
    )
    data = data.to_iter_dataset(options)
    if workers:
        data = data.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1), worker_init_fn=init_worker
        )
    made = iter(data)
    try:
        yield from itertools.islice(made, len(numbers))
    finally:
        made.close()


def init_worker(index: int, count: int) -> None:
    """Prepare a worker process. Grain calls this in it before the first image is read."""
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    threading.Thread(target=exit_with_parent, name="patchnets-parent", daemon=True).start()


def exit_with_parent() -> None:
    """Exit this worker process when its parent has exited for any reason.

    Grain's workers wait for a request of the parent to stop, which never comes if the parent was killed.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is not a worker process"
    parent.join()
    os._exit(1)


@functools.cache
def wait_for_unlinking_at_exit() -> None:
    """Make the program wait at exit for the thread in which Grain unlinks shared memory, which else would leak."""

    def wait() -> None:
        until = time.monotonic() + UNLINK_SECONDS
        with contextlib.suppress(OSError):  # no /proc: not Linux
            while "/dev/shm/psm_" in pathlib.Path("/proc/self/maps").read_text() and time.monotonic() < until:
                time.sleep(0.002)

    atexit.register(wait)


def leave_signals_to_the_main_thread() -> None:
    """Block SIGINT and SIGTERM in this thread and in the workers it starts; the main thread handles them.

    A signal may go to all processes, and the main one still needs data to stop cleanly."""
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # its first start would unblock signals
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
