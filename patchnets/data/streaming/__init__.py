"""Loader that reads, decodes and crops images during training; each process loads its own rows of a batch."""

import contextlib
import sys
import weakref
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from patchnets import runtime
from patchnets.data.loader import MAX_CONSECUTIVE_FAILURES, Batch, too_many_unreadable
from patchnets.data.sources.base import Records
from patchnets.data.streaming.batch_reader import BatchReader
from patchnets.data.streaming.prefetch import ENDLESS, Prefetcher, Unreadable
from patchnets.errors import RunError
from patchnets.parallel import mesh as mesh_lib
from patchnets.parallel import sharding
from patchnets.runtime.format import printable


class StreamingLoader:
    """Loader of a split that is read from disk. Each process loads its own rows of every batch.

    The batch of any step is a pure function of (seed, step), whatever the number of processes and workers. If a step
    does not follow the previous one, `step_inputs` restarts them there.
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
        crop_scale_min: float = 1.0,
        crop_ratio_max: float = 4 / 3,
        crop_pct: float = 1.0,
        num_workers: int | None = None,
        on_corrupt: str = "stop",
    ):
        """Set up the loader; workers start at the first `step_inputs`.

        Args:
          parts: (records, first, one past the last) of each part of the split.
          batch_size: examples in a step, over all devices.
          mesh: the devices; every batch is split over its batch axes.
          size: side of the images in pixels.
          channels: 1 for gray, 3 for RGB.
          num_classes: labels must be below it.
          seed: for the order and the crops; None for evaluation: each example once, in order, center crop.
          crop_scale_min, crop_ratio_max, crop_pct: as in `BatchReader`.
          num_workers: processes; 0 for threads of this one, None for one process per core.
          on_corrupt: "stop" or "skip", for a record that cannot be read.

        Raises:
          UserError: the split's images are not stored encoded, or its first one has no label.
        """
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh_lib.BATCH_AXES))
        self._mesh = mesh
        self._reader = BatchReader(
            parts=tuple(parts),
            size=size,
            channels=channels,
            num_classes=num_classes,
            batch_size=batch_size,
            rows=local_rows(self._sharding, batch_size),
            seed=seed,
            crop_scale_min=crop_scale_min,
            crop_ratio_max=crop_ratio_max,
            crop_pct=crop_pct,
            skip=on_corrupt == "skip",
        )
        self.num_examples, self.batch_size = self._reader.num_examples, batch_size
        self.steps_per_epoch = self._reader.steps_per_epoch
        self.num_workers = runtime.cores() if num_workers is None else num_workers
        self.unreadable: set[str] = set()  # names of records that were skipped
        self._in_a_row: dict[str, str] = {}  # name and error of each since the last that could be read
        self._prefetcher: Prefetcher | None = None
        self._next = 0
        for part in range(len(parts)):
            with contextlib.suppress(RunError):  # a broken image is an error only in its own step
                self._reader.read(0, sum(high - low for _, low, high in parts[:part]))

    def step_inputs(self, step: int) -> tuple[Batch, int]:
        """Return `(inputs, n)`: device arrays from which `batch` can build steps `step` to `step + n - 1` (n is 1).

        Raises:
          RunError: a record cannot be read and on_corrupt is "stop", too many in a row cannot, or a worker failed.
          UserError: a label is outside the classes.
        """
        if self._prefetcher is None or step != self._next:
            self.close()
            self._start(step)
        assert self._prefetcher is not None
        try:
            batch, unreadable = self._prefetcher.take()
            self._skip(unreadable)
        except BaseException:
            self.close()
            raise
        self._next = step + 1
        if self._reader.seed is None and self._next % self.steps_per_epoch == 0:
            self.close()
        return batch, 1

    def batch(self, inputs: Batch, step: Int[Array, ""]) -> Batch:
        """Return the batch of one step, sharded over the mesh; traced into the compiled step."""
        return sharding.shard_batch(inputs, self._mesh)

    def close(self) -> None:
        """Stop the workers; `step_inputs` restarts them."""
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._forgotten.detach()
            self._prefetcher = None

    def _skip(self, unreadable: Unreadable) -> None:
        """Report each skipped record once. Raise RunError for too many since the last that could be read."""
        row = 0
        for position, name, why in unreadable:
            if position != row:
                self._in_a_row.clear()
            self._in_a_row[name] = why
            if name not in self.unreadable:
                print(f"skipped: {printable(why)}", file=sys.stderr, flush=True)
                self.unreadable.add(name)
            if (count := len(self._in_a_row)) >= min(MAX_CONSECUTIVE_FAILURES, self.num_examples):
                first = next(iter(self._in_a_row.values()))
                raise too_many_unreadable(count, first)
            row = position + 1
        if row < len(self._reader.rows):
            self._in_a_row.clear()

    def _start(self, step: int) -> None:
        steps = self.steps_per_epoch - step % self.steps_per_epoch if self._reader.seed is None else ENDLESS
        self._prefetcher = Prefetcher(self._reader, step, steps, self.num_workers, self._put)
        self._forgotten = weakref.finalize(self, self._prefetcher.close)
        self._forgotten.atexit = False

    @property
    def _put(self) -> Callable[[dict[str, np.ndarray]], Batch]:
        batch_sharding, batch_size = self._sharding, self.batch_size  # not self, which the thread would keep alive

        def put(local: dict[str, np.ndarray]) -> Batch:
            return jax.block_until_ready(
                {
                    name: jax.make_array_from_process_local_data(batch_sharding, array, (batch_size, *array.shape[1:]))
                    for name, array in local.items()
                }
            )

        return put


def local_rows(batch_sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Return the rows of a batch that the devices of this process hold, in ascending order."""
    slices = batch_sharding.addressable_devices_indices_map((batch_size,)).values()
    spans = sorted({index[0].indices(batch_size)[:2] for index in slices if index})
    return np.concatenate([np.arange(low, high, dtype=np.int32) for low, high in spans])
