"""Devices to a mesh with named axes, and where each array lives on it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped

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


def split(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Splits a host array over the devices by its leading axis, which is filled up with its first entries to divide."""
    size = mesh.size
    length = -(-len(array) // size) * size
    where = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    positions = np.arange(length) % len(array)
    shape = (length, *array.shape[1:])
    return jax.make_array_from_callback(shape, where, lambda index: array[positions[index[0] if index else ...]])


def take_split(
    array: Shaped[Array, "examples ..."], index: Int[Array, " batch"], mesh: Mesh
) -> Shaped[Array, "batch ..."]:
    """array[index], split over the devices, of an array that is split itself; inside a compiled function.

    Each device looks up what it holds of the batch, and what it found is added to the others' and split over them: one
    exchange of the size of the batch, whatever the size of the array.
    """
    whole, parts = PartitionSpec(), PartitionSpec(BATCH_AXES)

    def local(held: Array, index: Array) -> Array:
        first = jax.lax.axis_index(BATCH_AXES) * held.shape[0]
        mine = (index >= first) & (index < first + held.shape[0])
        found = held[jnp.clip(index - first, 0, held.shape[0] - 1)]
        found = jnp.where(mine.reshape(-1, *(1,) * (found.ndim - 1)), found, jnp.zeros_like(found))
        return jax.lax.psum_scatter(found, BATCH_AXES, scatter_dimension=0, tiled=True)

    return jax.shard_map(local, mesh=mesh, in_specs=(parts, whole), out_specs=parts, check_vma=False)(array, index)


def sum_over_devices(x: Array) -> Array:
    """The sum of what the devices have, in a function that is written for one of them (jax.shard_map); `x` itself in a
    function of whole arrays, where sums are over all devices anyway."""
    try:
        return jax.lax.psum(x, BATCH_AXES)
    except NameError:  # no such axis here
        return x
