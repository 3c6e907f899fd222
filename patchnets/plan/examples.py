"""What planning needs to know of the data: how many examples, of which size, and in which way they are fed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from patchnets import data as data_lib
from patchnets import host, sharding
from patchnets.data import splits
from patchnets.data.chunks import CHUNK
from patchnets.data.loader import AHEAD, THREADS
from patchnets.data.preprocess import Augment, Preprocess, normalisation
from patchnets.data.resident import Operands, take_batch
from patchnets.errors import UserError
from patchnets.steps import BatchOf

# Data sets whose sizes are known without the data: (examples of each split, classes).
KNOWN: dict[str, tuple[Mapping[str, int], int]] = {"imagenet2012": ({"train": 1_281_167, "validation": 50_000}, 1000)}


@dataclasses.dataclass(frozen=True)
class Examples:
    """A data set, as far as its images' contents do not matter.

    Attributes:
      counts: of train, and of val and test where they are known.
      validates: whether there is a validation split.
      stored: images of the splits that these are taken from, which is what is kept on the host.
      side: of stored images in pixels, as the step gets them.
      source: where the numbers come from, in words.
    """

    name: str
    counts: Mapping[str, int]
    validates: bool
    stored: int
    classes: int
    channels: int
    side: int
    feed: str  # resident or streaming
    source: str

    @property
    def image_bytes(self) -> int:
        return self.side**2 * self.channels

    def per_epoch(self, batch_size: int) -> int:
        """Steps."""
        return -(-self.counts["train"] // batch_size)

    def preprocess(self, config: ml_collections.ConfigDict) -> Preprocess:
        """That of a run; where it would fit means and deviations to the images, some stand in for them."""
        name = "unit" if config.normalize == "dataset" else config.normalize
        mean, std = normalisation(name, np.empty((0, 1, 1, self.channels), np.uint8))
        augment, resident = Augment(**config.augment.to_dict()), self.feed == "resident"
        return Preprocess(config.image_size, mean, std, augment, config.eval_crop, cropped=not resident)

    def operands(self, config: ml_collections.ConfigDict, mesh: Mesh) -> Any:
        """Shape, type and place of what the step takes to make its batches: what a feed's `operands` gives."""
        whole, parts = sharding.replicated(mesh), NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
        if self.feed == "streaming":
            of = lambda kind, *shape: jax.ShapeDtypeStruct((config.batch_size, *shape), kind, sharding=parts)
            image = of(jnp.uint8, self.side, self.side, self.channels)
            return {"image": image, "label": of(jnp.int32), "mask": of(jnp.float32)}
        count, sharded = self.counts["train"], self._sharded(config, mesh)
        held = -(-count // mesh.size) * mesh.size if sharded else count
        shape = (held, self.side, self.side, self.channels)
        numbers: Any = jax.ShapeDtypeStruct((count,), jnp.int32, sharding=whole)
        images: Any = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=parts if sharded else whole)
        return Operands(images, numbers, numbers)

    def batch_of(self, config: ml_collections.ConfigDict, mesh: Mesh) -> BatchOf:
        """What makes a step's batch of these operands, as the feeds do it."""
        if self.feed == "streaming":
            return lambda operands, step: sharding.shard_batch(operands, mesh)
        sharded = self._sharded(config, mesh)
        return lambda operands, step: take_batch(operands, step, config.batch_size, mesh, sharded)

    def _sharded(self, config: ml_collections.ConfigDict, mesh: Mesh) -> bool:
        return config.dataset.placement == "sharded" and mesh.size > 1

    def host_bytes(self, config: ml_collections.ConfigDict) -> tuple[int, str]:
        """The host's memory that input takes at most in one process, and of what it consists.

        Resident: all images, decoded. Streaming: what each worker holds of chunks that are being made, made, handed
        over and taken; and batches that are put together or lie ready, of training and of validation at once.
        """
        if self.feed == "resident":
            return self.stored * self.image_bytes, f"{self.stored:,} decoded images"
        workers = host.cores() if config.dataset.workers is None else config.dataset.workers
        chunks = max(workers, 1) * (THREADS + 2) * CHUNK
        loaders = 2 if self.validates else 1
        images = loaders * (chunks + (AHEAD + 2) * config.batch_size)
        return images * self.image_bytes, f"{workers} workers, {images:,} images in flight"


def find_examples(
    config: ml_collections.ConfigDict, devices: int, count: int | None = None, classes: int | None = None
) -> Examples:
    """The data set of `config`: as it was told, as it lies here, or as it is known. Nothing is downloaded.

    Args:
      count, classes: training examples and classes, where they are told.

    Raises:
      UserError: the data are not at hand and neither told nor known, or cannot be used as configured.
    """
    name = config.dataset.name
    if count is not None and classes is not None:
        return _assumed(config, devices, {"train": count}, count, classes, "as given on the command line")
    if _at_hand(config):
        return _opened(config, devices)
    if name in KNOWN:
        sizes, known = KNOWN[name]
        specs = data_lib.choose_splits(config.dataset, sizes)
        parts = {role: splits.parse(spec, sizes) for role, spec in specs.items() if spec}
        counts = {role: splits.examples(some) for role, some in parts.items()}
        return _assumed(config, devices, counts, sum(sizes.values()), known, "as published; the data are not at hand")
    raise UserError(
        f"config.dataset.name={name!r} is not at hand, and planning downloads nothing; give --examples=N, its training "
        "images, and --classes=K"
    )


def _at_hand(config: ml_collections.ConfigDict) -> bool:
    if config.dataset.name in ("digits", "folder"):
        return True
    from patchnets.data import tfds_source

    return tfds_source.is_prepared(config.dataset.name, config.dataset.data_dir)


def _opened(config: ml_collections.ConfigDict, devices: int) -> Examples:
    opened = data_lib.open_data(config, devices)
    source, resident = opened.source, opened.feed == "resident"
    largest = data_lib.stored_size(config)
    return Examples(
        source.name,
        {role: splits.examples(some) for role, some in opened.parts.items()},
        "val" in opened.parts,
        sum(source.sizes[name] for name in data_lib.names(opened.parts)),
        len(source.class_names),
        source.channels,
        data_lib.side(source, next(iter(opened.parts["train"]))[0], largest) if resident else config.image_size,
        opened.feed,
        "as they lie here",
    )


def _assumed(
    config: ml_collections.ConfigDict, devices: int, counts: Mapping[str, int], stored: int, classes: int, source: str
) -> Examples:
    """A data set that is not here: images of three colours, stored encoded, at least as large as is kept of them."""
    largest, feed = data_lib.stored_size(config), config.dataset.feed
    if feed == "auto":
        fits = stored * largest**2 * 3 <= data_lib.allowed_bytes(config, devices)
        feed = "resident" if fits else "streaming"
    side = largest if feed == "resident" else config.image_size
    validates = config.dataset.val_split != "none"
    return Examples(config.dataset.name, counts, validates, stored, classes, 3, side, feed, source)
