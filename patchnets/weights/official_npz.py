"""The names of the authors' own .npz checkpoints of MLP-Mixer and ViT, in both directions.

Mixer and ViT: https://github.com/google-research/vision_transformer. ViT with attention pooling or fixed positions,
which that project does not have: https://github.com/google-research/big_vision. Axes are ours: these are Flax networks
too.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from patchnets.errors import UserError
from patchnets.models.blocks import stack_blocks, unstack_blocks
from patchnets.models.mlp_mixer import MlpMixer
from patchnets.models.vit import VisionTransformer
from patchnets.weights.load_timm import variable_shapes

INSTEAD = "use --to=onnx or --to=stablehlo"
BLOCK = "Transformer/encoderblock_{i}/"
# Ours -> the authors', for every block i.
VIT = {
    "stem": "embedding",
    "class_token": "cls",
    "position_embedding": "Transformer/posembed_input/pos_embedding",
    "VitBlock_{i}/attention_norm": BLOCK + "LayerNorm_0",
    "VitBlock_{i}/attention": BLOCK + "MultiHeadDotProductAttention_1",
    "VitBlock_{i}/mlp_norm": BLOCK + "LayerNorm_2",
    "VitBlock_{i}/mlp": BLOCK + "MlpBlock_3",
    "pre_head_layer_norm": "Transformer/encoder_norm",
    "representation": "pre_logits",
    "head": "head",
}
BIG_VISION = {
    ours: f"params/{theirs}"
    for ours, theirs in {
        **VIT,
        "position_embedding": "pos_embedding",
        "VitBlock_{i}/attention": BLOCK + "MultiHeadDotProductAttention_0",
        "VitBlock_{i}/mlp_norm": BLOCK + "LayerNorm_1",
        "VitBlock_{i}/mlp": BLOCK + "MlpBlock_0",
        "map_head/probe": "MAPHead_0/probe",
        "map_head/attention": "MAPHead_0/MultiHeadDotProductAttention_0",
        "map_head/norm": "MAPHead_0/LayerNorm_0",
        "map_head/mlp": "MAPHead_0/MlpBlock_0",
    }.items()
}


def project(model: nn.Module) -> str:
    """Return whose names the weights of a network get: vision_transformer or big_vision.

    Raises:
      UserError: neither has such a network.
    """
    network: Any = model
    if type(model) is MlpMixer:
        return "vision_transformer"
    if type(model) is not VisionTransformer:
        raise UserError(
            f"there are no official .npz weights of {type(model).__name__}, only of MLP-Mixer and ViT; {INSTEAD}"
        )
    if network.layer_scale:
        raise UserError(f"the official ViT has no layer_scale, and this one {network.layer_scale}; {INSTEAD}")
    if network.norm_after_pooling and network.pool_type != "cls":  # the class token's norm is the same either way
        raise UserError(f"the official ViT normalizes before pooling, and this one after it; {INSTEAD}")
    return "big_vision" if network.pool_type == "map" or network.posemb == "sincos2d" else "vision_transformer"


def official_name(model: nn.Module, path: str) -> str:
    """Return the official name of a parameter of ours, such as "VitBlock_3/mlp/Dense_0/kernel"."""
    if type(model) is MlpMixer:
        return path
    table = BIG_VISION if project(model) == "big_vision" else VIT
    block = re.match(r"VitBlock_(\d+)/", path)
    general = re.sub(r"^VitBlock_\d+", "VitBlock_{i}", path)
    layer = next(ours for ours in table if general == ours or general.startswith(f"{ours}/"))
    name = table[layer] + general.removeprefix(layer)
    return name.replace("{i}", block[1]) if block else name


def to_arrays(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert the variables of an MlpMixer or a VisionTransformer to official names.

    Returns:
      {name: float32 array}.

    Raises:
      UserError: there is no official network like this one.
    """
    project(model)
    flat = traverse_util.flatten_dict(unstack_blocks(variables)["params"], sep="/")
    return {official_name(model, path): np.asarray(value, np.float32) for path, value in flat.items()}


def from_arrays(model: nn.Module, arrays: Mapping[str, np.ndarray], image_size: int, channels: int) -> dict[str, Any]:
    """Convert the result of `to_arrays` to variables: {"params": ...}, float32 NumPy arrays.

    Raises:
      UserError: an array is missing.
    """
    flat = {}
    for name, (path, shape) in _locations(model, image_size, channels).items():
        if name not in arrays or arrays[name].shape != shape:
            actual = arrays[name].shape if name in arrays else "missing"
            raise UserError(f"array {name!r} of shape {shape} is needed for {path}, and it is {actual}")
        flat[path] = np.array(arrays[name], np.float32, order="C")
    variables = {"params": traverse_util.unflatten_dict(flat, sep="/")}
    network: Any = model
    return jax.tree.map(np.asarray, stack_blocks(variables)) if network.scan else variables


def expected_shapes(model: nn.Module, image_size: int, channels: int) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of the result of `to_arrays`, without weights."""
    return {name: shape for name, (_, shape) in _locations(model, image_size, channels).items()}


def _locations(model: nn.Module, image_size: int, channels: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return {official name: (our name of the parameter, its shape)}."""
    shapes = variable_shapes(model, image_size, channels)
    paths = {path.removeprefix("params/"): shape for path, shape in shapes.items()}
    return {official_name(model, path): (path, shape) for path, shape in paths.items()}
