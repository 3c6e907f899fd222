"""Batches of images that are read, decoded and cropped while the steps run, by worker processes, through Grain."""

import atexit
import contextlib
import os
import pathlib
import queue
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from patchnets import sharding
from patchnets.data.chunks import Chunks
from patchnets.data.sources import Records
from patchnets.errors import RunError, UserError
from patchnets.feeds import Batch

AHEAD = 2  # batches that lie ready on the devices
THREADS = 2  # of a worker: one waits for the disk while the other decodes
CLOSE_SECONDS = 30.0  # to wait for workers that wait for a disk
FAR = 2**40  # steps, more than any run has
WORKER = str(pathlib.Path(__file__).with_name("worker.py"))
Unreadable = list[tuple[str, str]]  # names of records, and what is wrong with them
_starting = threading.Lock()


class StreamingFeed:
    """A split that is read from disk, each process its own rows of every batch.

    The batch of any step is a pure function of (seed, step), however many processes and workers share the work. Asking
    for a step that does not follow the one before starts the workers anew there.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Records, int, int]],
        *,
        batch_size: int,
        mesh: Mesh,
        size: int,
        channels: int,
        num_classes: int,
        seed: int | None = None,
        crop_area: float = 1.0,
        crop_aspect: float = 4 / 3,
        keep: float = 1.0,
        workers: int | None = None,
        corrupt: str = "stop",
    ):
        """Starts nothing yet.

        Args:
          parts: (records, first, one past the last) of each part of the split.
          batch_size: examples in a step, over all devices.
          mesh: the devices, over whose batch axes every batch is split.
          size: side of the images in pixels.
          channels: 1 for gray, 3 for RGB.
          num_classes: labels are below it.
          seed: of the order and the crops; None for evaluation: in order, each example once, the centre.
          crop_area, crop_aspect, keep: as in `Chunks`.
          workers: processes; 0 for threads of this one, None for as many processes as there are cores.
          corrupt: "stop" or "skip": what becomes of a record that cannot be read.

        Raises:
          UserError: the split's images are not stored encoded, or its first one has no label.
        """
        self._sharding = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
        self._mesh = mesh
        self._chunks = Chunks(
            parts=tuple(parts),
            size=size,
            channels=channels,
            num_classes=num_classes,
            batch_size=batch_size,
            rows=local_rows(self._sharding, batch_size),
            seed=seed,
            crop_area=crop_area,
            crop_aspect=crop_aspect,
            keep=keep,
            skip=corrupt == "skip",
        )
        self.num_examples, self.batch_size = self._chunks.num_examples, batch_size
        self.steps_per_epoch = self._chunks.steps_per_epoch
        self.workers = cores() if workers is None else workers
        self.skipped = 0
        self._unreadable: set[str] = set()
        self._loader: Loader | None = None
        self._next = 0
        for part in range(len(parts)):
            with contextlib.suppress(RunError):  # whether one image is broken shows when its turn comes
                self._chunks.read(0, sum(high - low for _, low, high in parts[:part]))

    def operands(self, step: int) -> tuple[Batch, int]:
        """The batch of `step`, on the devices; it serves one step.

        Raises:
          RunError: a record cannot be read, and is not to be skipped, or a worker failed.
          UserError: a label is outside the classes.
        """
        if self._loader is None or step != self._next:
            self.close()
            self._start(step)
        assert self._loader is not None
        try:
            batch, unreadable = self._loader.take()
        except BaseException:
            self.close()
            raise
        for name, why in unreadable:
            if name not in self._unreadable:
                print(f"skipped: {why}", file=sys.stderr, flush=True)
                self._unreadable.add(name)
        self.skipped = len(self._unreadable)
        self._next = step + 1
        if self._chunks.seed is None and self._next % self.steps_per_epoch == 0:
            self.close()
        return batch, 1

    def batch(self, operands: Batch, step: Int[Array, ""]) -> Batch:
        """The batch of one step; traced into the compiled step."""
        return sharding.shard_batch(operands, self._mesh)

    def close(self) -> None:
        """Ends the workers; `operands` starts them again."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def _start(self, step: int) -> None:
        steps = self.steps_per_epoch - step % self.steps_per_epoch if self._chunks.seed is None else FAR
        self._loader = Loader(self._chunks, step, steps, self.workers, self._place)
        weakref.finalize(self, self._loader.close).atexit = False

    @property
    def _place(self) -> Callable[[dict[str, np.ndarray]], Batch]:
        where, batch_size = self._sharding, self.batch_size  # and not self, which a loader must not keep alive

        def place(local: dict[str, np.ndarray]) -> Batch:
            return jax.block_until_ready(
                {
                    name: jax.make_array_from_process_local_data(where, array, (batch_size, *array.shape[1:]))
                    for name, array in local.items()
                }
            )

        return place


class Loader:
    """A thread that puts together the batches from a step on, and places them on the devices ahead of their use."""

    def __init__(self, chunks: Chunks, first: int, steps: int, workers: int, place: Callable[[Any], Batch]):
        self._ready: queue.Queue[tuple[Batch, Unreadable] | BaseException] = queue.Queue(AHEAD)
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._work, args=(chunks, first, steps, workers, place), name="patchnets-loader", daemon=True
        )
        # At exit in good order: what is registered later runs earlier, and Grain's import registers its own end.
        import grain  # noqa: F401

        atexit.register(self.close)
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
        self._closing.set()
        if threading.current_thread() is not self._thread:  # which collects garbage too
            self._thread.join(CLOSE_SECONDS)
        atexit.unregister(self.close)

    def _offer(self, item: tuple[Batch, Unreadable] | BaseException) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return

    def _work(self, chunks: Chunks, first: int, steps: int, workers: int, place: Callable[[Any], Batch]) -> None:
        if workers:
            leave_signals_to_the_main_thread()
        numbers = range(first * chunks.per_step, (first + steps) * chunks.per_step)
        try:
            with contextlib.closing(read(chunks, numbers, workers)) as made:
                while not self._closing.is_set() and (some := self._gather(chunks, made)):
                    arrays = {
                        name: np.concatenate([chunk[name] for chunk in some]) for name in ("image", "label", "mask")
                    }
                    unreadable = [pair for chunk in some for pair in chunk["unreadable"]]
                    del some  # the workers' memory
                    self._offer((place(arrays), unreadable))
        except BaseException as error:
            self._offer(error)

    def _gather(self, chunks: Chunks, made: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        """The chunks of the next step; none after the last, or when closing."""
        some = []
        for chunk in made:
            if "error" in chunk:
                raise chunk["error"]
            some.append(chunk)
            if self._closing.is_set():
                return []
            if len(some) == chunks.per_step:
                break
        return some


def _failure(error: BaseException) -> RunError:
    """What Grain tells of a worker, with the likely cause where the system ended it."""
    reason = str(error).partition("\n")[0] or type(error).__name__  # further lines are Grain's advice
    hints = {
        "exit code -7": "; shared memory is full: give /dev/shm more, or set fewer config.dataset.workers",
        "exit code -9": "; memory may be short: set fewer config.dataset.workers",
    }
    hint = next((hint for sign, hint in hints.items() if sign in reason), "")
    return RunError(f"reading images failed ({reason}){hint}")


def read(chunks: Chunks, numbers: range, workers: int) -> Generator[dict[str, Any], None, None]:
    """The chunks of these numbers, in order, made by worker processes, or, where there are 0, by threads."""
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, which have their defaults here
        flags.FLAGS.mark_as_parsed()
    workers = min(workers, len(numbers))
    threads = THREADS if workers else cores()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    data = grain.MapDataset.range(numbers.start, numbers.stop).map(chunks).to_iter_dataset(options)
    if workers:
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1))
    made = iter(data)
    try:
        with worker_main() if workers else contextlib.nullcontext():
            started = [next(made) for _ in range(workers)]  # one of each, so that all have started
        while started:
            yield started.pop(0)
        yield from made
    finally:
        made.close()


def leave_signals_to_the_main_thread() -> None:
    """Processes that are started from this thread inherit it: a signal to all of a program's processes is for the
    program, which still needs its data to stop in good order."""
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # which, the first time, lets signals through again
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


@contextlib.contextmanager
def worker_main() -> Iterator[None]:
    """Processes that are started meanwhile run `worker.py` in place of the program's own main module.

    Python's spawn takes the main module's name or path from these attributes. If ever it does not, workers start more
    slowly, and all else is the same.
    """
    main = sys.modules["__main__"]
    with _starting:
        kept = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
        main.__spec__, main.__file__ = None, WORKER
        try:
            yield
        finally:
            del main.__file__
            for name, value in kept.items():
                setattr(main, name, value)


def local_rows(where: NamedSharding, batch_size: int) -> np.ndarray:
    """The places in a batch that the devices of this process hold, in ascending order."""
    slices = where.addressable_devices_indices_map((batch_size,)).values()
    spans = sorted({index[0].indices(batch_size)[:2] for index in slices if index})
    return np.concatenate([np.arange(low, high, dtype=np.int32) for low, high in spans])


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
