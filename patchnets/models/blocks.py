"""Run the blocks of a network, unrolled or scanned; stack and unstack their parameters."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Probability of dropping a branch in each block, up to a rate.
DROP_PATH_SCHEDULES = {
    "linear": lambda rate, depth: np.linspace(0.0, rate, depth),  # arXiv 1603.09382, equation 4
    "constant": lambda rate, depth: np.full(depth, rate),
}


def apply_blocks(
    network: Any,
    block: partial[Any],
    x: Float[Array, "batch ..."],
    drop_path_rate: float = 0.0,
    drop_path_schedule: str = "linear",
    *,
    train: bool,
    **context: Any,
) -> Float[Array, "batch ..."]:
    """Apply `network.depth` blocks in sequence. Call it from the compact method of a network.

    The probability of stochastic depth grows linearly from 0 in the first block to `drop_path_rate` in the last, or is
    the same in all blocks. `network.remat` recomputes the activations of a block in the backward pass. `network.scan`
    compiles one block and loops over it, with the parameters of all blocks stacked along a first axis, so that
    compilation time does not grow with depth. It computes the same function of the same parameters; only initial
    values and dropout are drawn from other keys. Each block's output is sown as `block_i`.

    Args:
      network: a module with the fields `depth`, `remat` and `scan`.
      block: builds a block from its name, which starts with the name of its class. The block is called as
        block(x, rate, train=train); a rate of None means no stochastic depth.
      x: activations before the first block.
      drop_path_rate: probability of dropping a branch of the last block.
      drop_path_schedule: a key of DROP_PATH_SCHEDULES.
      train: whether dropout and stochastic depth are active.
      context: further arguments of every call.

    Returns:
      Activations after the last block, with the shape of `x`.

    """
    kind = block.func.__name__
    schedule = DROP_PATH_SCHEDULES[drop_path_schedule]
    rates = schedule(drop_path_rate, network.depth) if drop_path_rate else None

    def apply_block(block: nn.Module, x: Array, rate: Any) -> Array:
        return block(x, rate, train=train, **context)

    if network.remat:
        apply_block = nn.remat(apply_block, prevent_cse=not network.scan)
    if not network.scan:
        for i in range(network.depth):
            x = apply_block(block(name=f"{kind}_{i}"), x, None if rates is None else float(rates[i]))
            network.sow("intermediates", f"block_{i}", x)
        return x

    watched = network.is_mutable_collection("intermediates")

    def step(block: nn.Module, x: Array, rate: Any) -> tuple[Array, Any]:
        x = apply_block(block, x, rate)
        return x, x if watched else None

    stacked: Any = dict(params=0, batch_stats=0, intermediates=0)
    loop = nn.scan(step, variable_axes=stacked, split_rngs=dict(params=True, dropout=True), length=network.depth)
    x, outputs = loop(block(name=f"{kind}s"), x, None if rates is None else jnp.asarray(rates, jnp.float32))
    if watched:
        for i in range(network.depth):
            network.sow("intermediates", f"block_{i}", outputs[i])
    return x


def stack_blocks(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the variables of a network without `scan` to those of the same network with `scan`.

    Args:
      variables: {collection: {"MixerBlock_0": ..., "MixerBlock_1": ..., other: ...}}.

    Returns:
      {collection: {"MixerBlocks": ..., other: ...}}, with the blocks along a first axis.
    """
    return {collection: _stack(tree) for collection, tree in variables.items()}


def _stack(tree: Mapping[str, Any]) -> dict[str, Any]:
    rows: dict[str, list[str]] = {}
    for name in tree:
        if match := re.fullmatch(r"(\w*Block)_\d+", name):
            rows.setdefault(match[1], []).append(name)
    stacked = {name: value for name, value in tree.items() if not any(name in row for row in rows.values())}
    for kind, row in rows.items():
        blocks = [tree[f"{kind}_{i}"] for i in range(len(row))]
        stacked[f"{kind}s"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return stacked


def unstack_blocks(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Invert `stack_blocks`. Variables without stacked blocks are returned unchanged."""
    return {collection: _unstack(tree) for collection, tree in variables.items()}


def _unstack(tree: Mapping[str, Any]) -> dict[str, Any]:
    apart = {}
    for name, value in tree.items():
        if not name.endswith("Blocks"):
            apart[name] = value
            continue
        for i in range(len(jax.tree.leaves(value)[0])):
            apart[f"{name[:-1]}_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], value)
    return apart
