"""Devices to a mesh with named axes, and where each array lives on it."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped

from patchnets.errors import UserError
from patchnets.parallel.mesh import BATCH_AXES, FSDP_AXIS
from patchnets.param_rules import Rules, match_rules, name_of


def infer_state_sharding(state: Any, mesh: Mesh, rules: Rules = ()) -> Any:
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
    size = mesh.shape[FSDP_AXIS]
    if size == 1:
        return jax.tree.map(lambda _: replicated(mesh), state)
    shapes = {name_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}
    dimensions = fsdp_dimensions(state.params, mesh, rules)

    def sharding_of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        parts = name_of(path).split("/")
        endings = ("/".join(parts[i:]) for i in range(len(parts)))
        name = next((name for name in endings if shapes.get(name) == leaf.shape), None)
        dimension = _largest_divisible_dim(name_of(path), leaf.shape, size) if name is None else dimensions[name]
        spec = PartitionSpec() if dimension is None else PartitionSpec(*[None] * dimension, FSDP_AXIS)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding_of, state)


def fsdp_dimensions(params: Any, mesh: Mesh, rules: Rules = ()) -> dict[str, int | None]:
    """By the name of a parameter, the dimension along which it is split; None for none. Raises as
    `infer_state_sharding`."""
    size = mesh.shape[FSDP_AXIS]
    named = {name_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    dimensions = {name: _largest_divisible_dim(name, shape, size) for name, shape in named.items()}
    ruled = match_rules(rules, params, "mesh.fsdp_rules", kind=int, otherwise=None) if rules else {}
    for path, dimension in jax.tree_util.tree_leaves_with_path(ruled, is_leaf=lambda leaf: leaf is None):
        name = name_of(path)
        if dimension is None:
            continue
        if dimension >= len(named[name]) or (dimension >= 0 and named[name][dimension] % size):
            raise UserError(
                f"config.mesh.fsdp_rules: dimension {dimension} of {name}, of shape {named[name]}, cannot be split "
                f"over {size} devices; choose one that divides, or -1 for none"
            )
        dimensions[name] = None if dimension < 0 else dimension
    if size > 1 and all(dimension is None for dimension in dimensions.values()):
        raise UserError(
            f"config.mesh.fsdp={size}: no parameter is split, for none has a dimension that divides by {size} and "
            "rules leave it; choose another number, or use config.mesh.data"
        )
    return dimensions


def _largest_divisible_dim(name: str, shape: tuple[int, ...], size: int) -> int | None:
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


def init_replicated(make: Callable[[], Any], mesh: Mesh) -> Any:
    """What `make` makes, on every device: arrays of the same kind as those a compiled function gives back, so that
    passing them to one again does not compile it anew."""
    return jax.jit(make, out_shardings=replicated(mesh))()


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Splits the leading axis of every array over the mesh, inside a compiled function."""
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))


@contextlib.contextmanager
def constrain_activations_to_batch(mesh: Mesh | None, examples: int) -> Iterator[None]:
    """Networks traced inside keep what every layer gives split by examples, where parameters are split too.

    Left to itself, XLA may take a split kernel as a reason to split what it gives by channels, and hold the examples of
    all devices on each: for ViT-B/16 with scanned blocks on eight chips more than twice the memory (docs/scaling.md).
    """
    if mesh is None or mesh.shape[FSDP_AXIS] == 1:
        yield
        return

    def keep(method: Callable[..., Any], args: Any, kwargs: Any, _: Any) -> Any:
        output = method(*args, **kwargs)
        return shard_batch(output, mesh) if getattr(output, "shape", ())[:1] == (examples,) else output

    with nn.intercept_methods(keep):
        yield


def batch_sharded_loss(loss: Callable[..., Array], mesh: Mesh) -> Callable[..., Array]:
    """`loss` of logits that stay split by examples, where the head's parameters are split by classes."""
    return lambda logits, targets: loss(shard_batch(logits, mesh), targets)


def batch_sharded_grads(grad_fn: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Wraps a grad_fn: activations stay split by examples, as by `constrain_activations_to_batch`."""

    def grads(params: Any, batch_stats: Any, inputs: Any, *args: Any) -> Any:
        with constrain_activations_to_batch(mesh, len(inputs.mask)):
            return grad_fn(params, batch_stats, inputs, *args)

    return grads


def batch_sharded_logits(logits_fn: Callable[..., Array], mesh: Mesh) -> Callable[..., Array]:
    """Wraps a function (variables, images) -> logits: activations and logits stay split by examples."""

    def logits(variables: Any, images: Array) -> Array:
        with constrain_activations_to_batch(mesh, len(images)):
            return shard_batch(logits_fn(variables, images), mesh)

    return logits


def shard_rows(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Splits a host array over the devices by its leading axis, which is filled up with its first entries to divide."""
    size = mesh.size
    length = -(-len(array) // size) * size
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    positions = np.arange(length) % len(array)
    shape = (length, *array.shape[1:])
    return jax.make_array_from_callback(shape, sharding, lambda index: array[positions[index[0] if index else ...]])


def gather_rows(
    array: Shaped[Array, "examples ..."], index: Int[Array, " batch"], mesh: Mesh
) -> Shaped[Array, "batch ..."]:
    """array[index], split over the devices, of an array that is split itself; inside a compiled function.

    Each device looks up what it holds of the batch, and what it found is added to the others' and split over them: one
    exchange of the size of the batch, whatever the size of the array.
    """
    replicated_spec, parts = PartitionSpec(), PartitionSpec(BATCH_AXES)

    def local(held: Array, index: Array) -> Array:
        first = jax.lax.axis_index(BATCH_AXES) * held.shape[0]
        mine = (index >= first) & (index < first + held.shape[0])
        rows = held[jnp.clip(index - first, 0, held.shape[0] - 1)]
        rows = jnp.where(mine.reshape(-1, *(1,) * (rows.ndim - 1)), rows, jnp.zeros_like(rows))
        return jax.lax.psum_scatter(rows, BATCH_AXES, scatter_dimension=0, tiled=True)

    return jax.shard_map(local, mesh=mesh, in_specs=(parts, replicated_spec), out_specs=parts, check_vma=False)(
        array, index
    )


def sum_over_devices(x: Array) -> Array:
    """The sum of what the devices have, in a function that is written for one of them (jax.shard_map); `x` itself in a
    function of whole arrays, where sums are over all devices anyway."""
    try:
        return jax.lax.psum(x, BATCH_AXES)
    except NameError:  # no such axis here
        return x
