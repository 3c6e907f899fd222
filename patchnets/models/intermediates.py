"""Capture intermediate values of a network by name."""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util
from jaxtyping import Array, Float

from patchnets.models.blocks import unstack_blocks


def capture_intermediates(
    model: nn.Module, variables: Mapping[str, Any], images: Float[Array, "batch height width channels"]
) -> dict[str, Any]:
    """Return the intermediate values of `model` in evaluation, by name and in order.

    Returns:
      "stem": the embedded patches, (batch, patches, channels). For every block i, "block_i": its output, and
      "block_i/mixing": its token mixing, which is
        MLP-Mixer: input weights (patches, units) and output weights (units, patches) of the token-mixing MLP
        gMLP: the spatial weights of the gating unit, (patches in, patches out)
        FNet: (cosines, sines) of the Fourier transform over patches, (patches, patches)
        ViT: the attention weights, (batch, heads, queries, tokens)
        ConvMixer: the depthwise kernels, (k, k, channels).
      "pooling": for a ViT with attention pooling, its attention weights, (batch, heads, 1, tokens).
      "pre_logits": the input of the head, (batch, channels); and "logits", (batch, classes).

    """
    logits, state = model.apply(variables, images, train=False, mutable=["intermediates"])
    # sow stores a value as the only element of a tuple.
    sown = jax.tree.map(lambda kept: kept[0], state["intermediates"], is_leaf=lambda node: isinstance(node, tuple))
    tree = unstack_blocks({"intermediates": sown})["intermediates"]
    captured: dict[str, Any] = {"stem": tree["stem"]["patches"]}
    depth = sum(bool(re.fullmatch(r"block_\d+", name)) for name in tree)
    for i in range(depth):
        (inside,) = (value for name, value in tree.items() if name.endswith(f"Block_{i}"))
        flat = traverse_util.flatten_dict(inside)
        captured[f"block_{i}"] = tree[f"block_{i}"]
        (captured[f"block_{i}/mixing"],) = (value for path, value in flat.items() if path[-1] == "mixing")
    if "map_head" in tree:
        captured["pooling"] = tree["map_head"]["attention"]["mixing"]
    return captured | {"pre_logits": tree["pre_logits"], "logits": logits}
