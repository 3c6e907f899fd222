"""What every network does with its blocks: run them, one compiled or each on its own, and look into them."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

# How the probability of dropping a branch goes over the blocks, up to a rate.
STOCHASTIC_DEPTH = {
    "linear": lambda rate, depth: np.linspace(0.0, rate, depth),  # arXiv 1603.09382, equation 4
    "constant": lambda rate, depth: np.full(depth, rate),
}


def row_of_blocks(
    network: Any,
    block: partial[Any],
    x: Float[Array, "batch ..."],
    stochastic_depth_rate: float = 0.0,
    stochastic_depth_schedule: str = "linear",
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
    schedule = STOCHASTIC_DEPTH[stochastic_depth_schedule]
    rates = schedule(stochastic_depth_rate, network.depth) if stochastic_depth_rate else None

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


def look(
    model: nn.Module, variables: Mapping[str, Any], images: Float[Array, "batch height width colors"]
) -> dict[str, Any]:
    """What `model` computes on the way to its logits, in evaluation, by name and in order.

    Returns:
      "stem": the embedded patches, (batch, patches, channels). For every block i, "block_i": what it puts out, and
      "block_i/mixing": how it mixes patches, which is
        MLP-Mixer: what each hidden unit of the token-mixing MLP reads, (patches, units), and writes, (units, patches)
        gMLP: the spatial weights of the gating unit, (patches in, patches out)
        FNet: (cosines, sines) of the Fourier transform over patches, (patches, patches)
        ViT: the attention weights, (batch, heads, queries, tokens)
        ConvMixer: the depthwise kernels, (k, k, channels).
      "pre_logits": what the head sees, (batch, channels); and "logits", (batch, classes).
    """
    logits, state = model.apply(variables, images, train=False, mutable=["intermediates"])
    # sow keeps what it was given as the only element of a tuple.
    sown = jax.tree.map(lambda kept: kept[0], state["intermediates"], is_leaf=lambda node: isinstance(node, tuple))
    tree = _unstack(sown)
    found: dict[str, Any] = {"stem": tree["stem"]["patches"]}
    depth = sum(bool(re.fullmatch(r"block_\d+", name)) for name in tree)
    for i in range(depth):
        (inside,) = (value for name, value in tree.items() if name.endswith(f"Block_{i}"))
        flat = traverse_util.flatten_dict(inside)
        found[f"block_{i}"] = tree[f"block_{i}"]
        (found[f"block_{i}/mixing"],) = (value for path, value in flat.items() if path[-1] == "mixing")
    return found | {"pre_logits": tree["pre_logits"], "logits": logits}
