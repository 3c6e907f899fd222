"""Devices to a mesh with named axes, and where each array lives on it."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped

from patchnets.errors import UserError
from patchnets.parameter_rules import Rules, match_rules, name_of

BATCH_AXES = ("data", "fsdp")  # the mesh axes over which a batch is split
SPLIT = "fsdp"  # the one over which parameters are split too


def make_mesh(
    config: ml_collections.ConfigDict, batch_sizes: tuple[int, ...] = (), devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh that `config.mesh` describes, over the first devices that it asks for, of all or of those given.

    Raises:
      UserError: there are not that many devices, or a batch cannot be split evenly over them.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    size = math.prod(shape)
    if size < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"config.mesh asks for {size} of {len(devices)} devices, and every process of a run takes part with all of "
            "its own; use them all, or start fewer processes"
        )
    for batch_size in batch_sizes:
        if batch_size % size:
            below, over = batch_size // size * size, -(-batch_size // size) * size
            use = f"{below} or {over}" if below else str(over)
            raise UserError(
                f"a batch of {batch_size} cannot be split evenly over {size} devices; use {use}, or another "
                "config.mesh.data"
            )
    return mesh_of(devices[:size], shape)


def mesh_shape(config: ml_collections.ConfigDict, devices: int) -> tuple[int, int]:
    """(data, fsdp) of `config.mesh` on so many devices. Raises UserError where there are too few, or too few for -1."""
    data, fsdp = config.data, config.get("fsdp", 1)
    if data == fsdp == -1:
        raise UserError("config.mesh.data=-1 and config.mesh.fsdp=-1 both take the rest of the devices; give one")
    for name, given, other in (("data", data, fsdp), ("fsdp", fsdp, data)):
        if given == -1 and devices % other:
            another = "fsdp" if name == "data" else "data"
            raise UserError(
                f"config.mesh.{another}={other} does not divide the {devices} devices, of which config.mesh.{name}=-1 "
                "takes the rest; choose one that does"
            )
    data, fsdp = (devices // fsdp, fsdp) if data == -1 else (data, devices // data if fsdp == -1 else fsdp)
    if data * fsdp > devices:
        asked = f"config.mesh.data={data}" + (f" times config.mesh.fsdp={fsdp}" if fsdp > 1 else "")
        raise UserError(f"{asked}, and there are {devices} devices; give at most that, or -1 for all")
    return data, fsdp


def mesh_of(devices: Sequence[jax.Device], shape: tuple[int, int]) -> Mesh:
    """Neighbours in the last axis, over which parameters are gathered, lie near each other where it matters."""
    placed = np.array(devices).reshape(shape)
    if devices[0].platform == "tpu":
        # Some shapes, and some of the chips in place of all, JAX cannot place; they work in any order.
        with contextlib.suppress(AssertionError, NotImplementedError, ValueError):
            placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, BATCH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def state_sharding(state: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """Where each array of a state lives: split over fsdp along its largest dimension that divides, of several the last,
    or along that which `rules` give for a parameter of its name; whole on every device where none divides.

    What an optimizer and a running mean keep for a parameter lies as the parameter does. The axis of blocks that are
    stacked for `model.scan` is never split, for a device needs one block at a time.

    Args:
      state: TrainState, of arrays or shapes.
      rules: ((regex, number of the dimension, from 0, or -1 for none), ...), for names of parameters.

    Returns:
      A tree like `state` of NamedSharding.

    Raises:
      UserError: fsdp splits no parameter, or the rules do not fit the parameters.
    """
    size = mesh.shape[SPLIT]
    if size == 1:
        return jax.tree.map(lambda _: replicated(mesh), state)
    shapes = {name_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}
    dimensions = split_dimensions(state.params, mesh, rules)

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        parts = name_of(path).split("/")
        endings = ("/".join(parts[i:]) for i in range(len(parts)))
        name = next((name for name in endings if shapes.get(name) == leaf.shape), None)
        dimension = _largest(name_of(path), leaf.shape, size) if name is None else dimensions[name]
        spec = PartitionSpec() if dimension is None else PartitionSpec(*[None] * dimension, SPLIT)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, state)


def split_dimensions(params: Any, mesh: Mesh, rules: Rules = ()) -> dict[str, int | None]:
    """By the name of a parameter, the dimension along which it is split; None for none. Raises as `state_sharding`."""
    size = mesh.shape[SPLIT]
    named = {name_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    found = {name: _largest(name, shape, size) for name, shape in named.items()}
    told = match_rules(rules, params, "mesh.fsdp_rules", kind=int, otherwise=None) if rules else {}
    for path, dimension in jax.tree_util.tree_leaves_with_path(told, is_leaf=lambda leaf: leaf is None):
        name = name_of(path)
        if dimension is None:
            continue
        if dimension >= len(named[name]) or (dimension >= 0 and named[name][dimension] % size):
            raise UserError(
                f"config.mesh.fsdp_rules: dimension {dimension} of {name}, of shape {named[name]}, cannot be split "
                f"over {size} devices; choose one that divides, or -1 for none"
            )
        found[name] = None if dimension < 0 else dimension
    if size > 1 and all(dimension is None for dimension in found.values()):
        raise UserError(
            f"config.mesh.fsdp={size}: no parameter is split, for none has a dimension that divides by {size} and "
            "rules leave it; choose another number, or use config.mesh.data"
        )
    return found


def _largest(name: str, shape: tuple[int, ...], size: int) -> int | None:
    """The largest dimension that divides by `size`, of equals the last; None for none."""
    first = 1 if re.search(r"Blocks(/|$)", name) else 0
    able = [(length, i) for i, length in enumerate(shape) if i >= first and length and length % size == 0]
    return max(able)[1] if able else None


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


@contextlib.contextmanager
def layers_split_by_examples(mesh: Mesh | None, examples: int) -> Iterator[None]:
    """Networks traced inside keep what every layer gives split by examples, where parameters are split too.

    Left to itself, XLA may take a split kernel as a reason to split what it gives by channels, and hold the examples of
    all devices on each: for ViT-B/16 with scanned blocks on eight chips more than twice the memory (docs/scaling.md).
    """
    if mesh is None or mesh.shape[SPLIT] == 1:
        yield
        return

    def keep(method: Callable[..., Any], args: Any, kwargs: Any, _: Any) -> Any:
        given = method(*args, **kwargs)
        return shard_batch(given, mesh) if getattr(given, "shape", ())[:1] == (examples,) else given

    with nn.intercept_methods(keep):
        yield


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
