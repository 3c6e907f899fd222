"""Convert timm's weights to Flax variables (https://github.com/huggingface/pytorch-image-models).

Layouts are those of timm's `mlp_mixer.py` (MLP-Mixer and gMLP), `convmixer.py` and `vision_transformer.py`. PyTorch is
not required; any value that NumPy reads as an array works.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from patchnets.errors import UserError
from patchnets.models.blocks import stack_blocks
from patchnets.models.convmixer import ConvMixer
from patchnets.models.gmlp import Gmlp
from patchnets.models.mlp_mixer import MlpMixer
from patchnets.models.vit import VisionTransformer

Shape = tuple[int, ...]
STATE_DICT = "the state dict"


class ParamSource(NamedTuple):
    """Location of one parameter within timm's entry for the same layer."""

    suffix: str  # of the entry's name, after the name of the layer
    axes: Shape = ()  # our axes in timm's order; () for identical order
    merge: Callable[[Shape], Shape] = lambda shape: shape  # timm's shape, from ours in timm's order
    part: int = 0  # which one of the equal `parts` of timm's first axis
    parts: int = 1

    def ordered(self, shape: Shape) -> Shape:
        return tuple(shape[axis] for axis in self.axes) if self.axes else shape

    def expected(self, shape: Shape) -> Shape:
        """Return the shape of timm's entry for a parameter of ours of shape `shape`."""
        first, *others = self.merge(self.ordered(shape))
        return (self.parts * first, *others)

    def read(self, entry: np.ndarray, shape: Shape) -> np.ndarray:
        """Return our parameter of shape `shape`, as a copy, from an entry of the expected shape."""
        values = np.split(entry, self.parts)[self.part].reshape(self.ordered(shape))
        return np.array(values.transpose(np.argsort(self.axes)) if self.axes else values, np.float32, order="C")

    def write(self, parameter: np.ndarray) -> np.ndarray:
        """Return the part of timm's entry that holds a parameter of ours: the inverse of `read`."""
        ordered = parameter.transpose(self.axes) if self.axes else parameter
        return ordered.reshape(self.merge(ordered.shape))


def to_heads(part: int = 0, parts: int = 1) -> dict[str, ParamSource]:
    """Map a projection to heads: our (channels, heads, width) is one part of (heads * width, channels)."""
    kernel = ParamSource("weight", (1, 2, 0), lambda shape: (shape[0] * shape[1], shape[2]), part, parts)
    return dict(kernel=kernel, bias=ParamSource("bias", (), lambda shape: (math.prod(shape),), part, parts))


# A kind of layer: {our parameter: its source}. Ours are (height, width, in, out) and (in, out), timm's (out, in, ...).
BIAS = dict(bias=ParamSource("bias"))
PLAIN = {"": ParamSource("")}
CONV = dict(kernel=ParamSource("weight", (3, 2, 0, 1)), **BIAS)  # a depthwise one too: (C, 1, k, k) is our (k, k, 1, C)
DENSE = dict(kernel=ParamSource("weight", (1, 0)), **BIAS)
POINTWISE = dict(kernel=ParamSource("weight", (1, 0), lambda shape: (*shape, 1, 1)), **BIAS)
FROM_HEADS = dict(kernel=ParamSource("weight", (2, 0, 1), lambda shape: (shape[0], shape[1] * shape[2])), **BIAS)
NORM = dict(scale=ParamSource("weight"), **BIAS)
BATCH_NORM = dict(**NORM, mean=ParamSource("running_mean"), var=ParamSource("running_var"))

# A family: {our layer: (timm's layer, its kind)}, for every block i.
Layers = dict[str, tuple[str, dict[str, ParamSource]]]
ENDS: Layers = {
    "stem": ("stem.proj", CONV),
    "pre_head_layer_norm": ("norm", NORM),
    "head": ("head", DENSE),
}
MIXER: Layers = {
    **ENDS,
    "MixerBlock_{i}/LayerNorm_0": ("blocks.{i}.norm1", NORM),
    "MixerBlock_{i}/token_mixing/Dense_0": ("blocks.{i}.mlp_tokens.fc1", DENSE),
    "MixerBlock_{i}/token_mixing/Dense_1": ("blocks.{i}.mlp_tokens.fc2", DENSE),
    "MixerBlock_{i}/LayerNorm_1": ("blocks.{i}.norm2", NORM),
    "MixerBlock_{i}/channel_mixing/Dense_0": ("blocks.{i}.mlp_channels.fc1", DENSE),
    "MixerBlock_{i}/channel_mixing/Dense_1": ("blocks.{i}.mlp_channels.fc2", DENSE),
}
GMLP: Layers = {
    **ENDS,
    "GmlpBlock_{i}/norm": ("blocks.{i}.norm", NORM),
    "GmlpBlock_{i}/expand": ("blocks.{i}.mlp_channels.fc1", DENSE),
    "GmlpBlock_{i}/spatial_gating/norm": ("blocks.{i}.mlp_channels.gate.norm", NORM),
    "GmlpBlock_{i}/spatial_gating": ("blocks.{i}.mlp_channels.gate.proj", DENSE),
    "GmlpBlock_{i}/project": ("blocks.{i}.mlp_channels.fc2", DENSE),
}
CONVMIXER: Layers = {
    "stem": ("stem.0", CONV),
    "stem_norm/norm": ("stem.2", BATCH_NORM),
    "ConvMixerBlock_{i}/depthwise": ("blocks.{i}.0.fn.0", CONV),
    "ConvMixerBlock_{i}/depthwise_norm/norm": ("blocks.{i}.0.fn.2", BATCH_NORM),
    "ConvMixerBlock_{i}/pointwise": ("blocks.{i}.1", POINTWISE),
    "ConvMixerBlock_{i}/pointwise_norm/norm": ("blocks.{i}.3", BATCH_NORM),
    "head": ("head", DENSE),
}
VIT: Layers = {
    **ENDS,
    "stem": ("patch_embed.proj", CONV),
    "class_token": ("cls_token", PLAIN),
    "position_embedding": ("pos_embed", PLAIN),
    "VitBlock_{i}/attention_norm": ("blocks.{i}.norm1", NORM),
    "VitBlock_{i}/attention/query": ("blocks.{i}.attn.qkv", to_heads(0, 3)),
    "VitBlock_{i}/attention/key": ("blocks.{i}.attn.qkv", to_heads(1, 3)),
    "VitBlock_{i}/attention/value": ("blocks.{i}.attn.qkv", to_heads(2, 3)),
    "VitBlock_{i}/attention/out": ("blocks.{i}.attn.proj", FROM_HEADS),
    "VitBlock_{i}/attention_scale": ("blocks.{i}.ls1.gamma", PLAIN),
    "VitBlock_{i}/mlp_norm": ("blocks.{i}.norm2", NORM),
    "VitBlock_{i}/mlp/Dense_0": ("blocks.{i}.mlp.fc1", DENSE),
    "VitBlock_{i}/mlp/Dense_1": ("blocks.{i}.mlp.fc2", DENSE),
    "VitBlock_{i}/mlp_scale": ("blocks.{i}.ls2.gamma", PLAIN),
    "map_head/probe": ("attn_pool.latent", PLAIN),
    "map_head/attention/query": ("attn_pool.q", to_heads()),
    "map_head/attention/key": ("attn_pool.kv", to_heads(0, 2)),
    "map_head/attention/value": ("attn_pool.kv", to_heads(1, 2)),
    "map_head/attention/out": ("attn_pool.proj", FROM_HEADS),
    "map_head/norm": ("attn_pool.norm", NORM),
    "map_head/mlp/Dense_0": ("attn_pool.mlp.fc1", DENSE),
    "map_head/mlp/Dense_1": ("attn_pool.mlp.fc2", DENSE),
    "representation": ("pre_logits.fc", DENSE),  # which only older releases of timm have
}
FAMILIES: dict[type[nn.Module], Layers] = {MlpMixer: MIXER, Gmlp: GMLP, ConvMixer: CONVMIXER, VisionTransformer: VIT}

# Entries whose shape contains the number of patches, and the axis.
PATCHES = {"blocks.0.mlp_tokens.fc1.weight": 1, "blocks.0.mlp_channels.gate.proj.weight": 0, "pos_embed": 1}

# Part of an entry's name: fields that, with hidden_dim, determine whether the entry exists and its shape.
FIELDS = {
    r"^(stem|patch_embed)\.": ("patch_size",),
    r"^(head|pre_logits)\.": ("num_classes", "rep_size"),
    r"^pos_embed": ("posemb", "pool_type"),
    r"^(cls_token|attn_pool)": ("pool_type",),
    r"^(norm|fc_norm)\.": ("norm_after_pooling",),
    r"\.mlp_tokens\.": ("tokens_mlp_dim",),
    r"\.mlp_channels\.": ("channels_mlp_dim", "ffn_dim"),
    r"\.mlp\.": ("mlp_dim",),
    r"\.ls\d\.": ("layer_scale",),
    r"\.fn\.0\.": ("kernel_size",),
}


def from_timm(model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Convert timm's weights of a network to the variables of `model`, the same network.

    Settings that weights do not show must also agree: GELU is exact in timm (`gelu="exact"`), and `activation` and
    `num_heads` must be those of timm's network. Position embeddings and token-mixing weights fit the (square) image
    size of timm's network; use patchnets.models.resize_weights for other sizes.


    Args:
      model: an MlpMixer, Gmlp, ConvMixer or VisionTransformer. timm networks that average the patches (`fc_norm`)
        correspond to pool_type="gap" and norm_after_pooling=True, without timm's class token; networks with layer scale
        need a nonzero `layer_scale`.
      state_dict: {name: tensor or array}, as returned by timm's `state_dict()`.


    Returns:
      {"params": ...}, and for ConvMixer {"params": ..., "batch_stats": ...}: float32 NumPy arrays that share no memory
      with the state dict, of the shapes of `model.init`; the parameters of all blocks stacked where `model.scan`.

    Raises:
      UserError: unsupported architecture; an entry that is missing, unused, of another shape, or unreadable by NumPy;
        another number of blocks or classes.

    """
    name = type(model).__name__
    if type(model) not in FAMILIES:
        known = ", ".join(kind.__name__ for kind in FAMILIES)
        raise UserError(f"timm's weights cannot be converted for {name}; choose one of {known}")
    any_model: Any = model
    network = any_model.clone(scan=False)
    wrapped = [str(n) for n in state_dict if str(n) in ("state_dict", "model") or str(n).startswith("module.")]
    if wrapped:
        raise UserError(f"{wrapped[0]!r} is not an entry of timm's; pass the inner state dict, without any 'module.'")
    entries = {n: _as_array(n, value) for n, value in state_dict.items() if not n.endswith(".num_batches_tracked")}
    blocks = {match[1] for entry in entries if (match := re.match(r"blocks\.(\d+)\.", entry))}
    if blocks and len(blocks) != network.depth:
        raise UserError(
            f"the state dict has {len(blocks)} blocks ('blocks.*'), but this {name} has depth={network.depth}"
        )
    classes = entries["head.weight"].shape[:1] if "head.weight" in entries else (network.num_classes,)
    if classes != (network.num_classes,):
        has = f"{classes[0] if classes else 'no'} classes"
        raise UserError(
            f"the state dict has {has} ('head.weight'), but this {name} has num_classes={network.num_classes}"
        )
    shapes = _shapes(network, entries)
    sources = match_entries(model, layers_of(model), {name: entry.shape for name, entry in entries.items()}, shapes)
    variables = to_variables(entries, sources, shapes)
    return jax.tree.map(np.asarray, stack_blocks(variables)) if any_model.scan else variables


def match_entries(
    model: nn.Module, layers: Layers, entries: Mapping[str, Shape], shapes: Mapping[str, Shape], label: str = STATE_DICT
) -> dict[str, tuple[str, ParamSource]]:
    """Return {collection/path: (entry, its location)} of every variable of a network.

    Args:
      model: the network.
      layers: our layers and theirs.
      entries: {name: shape} of what there is.
      shapes: {collection/path: shape} of the variables of `model`, without stacked blocks.
      label: what to call the file in errors.

    Raises:
      UserError: an entry is unused, missing or of another shape, the first one named.
    """
    name = type(model).__name__
    sources = param_sources(model, layers)
    wanted = {path: sources[path.split("/", 1)[1]] for path in shapes}

    # Report unused entries first, then missing ones, then shapes: one wrong field may cause all three.
    taken = {entry for entry, _ in wanted.values()}
    for entry in (entry for entry in entries if entry not in taken):
        what = f"entry {entry!r} of shape {entries[entry]}, for which this {name} has no parameter"
        raise UserError(f"{label} has an {what}; {_check(model, entry)}")
    for path, (entry, source) in wanted.items():
        if entry not in entries:
            what = f"entry {entry!r} of shape {source.expected(shapes[path])}, which this {name} needs for {path}"
            raise UserError(f"{label} has no {what}; {_check(model, entry)}")
    for path, (entry, source) in wanted.items():
        if entries[entry] != (expected := source.expected(shapes[path])):
            what = f"has shape {entries[entry]}, but this {name} needs {expected} for {path}"
            raise UserError(f"entry {entry!r} of {label} {what}; {_check(model, entry)}")
    return wanted


def to_variables(
    entries: Mapping[str, np.ndarray], sources: Mapping[str, tuple[str, ParamSource]], shapes: Mapping[str, Shape]
) -> dict[str, Any]:
    """Return the variables whose entries `match_entries` determined, as float32 copies."""
    flat = {path: source.read(entries[entry], shapes[path]) for path, (entry, source) in sources.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def _as_array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(np.asarray(value), np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"entry {name!r} of the state dict is not an array ({reason}); pass float32 on the CPU"
        ) from error


def layers_of(model: Any) -> Layers:
    """Return the layers of a network's family, and timm's."""
    layers = FAMILIES[type(model)]
    if getattr(model, "norm_after_pooling", False):
        layers = layers | {"pre_head_layer_norm": ("fc_norm", NORM)}
    return layers


def param_sources(model: Any, layers: Layers | None = None) -> dict[str, tuple[str, ParamSource]]:
    """Return {our parameter: (timm's entry, its location)} for all parameters that networks of this family may have."""
    sources = {}
    for ours, (timms, kind) in (layers_of(model) if layers is None else layers).items():
        for i in range(model.depth if "{i}" in ours else 1):
            for leaf, source in kind.items():
                path, entry = f"{ours}/{leaf}".format(i=i), f"{timms}.{source.suffix}".format(i=i)
                sources[path.rstrip("/")] = (entry.rstrip("."), source)
    return sources


def _shapes(model: Any, entries: Mapping[str, np.ndarray]) -> dict[str, Shape]:
    """Return {collection/path: shape} of the variables of `model` for the image size and channels of the entries."""
    counts = [entries[name].shape[axis] for name, axis in PATCHES.items() if name in entries and entries[name].ndim > 1]
    side = model.patch_size * (max(1, math.isqrt(counts[0])) if counts else 1)  # rounds the class token away
    stem = entries.get(FAMILIES[type(model)]["stem"][0] + ".weight")
    return variable_shapes(model, side, 3 if stem is None or stem.ndim != 4 else stem.shape[1])


def variable_shapes(model: Any, image_size: int, channels: int) -> dict[str, Shape]:
    """Return {collection/path: shape} of the variables of a network without stacked blocks."""
    network = model.clone(scan=False)
    if getattr(network, "posemb", None) == "sincos2d":  # no variable, but a table that may be large
        network = network.clone(posemb="none")
    image = jax.ShapeDtypeStruct((1, image_size, image_size, channels), np.float32)
    tree = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), image)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def _check(model: nn.Module, entry: str) -> str:
    """Return a hint for an entry that does not match: which fields to check."""
    deciding = next((fields for part, fields in FIELDS.items() if re.search(part, entry)), ())
    values = [f"{name}={getattr(model, name)!r}" for name in (*deciding, "hidden_dim") if hasattr(model, name)]
    return f"check whether timm's network has {', '.join(values)}"
