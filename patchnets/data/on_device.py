"""Batches from images on the devices, gathered inside the compiled step."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, Int32, UInt

from patchnets.data.loader import Batch
from patchnets.data.order import epoch_order
from patchnets.parallel import sharding


class EpochArrays(NamedTuple):
    """Inputs of the compiled step, from which it makes the batches of one epoch."""

    images: UInt[Array, "examples height width channels"]
    labels: Int32[Array, " examples"]
    order: Int32[Array, " examples"]
    valid: Float32[Array, " examples"] | None = None  # 0 for examples that could not be read; None: all could


class OnDeviceLoader:
    """Loader of a split on the devices. The batch of any step is a pure function of (seed, step).

    Every epoch visits each example once. Its last batch is padded with examples of mask 0.

    Attributes:
      unreadable: names of the examples that could not be read, which have mask 0.
    """

    def __init__(
        self,
        images: UInt[np.ndarray, "examples height width channels"],
        labels: Int32[np.ndarray, " examples"],
        *,
        batch_size: int,
        mesh: Mesh,
        shuffle_seed: int | None = None,
        sharded: bool = False,
        unreadable: Mapping[int, str] | None = None,
    ):
        """Place the arrays on the devices; a `shuffle_seed` of None keeps the order, for evaluation. `unreadable` maps
        positions to names.

        Every device holds all images, or with `sharded` an equal share of them. That takes less memory, but every step
        sends each device the images of its part of the batch.
        """
        self.num_examples, self.batch_size, self.shuffle_seed = len(labels), batch_size, shuffle_seed
        self.steps_per_epoch = -(-self.num_examples // batch_size)
        self.sharded = sharded and mesh.size > 1
        self._mesh = mesh
        put = sharding.shard_rows if self.sharded else sharding.replicate
        self._images = put(np.ascontiguousarray(images), mesh)
        self._labels = sharding.replicate(np.ascontiguousarray(labels, np.int32), mesh)
        self._order: tuple[int, Array] | None = None
        self.unreadable = frozenset((unreadable or {}).values())
        self._valid: Array | None = None
        if unreadable:
            valid = np.ones(self.num_examples, np.float32)
            valid[list(unreadable)] = 0.0
            self._valid = sharding.replicate(valid, mesh)

    def step_inputs(self, step: int) -> tuple[EpochArrays, int]:
        """Return `(inputs, n)`: device arrays from which `batch` can build steps `step` to `step + n - 1`."""
        epoch, done = divmod(step, self.steps_per_epoch)
        if self.shuffle_seed is None:
            epoch = 0
        if self._order is None or self._order[0] != epoch:
            if self.shuffle_seed is None:
                order = np.arange(self.num_examples, dtype=np.int32)
            else:
                order = epoch_order(self.shuffle_seed, epoch, self.num_examples)
            self._order = epoch, sharding.replicate(order, self._mesh)
        arrays = EpochArrays(self._images, self._labels, self._order[1], self._valid)
        return arrays, self.steps_per_epoch - done

    def batch(self, inputs: EpochArrays, step: Int[Array, ""]) -> Batch:
        """Gather the batch of one step, sharded over the mesh; traced into the compiled step."""
        return gather_batch(inputs, step, self.batch_size, self._mesh, self.sharded)

    def close(self) -> None:
        """Do nothing: there is no background work."""


def gather_batch(inputs: EpochArrays, step: Int[Array, ""], batch_size: int, mesh: Mesh, sharded: bool) -> Batch:
    """Gather the batch of one step, sharded over the mesh, from images replicated on all devices or `sharded`."""
    examples = inputs.labels.shape[0]
    start = (step % -(-examples // batch_size)) * batch_size
    position = start + jnp.arange(batch_size, dtype=jnp.int32)
    index = inputs.order[position % examples]
    mask: Float[Array, " batch"] = (position < examples).astype(jnp.float32)
    mask = mask if inputs.valid is None else mask * inputs.valid[index]
    take = sharding.gather_rows if sharded else lambda images, index, mesh: images[index]
    batch = {"image": take(inputs.images, index, mesh), "label": inputs.labels[index], "mask": mask}
    return sharding.shard_batch(batch, mesh)
