"""Properties of the data that an estimate needs: number and size of the examples, and the loader."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from patchnets import data as data_lib
from patchnets import runtime
from patchnets.augment.preprocess import Preprocess, normalization
from patchnets.data import DataOptions, splits
from patchnets.data.bit_depth import dtype_of
from patchnets.data.loader_choice import choose_loader
from patchnets.data.on_device import EpochArrays, gather_batch
from patchnets.data.streaming.batch_reader import CHUNK_SIZE
from patchnets.data.streaming.prefetch import PREFETCH_BATCHES, THREADS_PER_WORKER
from patchnets.errors import UserError
from patchnets.parallel import mesh as mesh_lib
from patchnets.parallel import sharding
from patchnets.step.multi_step import BatchFn

# Data sets whose sizes are known without the data: (examples of each split, classes).
KNOWN: dict[str, tuple[Mapping[str, int], int]] = {"imagenet2012": ({"train": 1_281_167, "validation": 50_000}, 1000)}


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A data set without the contents of its images.

    Attributes:
      options: how it is loaded.
      counts: examples of train, and of val and test if known.
      has_val: whether there is a validation split.
      stored: images of the source's splits in use, all of which are kept on the host.
      side: side in pixels of the images that the step gets.
      source: origin of these numbers, as printed.
      level_bits: of the stored images, 8 or 16.
      class_names: None if the data are not on this machine.
    """

    options: DataOptions
    name: str
    counts: Mapping[str, int]
    has_val: bool
    stored: int
    num_classes: int
    channels: int
    side: int
    loader: str  # on_device or streaming
    source: str
    level_bits: int = 8
    class_names: tuple[str, ...] | None = None

    @property
    def image_bytes(self) -> int:
        return self.side**2 * self.channels * self.level_bits // 8

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.counts["train"] // self.options.batch_size)

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of the run; `unit` stands in for normalization fitted to the data set."""
        options, on_device = self.options, self.loader == "on_device"
        name = "unit" if options.normalize == "dataset" else options.normalize
        mean, std = normalization(name, np.empty((0, 1, 1, self.channels), np.uint8))
        return Preprocess(options.image_size, mean, std, options.augment, options.crop_pct, cropped=not on_device)

    def step_inputs(self, mesh: Mesh) -> Any:
        """Return shape, type and sharding of what a loader's `step_inputs` returns."""
        replicated, parts = sharding.replicated(mesh), NamedSharding(mesh, PartitionSpec(mesh_lib.BATCH_AXES))
        levels = dtype_of(self.level_bits)
        if self.loader == "streaming":
            of = lambda kind, *shape: jax.ShapeDtypeStruct((self.options.batch_size, *shape), kind, sharding=parts)
            image = of(levels, self.side, self.side, self.channels)
            return {"image": image, "label": of(jnp.int32), "mask": of(jnp.float32)}
        count, sharded = self.counts["train"], self._sharded(mesh)
        padded = -(-count // mesh.size) * mesh.size if sharded else count
        shape = (padded, self.side, self.side, self.channels)
        numbers: Any = jax.ShapeDtypeStruct((count,), jnp.int32, sharding=replicated)
        images: Any = jax.ShapeDtypeStruct(shape, levels, sharding=parts if sharded else replicated)
        return EpochArrays(images, numbers, numbers)

    def batch_fn(self, mesh: Mesh) -> BatchFn:
        """Return the function that makes a batch of the step inputs, as the loader's `batch` does."""
        if self.loader == "streaming":
            return lambda inputs, step: sharding.shard_batch(inputs, mesh)
        sharded = self._sharded(mesh)
        return lambda inputs, step: gather_batch(inputs, step, self.options.batch_size, mesh, sharded)

    def _sharded(self, mesh: Mesh) -> bool:
        return self.options.on_device_sharding == "sharded" and mesh.size > 1

    def host_bytes(self) -> tuple[int, str]:
        """Return the most host memory that input takes in one process, and a description of its contents.

        On device: all images, decoded. Streaming: the chunks of each worker (in progress, finished, handed over and
        taken) and the batches being assembled or ready, of training and validation at once.
        """
        if self.loader == "on_device":
            return self.stored * self.image_bytes, f"{self.stored:,} decoded images"
        workers = runtime.cores() if self.options.num_workers is None else self.options.num_workers
        chunks = max(workers, 1) * (THREADS_PER_WORKER + 2) * CHUNK_SIZE
        loaders = 2 if self.has_val else 1
        images = loaders * (chunks + (PREFETCH_BATCHES + 2) * self.options.batch_size)
        return images * self.image_bytes, f"{workers} workers, {images:,} images in flight"


def find_dataset_spec(
    options: DataOptions,
    devices: int,
    count: int | None = None,
    classes: int | None = None,
    instead: str = "--examples=N (training images) and --classes=K",
) -> DatasetSpec:
    """Return the data set of `options`: from the command line, from disk, or from published sizes. Download nothing.

    Args:
      count, classes: training examples and classes, if given on the command line.
      instead: the arguments that give them, for an error.

    Raises:
      UserError: the data are not on this machine and their sizes not known, or cannot be used as configured.
    """
    name = options.name
    if count is not None and classes is not None:
        return _assumed(options, devices, {"train": count}, count, classes, "as given on the command line")
    if _on_disk(options):
        return _opened(options, devices)
    if name in KNOWN:
        sizes, known = KNOWN[name]
        specs = options.choose_splits(sizes)
        parts = {role: splits.parse_split(spec, sizes) for role, spec in specs.items() if spec}
        counts = {role: splits.examples(slices) for role, slices in parts.items()}
        source = "as published; the data are not on this machine"
        return _assumed(options, devices, counts, sum(sizes.values()), known, source)
    raise UserError(
        f"config.dataset.name={name!r} is not on this machine, and nothing is downloaded to look; give {instead}"
    )


def _on_disk(options: DataOptions) -> bool:
    if options.name in ("digits", "folder"):
        return True
    from patchnets.data.sources import tfds

    return tfds.is_prepared(options.name, options.data_dir)


def _opened(options: DataOptions, devices: int) -> DatasetSpec:
    opened = data_lib.open_dataset(options, devices)
    source, on_device = opened.source, opened.loader == "on_device"
    first = next(iter(opened.parts["train"]))[0]
    return DatasetSpec(
        opened.options,
        source.name,
        {role: splits.examples(slices) for role, slices in opened.parts.items()},
        "val" in opened.parts,
        sum(source.sizes[name] for name in data_lib.split_names(opened.parts)),
        len(source.class_names),
        source.channels,
        data_lib.stored_side(source, first, options.stored_size) if on_device else options.image_size,
        opened.loader,
        "read from disk",
        level_bits=opened.level_bits,
        class_names=source.class_names,
    )


def _assumed(
    options: DataOptions, devices: int, counts: Mapping[str, int], stored: int, classes: int, source: str
) -> DatasetSpec:
    """Return a data set that is not on this machine: encoded RGB images, at least as large as they are stored."""
    largest = options.stored_size
    fits = stored * largest**2 * 3 <= options.allowed_bytes(devices)
    loader = choose_loader(options, encoded=True, native=None, fits=fits)
    side = largest if loader == "on_device" else options.image_size
    has_val = options.val_split != "none"
    return DatasetSpec(options, options.name, counts, has_val, stored, classes, 3, side, loader, source)
