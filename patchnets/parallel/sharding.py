"""Shardings of train state and batches on the mesh, and functions that move arrays onto it."""

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
    """Return the sharding of each array of a state.

    A parameter is split over `fsdp` along the dimension given by `rules`, or else along its largest divisible dimension
    (the last of equals). If no dimension is divisible, it is replicated. Optimizer state and running means are sharded
    like their parameter. The axis of blocks stacked for `model.scan` is never split, because a device needs one block
    at a time.

    Args:
      state: TrainState of arrays or shapes.
      rules: ((regex, dimension), ...) for parameter names; dimension -1 replicates.

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
        suffixes = ("/".join(parts[i:]) for i in range(len(parts)))
        name = next((name for name in suffixes if shapes.get(name) == leaf.shape), None)
        dimension = _largest_divisible_dim(name_of(path), leaf.shape, size) if name is None else dimensions[name]
        spec = PartitionSpec() if dimension is None else PartitionSpec(*[None] * dimension, FSDP_AXIS)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding_of, state)


def fsdp_dimensions(params: Any, mesh: Mesh, rules: Rules = ()) -> dict[str, int | None]:
    """Return {parameter name: dimension along which it is split, or None}. Raises as `infer_state_sharding`."""
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
                f"over {size} devices; use a divisible dimension, or -1 to replicate it"
            )
        dimensions[name] = None if dimension < 0 else dimension
    if size > 1 and all(dimension is None for dimension in dimensions.values()):
        raise UserError(
            f"config.mesh.fsdp={size} would shard nothing: no parameter has a dimension divisible by {size}"
            f"{' that config.mesh.fsdp_rules may split' if rules else ''}; use another number, or config.mesh.data"
        )
    return dimensions


def _largest_divisible_dim(name: str, shape: tuple[int, ...], size: int) -> int | None:
    """Return the largest dimension divisible by `size`, the last of equals; None if there is none."""
    first = 1 if re.search(r"Blocks(/|$)", name) else 0
    divisible = [(length, i) for i, length in enumerate(shape) if i >= first and length and length % size == 0]
    return max(divisible)[1] if divisible else None


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding with a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Copy a host array to every device of the mesh. Every process passes the same array."""
    return jax.make_array_from_callback(array.shape, replicated(mesh), lambda index: array[index])


def init_replicated(make: Callable[[], Any], mesh: Mesh) -> Any:
    """Return the output of `make`, replicated. It is sharded like the output of a compiled function, so that passing
    either to one does not recompile it."""
    return jax.jit(make, out_shardings=replicated(mesh))()


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Constrain the leading axis of every array to be split over the mesh, inside a compiled function."""
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))


@contextlib.contextmanager
def constrain_activations_to_batch(mesh: Mesh | None, examples: int) -> Iterator[None]:
    """Constrain the outputs of all layers traced inside to be split by examples, if parameters are split over `fsdp`.

    Without constraints, XLA may split the outputs of a split kernel by channels, with the examples of all devices on
    each: more than twice the memory for ViT-B/16 with scanned blocks on eight chips (docs/scaling.md).
    """
    if mesh is None or mesh.shape[FSDP_AXIS] == 1:
        yield
        return

    def constrain(method: Callable[..., Any], args: Any, kwargs: Any, _: Any) -> Any:
        output = method(*args, **kwargs)
        return shard_batch(output, mesh) if getattr(output, "shape", ())[:1] == (examples,) else output

    with nn.intercept_methods(constrain):
        yield


def batch_sharded_loss(loss: Callable[..., Array], mesh: Mesh) -> Callable[..., Array]:
    """Wrap a loss so that its logits stay split by examples if the parameters of the head are split by classes."""
    return lambda logits, targets: loss(shard_batch(logits, mesh), targets)


def batch_sharded_grads(grad_fn: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Wrap a grad_fn so that activations stay split by examples (`constrain_activations_to_batch`)."""

    def grads(params: Any, batch_stats: Any, inputs: Any, *args: Any) -> Any:
        with constrain_activations_to_batch(mesh, len(inputs.mask)):
            return grad_fn(params, batch_stats, inputs, *args)

    return grads


def batch_sharded_logits(logits_fn: Callable[..., Array], mesh: Mesh) -> Callable[..., Array]:
    """Wrap a function (variables, images) -> logits so that activations and logits stay split by examples."""

    def logits(variables: Any, images: Array) -> Array:
        with constrain_activations_to_batch(mesh, len(images)):
            return shard_batch(logits_fn(variables, images), mesh)

    return logits


def shard_rows(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Split a host array over the devices along its leading axis, padded with its first rows to a divisible length."""
    size = mesh.size
    length = -(-len(array) // size) * size
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    positions = np.arange(length) % len(array)
    shape = (length, *array.shape[1:])
    return jax.make_array_from_callback(shape, sharding, lambda index: array[positions[index[0] if index else ...]])


def gather_rows(
    array: Shaped[Array, "examples ..."], index: Int[Array, " batch"], mesh: Mesh
) -> Shaped[Array, "batch ..."]:
    """Return array[index], split over the devices, for an array split by `shard_rows`; inside a compiled function.

    Each device looks up the rows that it holds, with zeros for the others, and a reduce-scatter adds them up: one
    collective of the size of the batch, whatever the size of the array.
    """
    replicated_spec, split = PartitionSpec(), PartitionSpec(BATCH_AXES)

    def device_rows(shard: Array, index: Array) -> Array:
        first = jax.lax.axis_index(BATCH_AXES) * shard.shape[0]
        held = (index >= first) & (index < first + shard.shape[0])
        rows = shard[jnp.clip(index - first, 0, shard.shape[0] - 1)]
        rows = jnp.where(held.reshape(-1, *(1,) * (rows.ndim - 1)), rows, jnp.zeros_like(rows))
        if rows.dtype == jnp.uint16:  # which NCCL does not add up: all but one of them are zeros, so that bytes do
            rows = jax.lax.bitcast_convert_type(rows, jnp.uint8)
        rows = jax.lax.psum_scatter(rows, BATCH_AXES, scatter_dimension=0, tiled=True)
        return rows if rows.dtype == array.dtype else jax.lax.bitcast_convert_type(rows, array.dtype)

    return jax.shard_map(device_rows, mesh=mesh, in_specs=(split, replicated_spec), out_specs=split, check_vma=False)(
        array, index
    )


def sum_over_devices(x: Array) -> Array:
    """Return the sum of `x` over devices inside `jax.shard_map`; outside, return `x`, where sums are global anyway."""
    try:
        return jax.lax.psum(x, BATCH_AXES)
    except NameError:  # not inside shard_map
        return x
