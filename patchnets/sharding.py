"""Devices to a mesh with named axes, and where each array lives on it."""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from patchnets.errors import UserError

BATCH_AXES = ("data",)  # the mesh axes over which a batch is split


def make_mesh(config: ml_collections.ConfigDict, batch_sizes: tuple[int, ...] = ()) -> Mesh:
    """The mesh that `config.mesh` describes, over the first devices that it asks for.

    Raises:
      UserError: there are not that many devices, or a batch cannot be split evenly over them.
    """
    devices = jax.devices()
    size = len(devices) if config.data == -1 else config.data
    if size > len(devices):
        raise UserError(
            f"config.mesh.data={size}, and there are {len(devices)} devices; give at most that, or -1 for all"
        )
    for batch_size in batch_sizes:
        if batch_size % size:
            below, over = batch_size // size * size, -(-batch_size // size) * size
            use = f"{below} or {over}" if below else str(over)
            raise UserError(
                f"a batch of {batch_size} cannot be split evenly over {size} devices; use {use}, or another "
                "config.mesh.data"
            )
    return Mesh(np.array(devices[:size]), BATCH_AXES, axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Copies a host array to every device of the mesh; in a run of several processes each brings its own copy."""
    return jax.make_array_from_callback(array.shape, replicated(mesh), lambda index: array[index])


def on_mesh(make: Callable[[], Any], mesh: Mesh) -> Any:
    """What `make` makes, on every device: arrays of the same kind as those a compiled function gives back, so that
    passing them to one again does not compile it anew."""
    return jax.jit(make, out_shardings=replicated(mesh))()


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Splits the leading axis of every array over the mesh, inside a compiled function."""
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))
