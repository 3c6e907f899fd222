"""Losses with soft targets, and their gradient over a batch: in one piece or in parts, plain or sharpness-aware."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from patchnets.sharding import BATCH_AXES

Targets = Float[Array, "batch classes"]


class Inputs(NamedTuple):
    """A batch as the network and the loss see it. Masked examples count for nothing."""

    images: Float[Array, "batch height width channels"]
    targets: Targets
    mask: Float[Array, " batch"]


class Measured(NamedTuple):
    """What one forward pass gives beside the gradient."""

    losses: Float[Array, " batch"]
    logits: Float[Array, "batch classes"]
    batch_stats: Any


def smoothed(labels: Int[Array, " batch"], classes: int, smoothing: float = 0.0) -> Targets:
    """One-hot targets, of which `smoothing` goes to all classes alike (arXiv 1512.00567, section 7)."""
    return optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing)


def softmax_cross_entropy(logits: Float[Array, "batch classes"], targets: Targets) -> Float[Array, " batch"]:
    """Of each example: one distribution over all classes."""
    return optax.softmax_cross_entropy(logits, targets)


def sigmoid_cross_entropy(logits: Float[Array, "batch classes"], targets: Targets) -> Float[Array, " batch"]:
    """Of each example: every class a question of its own, and the sum over them (arXiv 2006.07159, section 4.1)."""
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)


LOSSES: dict[str, Callable[..., Array]] = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}


def gradient(
    model: nn.Module,
    loss: Callable[..., Array],
    params: Any,
    batch_stats: Any,
    inputs: Inputs,
    dropout_key: Array,
    count: Float[Array, ""] | None = None,
) -> tuple[Any, Measured]:
    """The gradient by `params` of the losses' sum over `count`, by default the number of examples not masked out."""
    mask = inputs.mask
    shared: dict[str, Any] = {"mask": mask} if batch_stats else {}  # for statistics over the batch
    count = _examples(mask) if count is None else count

    def objective(params: Any) -> tuple[Array, Measured]:
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs.images,
            train=True,
            **shared,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        losses = loss(logits, inputs.targets)
        return (losses * mask).sum() / count, Measured(losses, logits, updates.get("batch_stats", {}))

    return jax.grad(objective, has_aux=True)(params)


def accumulated_gradient(
    model: nn.Module,
    loss: Callable[..., Array],
    params: Any,
    batch_stats: Any,
    inputs: Inputs,
    dropout_key: Array,
    parts: int,
) -> tuple[Any, Measured]:
    """`gradient` of a batch that is worked through in `parts`, one after the other, for the memory of one.

    It is that of the whole batch, where the network treats examples apart. BatchNorm sees each part by itself, and
    dropout draws a mask for each. Part j holds the examples j, j + parts, ...: a share of every device's.
    """
    if parts == 1:
        return gradient(model, loss, params, batch_stats, inputs, dropout_key)
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), inputs)
    keys = jax.vmap(lambda part: jax.random.fold_in(dropout_key, part))(jnp.arange(parts))
    grads, seen = _part_after_part(model, loss, params, batch_stats, split, keys, _examples(inputs.mask))
    losses, logits = (jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]) for x in (seen.losses, seen.logits))
    return grads, Measured(losses, logits, seen.batch_stats)


def gradient_in_groups(
    model: nn.Module,
    loss: Callable[..., Array],
    params: Any,
    batch_stats: Any,
    inputs: Inputs,
    dropout_key: Array,
    groups: int,
    mesh: Mesh,
) -> tuple[Any, Measured]:
    """`gradient` of a batch, group after group on each device; a network that looks at all examples at once has one
    group on each.

    What memory is to `accumulated_gradient`, a processor's cache is here: groups lie side by side in the batch, so that
    each device holds whole ones, and the devices exchange nothing but the sum of their gradients at the end, and what
    BatchNorm adds up over them. Dropout draws a mask for each group by its place in the batch, which is the same on any
    number of devices.
    """
    count = _examples(inputs.mask)
    whole, batch = PartitionSpec(), PartitionSpec(BATCH_AXES)

    def of_device(params: Any, stats: Any, dropout_key: Array, held: Inputs, count: Array) -> tuple[Any, Measured]:
        here = groups // mesh.size
        numbers = jax.lax.axis_index(BATCH_AXES) * here + jnp.arange(here)
        split = jax.tree.map(lambda x: x.reshape(here, -1, *x.shape[1:]), held)
        keys = jax.vmap(lambda group: jax.random.fold_in(dropout_key, group))(numbers)
        grads, seen = _part_after_part(model, loss, params, stats, split, keys, count)
        losses, logits = (x.reshape(-1, *x.shape[2:]) for x in (seen.losses, seen.logits))
        return jax.lax.psum(grads, BATCH_AXES), Measured(losses, logits, seen.batch_stats)

    spread = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(whole, whole, whole, batch, whole),
        out_specs=(whole, Measured(batch, batch, whole)),  # type: ignore[arg-type]  # places in place of arrays
        check_vma=False,
    )
    return spread(params, batch_stats, dropout_key, inputs, count)


def _part_after_part(
    model: nn.Module,
    loss: Callable[..., Array],
    params: Any,
    batch_stats: Any,
    parts: Inputs,
    dropout_keys: Array,
    count: Array,
) -> tuple[Any, Measured]:
    """The sum of the parts' gradients; losses and logits with a first axis for the parts."""

    def one(carry: tuple[Any, Any], part: tuple[Inputs, Array]) -> tuple[tuple[Any, Any], tuple[Array, Array]]:
        total, stats = carry
        grads, seen = gradient(model, loss, params, stats, *part, count)
        return (jax.tree.map(jnp.add, total, grads), seen.batch_stats), (seen.losses, seen.logits)

    zeros = jax.tree.map(jnp.zeros_like, params)
    (grads, stats), (losses, logits) = jax.lax.scan(one, (zeros, batch_stats), (parts, dropout_keys))
    return grads, Measured(losses, logits, stats)


def sharpness_aware(
    gradient_at: Callable[[Any], tuple[Any, Measured]], params: Any, radius: float
) -> tuple[Any, Measured]:
    """The gradient where, to first order, the loss is highest within `radius` of `params` (SAM, arXiv 2010.01412,
    algorithm 1, by the 2-norm). What was measured is that of the pass at `params` themselves."""
    grads, measured = gradient_at(params)
    scale = radius / jnp.maximum(optax.global_norm(grads), 1e-12)
    grads, _ = gradient_at(jax.tree.map(lambda p, g: p + scale * g, params, grads))
    return grads, measured


def _examples(mask: Float[Array, " batch"]) -> Float[Array, ""]:
    """How many count; 1 where none does, as when every record of a batch was unreadable."""
    return jnp.maximum(mask.sum(), 1.0)
