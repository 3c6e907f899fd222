"""The gradient of a loss over a batch: in one piece or in parts, plain or sharpness-aware."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from patchnets.parallel.mesh import BATCH_AXES
from patchnets.step.losses import Targets


class Inputs(NamedTuple):
    """A batch as the network and the loss see it. Masked examples count for nothing."""

    images: Float[Array, "batch height width channels"]
    targets: Targets
    mask: Float[Array, " batch"]


class Aux(NamedTuple):
    """What one forward pass gives beside the gradient."""

    losses: Float[Array, " batch"]
    logits: Float[Array, "batch classes"]
    batch_stats: Any


def compute_grads(
    model: nn.Module,
    loss: Callable[..., Array],
    params: Any,
    batch_stats: Any,
    inputs: Inputs,
    dropout_key: Array,
    count: Float[Array, ""] | None = None,
) -> tuple[Any, Aux]:
    """The gradient by `params` of the losses' sum over `count`, by default the number of examples not masked out."""
    mask = inputs.mask
    shared: dict[str, Any] = {"mask": mask} if batch_stats else {}  # for statistics over the batch
    count = _num_valid(mask) if count is None else count

    def loss_fn(params: Any) -> tuple[Array, Aux]:
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs.images,
            train=True,
            **shared,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        losses = loss(logits, inputs.targets)
        return (losses * mask).sum() / count, Aux(losses, logits, updates.get("batch_stats", {}))

    return jax.grad(loss_fn, has_aux=True)(params)


def accumulate_grads(
    model: nn.Module,
    loss: Callable[..., Array],
    params: Any,
    batch_stats: Any,
    inputs: Inputs,
    dropout_key: Array,
    parts: int,
) -> tuple[Any, Aux]:
    """`compute_grads` of a batch that is worked through in `parts`, one after the other, for the memory of one.

    It is that of the whole batch, where the network treats examples apart. BatchNorm sees each part by itself, and
    dropout draws a mask for each. Part j holds the examples j, j + parts, ...: a share of every device's.
    """
    if parts == 1:
        return compute_grads(model, loss, params, batch_stats, inputs, dropout_key)
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), inputs)
    keys = jax.vmap(lambda part: jax.random.fold_in(dropout_key, part))(jnp.arange(parts))
    grads, aux = scan_microbatches(model, loss, params, batch_stats, split, keys, _num_valid(inputs.mask))
    losses, logits = (jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]) for x in (aux.losses, aux.logits))
    return grads, Aux(losses, logits, aux.batch_stats)


def per_device_microbatch_grads(
    model: nn.Module,
    loss: Callable[..., Array],
    params: Any,
    batch_stats: Any,
    inputs: Inputs,
    dropout_key: Array,
    num_microbatches: int,
    mesh: Mesh,
) -> tuple[Any, Aux]:
    """`compute_grads` of a batch, group after group on each device; a network that looks at all examples at once has
    one group on each.

    What memory is to `accumulate_grads`, a processor's cache is here: groups lie side by side in the batch, so that
    each device holds whole ones, and the devices exchange nothing but the sum of their gradients at the end, and what
    BatchNorm adds up over them. Dropout draws a mask for each group by its place in the batch, which is the same on any
    number of devices.
    """
    count = _num_valid(inputs.mask)
    whole, batch = PartitionSpec(), PartitionSpec(BATCH_AXES)

    def device_grads(params: Any, stats: Any, dropout_key: Array, held: Inputs, count: Array) -> tuple[Any, Aux]:
        here = num_microbatches // mesh.size
        numbers = jax.lax.axis_index(BATCH_AXES) * here + jnp.arange(here)
        split = jax.tree.map(lambda x: x.reshape(here, -1, *x.shape[1:]), held)
        keys = jax.vmap(lambda group: jax.random.fold_in(dropout_key, group))(numbers)
        grads, aux = scan_microbatches(model, loss, params, stats, split, keys, count)
        losses, logits = (x.reshape(-1, *x.shape[2:]) for x in (aux.losses, aux.logits))
        return jax.lax.psum(grads, BATCH_AXES), Aux(losses, logits, aux.batch_stats)

    spread = jax.shard_map(
        device_grads,
        mesh=mesh,
        in_specs=(whole, whole, whole, batch, whole),
        out_specs=(whole, Aux(batch, batch, whole)),  # type: ignore[arg-type]  # places in place of arrays
        check_vma=False,
    )
    return spread(params, batch_stats, dropout_key, inputs, count)


def scan_microbatches(
    model: nn.Module,
    loss: Callable[..., Array],
    params: Any,
    batch_stats: Any,
    parts: Inputs,
    dropout_keys: Array,
    count: Array,
) -> tuple[Any, Aux]:
    """The sum of the parts' gradients; losses and logits with a first axis for the parts."""

    def one(carry: tuple[Any, Any], part: tuple[Inputs, Array]) -> tuple[tuple[Any, Any], tuple[Array, Array]]:
        total, stats = carry
        grads, aux = compute_grads(model, loss, params, stats, *part, count)
        return (jax.tree.map(jnp.add, total, grads), aux.batch_stats), (aux.losses, aux.logits)

    zeros = jax.tree.map(jnp.zeros_like, params)
    (grads, stats), (losses, logits) = jax.lax.scan(one, (zeros, batch_stats), (parts, dropout_keys))
    return grads, Aux(losses, logits, stats)


def sharpness_aware(grad_fn: Callable[[Any], tuple[Any, Aux]], params: Any, radius: float) -> tuple[Any, Aux]:
    """The gradient where, to first order, the loss is highest within `radius` of `params` (SAM, arXiv 2010.01412,
    algorithm 1, by the 2-norm). What was measured is that of the pass at `params` themselves."""
    grads, aux = grad_fn(params)
    scale = radius / jnp.maximum(optax.global_norm(grads), 1e-12)
    grads, _ = grad_fn(jax.tree.map(lambda p, g: p + scale * g, params, grads))
    return grads, aux


def _num_valid(mask: Float[Array, " batch"]) -> Float[Array, ""]:
    """How many count; 1 where none does, as when every record of a batch was unreadable."""
    return jnp.maximum(mask.sum(), 1.0)
