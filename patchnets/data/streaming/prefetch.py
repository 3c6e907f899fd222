"""The thread that has batches made ahead of their use, by worker processes, through Grain."""

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

PREFETCH_BATCHES = 2  # batches that lie ready on the devices
THREADS_PER_WORKER = 2  # of a worker: one waits for the disk while the other decodes
CLOSE_SECONDS = 30.0  # to wait for workers that wait for a disk
UNLINK_SECONDS = 1.0  # to wait for shared memory to be unlinked
ENDLESS = 2**40  # steps, more than any run has
Unreadable = list[tuple[int, str, str]]  # rows of a batch, names of their records, and what is wrong with them


class Prefetcher:
    """A thread that puts together the batches from a step on, and places them on the devices ahead of their use."""

    def __init__(self, reader: BatchReader, first: int, steps: int, workers: int, put: Callable[[Any], Batch]):
        self._ready: queue.Queue[tuple[Batch, Unreadable] | BaseException] = queue.Queue(PREFETCH_BATCHES)
        self._closing, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(reader, first, steps, workers, put), name="patchnets-loader", daemon=True
        )
        # At exit in good order: what is registered later runs earlier, and Grain's import registers its own end.
        import grain  # noqa: F401

        wait_for_unlinking_at_exit()
        atexit.register(self._close_at_exit)
        self._thread.start()

    def take(self) -> tuple[Batch, Unreadable]:
        """The next batch, and what could not be read of it. Raises what went wrong instead."""
        while True:
            try:
                item = self._ready.get(timeout=1.0)
            except queue.Empty:
                if not self._thread.is_alive() and self._ready.empty():
                    raise RunError("the thread that reads images ended without a word") from None
                continue
            if isinstance(item, RunError | UserError):
                raise item
            if isinstance(item, BaseException):
                raise _failure(item) from item
            return item

    def close(self) -> None:
        """Ends the thread and what it started. A keyboard interrupt meanwhile is raised when that is done: at the end
        of the program Grain would close the same things from another thread."""
        self._closing.set()
        interrupt, deadline = None, time.monotonic() + CLOSE_SECONDS
        while threading.current_thread() is not self._thread:  # which collects garbage too
            try:
                self._ended.wait(max(deadline - time.monotonic(), 0.0))  # join takes it for ended once interrupted
                break
            except KeyboardInterrupt as error:
                interrupt = error
        atexit.unregister(self._close_at_exit)
        if interrupt is not None:
            raise interrupt

    def _close_at_exit(self) -> None:
        with contextlib.suppress(KeyboardInterrupt):  # there is nothing left to interrupt
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
                    del step_chunks, lengths, starts  # the workers' memory
                    self._offer((put(arrays), unreadable))
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # of Grain's iterators, which hold the workers' memory
            gc.collect()
            self._offer(error)
        finally:
            self._ended.set()

    def _gather(self, reader: BatchReader, made: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        """The chunks of the next step; none after the last, or when closing."""
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
    """What Grain tells of a worker, with the likely cause where the system ended it."""
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
    elif code == 1:  # Python's status after an exception, which the worker has printed
        cause = '; a program of your own that starts workers needs `if __name__ == "__main__":` round what it does'
    return RunError(f"reading images failed: {reason}{cause}")


def read(reader: BatchReader, numbers: range, workers: int) -> Generator[dict[str, Any], None, None]:
    """The chunks of these numbers, in order, made by worker processes, or, where there are 0, by threads."""
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, which have their defaults here
        flags.FLAGS.mark_as_parsed()
    workers = min(workers, len(numbers))
    threads = THREADS_PER_WORKER if workers else runtime.cores()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    # Grain never comes to its end, where its iterators would leave each other, and the last arrays, to Python's garbage
    # collection, which may not come to them before the program ends.
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
    """Prepares a worker process; Grain calls it there, before the first image is read."""
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    threading.Thread(target=exit_with_parent, name="patchnets-parent", daemon=True).start()


def exit_with_parent() -> None:
    """Ends this worker process once the program that started it has ended, however that came about.

    Grain's workers wait for that program's word to stop, which never comes where it was killed.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is not a worker process"
    parent.join()
    os._exit(1)


@functools.cache
def wait_for_unlinking_at_exit() -> None:
    """Has the end of the program wait for the thread in which Grain unlinks shared memory, whose work would be lost."""

    def wait() -> None:
        until = time.monotonic() + UNLINK_SECONDS
        with contextlib.suppress(OSError):  # no /proc: not Linux
            while "/dev/shm/psm_" in pathlib.Path("/proc/self/maps").read_text() and time.monotonic() < until:
                time.sleep(0.002)

    atexit.register(wait)


def leave_signals_to_the_main_thread() -> None:
    """Processes that are started from this thread inherit it: a signal to all of a program's processes is for the
    program, which still needs its data to stop in good order."""
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # which, the first time, lets signals through again
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
