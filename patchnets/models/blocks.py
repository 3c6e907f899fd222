"""What every network does with its blocks: run them, one compiled or each on its own, and look into them."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# How the probability of dropping a branch goes over the blocks, up to a rate.
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
    """`network.depth` blocks, one after the other; called from the compact method of a network.

    What every network does with its blocks: the probability of stochastic depth grows linearly from 0 in the first
    block to the given rate in the last, or is the same in all; `network.remat` computes a block's activations anew in
    the backward pass instead of keeping them; `network.scan` compiles one block, and loops over it with the parameters
    of all blocks stacked along a first axis, for a compilation time that does not grow with depth: the same function of
    the same parameters, whose initial values and dropout are drawn from other keys. Each block's output is sown as
    `block_i`.

    Args:
      network: the module with the fields `depth`, `remat` and `scan`.
      block: makes a block, given its name, which begins with its class's; called as block(x, rate, train=train), with a
        rate of None for none.
      context: further arguments of every call.
    """
    kind = block.func.__name__
    schedule = DROP_PATH_SCHEDULES[drop_path_schedule]
    rates = schedule(drop_path_rate, network.depth) if drop_path_rate else None

    def one(block: nn.Module, x: Array, rate: Any) -> Array:
        return block(x, rate, train=train, **context)

    if network.remat:
        one = nn.remat(one, prevent_cse=not network.scan)
    if not network.scan:
        for i in range(network.depth):
            x = one(block(name=f"{kind}_{i}"), x, None if rates is None else float(rates[i]))
            network.sow("intermediates", f"block_{i}", x)
        return x

    watched = network.is_mutable_collection("intermediates")

    def step(block: nn.Module, x: Array, rate: Any) -> tuple[Array, Any]:
        x = one(block, x, rate)
        return x, x if watched else None

    stacked: Any = dict(params=0, batch_stats=0, intermediates=0)
    loop = nn.scan(step, variable_axes=stacked, split_rngs=dict(params=True, dropout=True), length=network.depth)
    x, outputs = loop(block(name=f"{kind}s"), x, None if rates is None else jnp.asarray(rates, jnp.float32))
    if watched:
        for i in range(network.depth):
            network.sow("intermediates", f"block_{i}", outputs[i])
    return x


def stack_blocks(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of a network without `scan` as those of the same network with it.

    Args:
      variables: {collection: {"MixerBlock_0": ..., "MixerBlock_1": ..., other: ...}}.

    Returns:
      {collection: {"MixerBlocks": ..., other: ...}}, with a first axis for the blocks.
    """
    return {collection: _stack(tree) for collection, tree in variables.items()}


def _stack(tree: Mapping[str, Any]) -> dict[str, Any]:
    rows: dict[str, list[str]] = {}
    for name in tree:
        if found := re.fullmatch(r"(\w*Block)_\d+", name):
            rows.setdefault(found[1], []).append(name)
    stacked = {name: value for name, value in tree.items() if not any(name in row for row in rows.values())}
    for kind, row in rows.items():
        blocks = [tree[f"{kind}_{i}"] for i in range(len(row))]
        stacked[f"{kind}s"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return stacked


def unstack_blocks(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `stack_blocks`; variables without stacked blocks are given back as they are."""
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
