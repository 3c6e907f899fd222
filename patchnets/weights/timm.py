"""Networks and variables as timm has them (https://github.com/huggingface/pytorch-image-models, 1.0).

timm's own weights are read by `patchnets.weights.load_timm`, whose mapping of names and layouts this module inverts.
PyTorch and timm are not required.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from flax import traverse_util

from patchnets.errors import UserError
from patchnets.models import convmixer, gmlp, mlp_mixer, vit
from patchnets.models.blocks import unstack_blocks
from patchnets.run.model_spec import ModelSpec
from patchnets.weights.load_timm import FAMILIES, Shape, from_timm, param_sources, variable_shapes

INSTEAD = "use --to=onnx or --to=stablehlo"
POOLS = {"cls": "token", "gap": "avg", "map": "map"}
# Widths that timm has an entry point for; any other ViT is an entry point with other arguments.
VIT_NAMES = {
    **{
        f"{size}/{patch}": f"vit_{name}_patch{patch}_224"
        for size, name, patch in (("Ti", "tiny", 16), ("H", "huge", 14))
    },
    **{
        f"{s}/{p}": f"vit_{n}_patch{p}_224"
        for s, n in (("S", "small"), ("B", "base"), ("L", "large"))
        for p in (16, 32)
    },
}
MIXER_NAMES = {f"{s}/{p}": f"mixer_{s.lower()}{p}_224" for s in "SBL" for p in (16, 32)}
GMLP_NAMES = {f"{size}/16": f"gmlp_{size.lower()}16_224" for size in ("Ti", "S", "B")}
CONVMIXER_NAMES = {
    "1536/20": "convmixer_1536_20",
    "768/32": "convmixer_768_32",
    "1024/20": "convmixer_1024_20_ks9_p14",
}


@dataclasses.dataclass(frozen=True)
class TimmNetwork:
    """A network as timm builds it.

    Attributes:
      class_name: in `timm.models`.
      class_args: arguments of the class that JSON can hold.
      class_code: arguments that are Python objects: dotted names.
      entry_point: what `timm.create_model` calls it; None if no entry point takes these sizes.
      entry_args: arguments of the entry point.
      pool: timm's name of the pooling.
      first_conv: the layer that embeds patches.
    """

    class_name: str
    class_args: dict[str, Any]
    class_code: dict[str, str]
    entry_point: str | None
    entry_args: dict[str, Any]
    pool: str = "avg"
    first_conv: str = "stem.proj"

    @property
    def constructor(self) -> str:
        """Return the Python expression that builds the network by its class."""
        values = {name: repr(value) for name, value in self.class_args.items()} | self.class_code
        return f"timm.models.{self.class_name}({', '.join(f'{name}={value}' for name, value in values.items())})"


def describe(spec: ModelSpec) -> TimmNetwork:
    """Return the network of `spec` as timm builds it.

    Raises:
      UserError: timm has no class for it.
    """
    model: Any = spec.create_model()
    if spec.network not in ("mlp_mixer", "gmlp", "convmixer", "vit"):
        raise UserError(f"timm has no class for {spec.network}; {INSTEAD}")
    if spec.network != "vit" and model.gelu != "exact" and getattr(model, "activation", "gelu") == "gelu":
        npz = ", or --to=npz" if spec.network == "mlp_mixer" else ""
        raise UserError(
            f"timm has no class for {spec.network} with gelu={model.gelu!r}, its own is exact; {INSTEAD}{npz}"
        )
    for field, timms in (("norm_epsilon", 1e-6), ("batch_norm_epsilon", 1e-5), ("rep_size", 0)):
        if (value := getattr(model, field, timms)) != timms:
            raise UserError(f"timm has no class for {spec.network} with {field}={value}, only {timms}; {INSTEAD}")
    common = dict(num_classes=len(spec.classes), in_chans=spec.channels)
    match spec.network:
        case "vit":
            return _vit(model, spec.image_size, common)
        case "convmixer":
            return _convmixer(model, common)
        case "gmlp":
            return _gmlp(model, spec.image_size, common)
    return _mixer(model, spec.image_size, common)


def _published(names: Mapping[str, str], variants: Mapping[str, Mapping[str, Any]], model: Any, *fields: str) -> Any:
    """Return timm's name of the variant that has the values of `fields` that `model` has; None if there is none."""
    for variant, name in names.items():
        if all(variants[variant].get(field, "gelu") == getattr(model, field) for field in fields):
            return name
    return None


def _vit(model: Any, image_size: int, common: dict[str, Any]) -> TimmNetwork:
    args = dict(
        img_size=image_size,
        patch_size=model.patch_size,
        embed_dim=model.hidden_dim,
        depth=model.depth,
        num_heads=model.num_heads,
        mlp_ratio=ratio(model.mlp_dim, model.hidden_dim),
        global_pool=POOLS[model.pool_type],
        class_token=model.pool_type == "cls",
        pos_embed="none" if model.posemb == "none" else "learn",
        fc_norm=model.norm_after_pooling,
        act_layer="gelu" if model.gelu == "exact" else "gelu_tanh",
    )
    if model.layer_scale:
        args["init_values"] = model.layer_scale
    name = _published(VIT_NAMES, vit.VARIANTS, model, "patch_size", "depth", "hidden_dim", "mlp_dim", "num_heads")
    name, args = name or "vit_base_patch16_224", common | args
    return TimmNetwork("VisionTransformer", args, {}, name, args, args["global_pool"], "patch_embed.proj")


def _mixer(model: Any, image_size: int, common: dict[str, Any]) -> TimmNetwork:
    width = model.hidden_dim
    free = common | dict(
        img_size=image_size, mlp_ratio=[ratio(model.tokens_mlp_dim, width), ratio(model.channels_mlp_dim, width)]
    )
    fixed = dict(patch_size=model.patch_size, num_blocks=model.depth, embed_dim=width)
    name = _published(MIXER_NAMES, mlp_mixer.VARIANTS, model, "patch_size", "depth", "hidden_dim")
    return TimmNetwork("MlpMixer", free | fixed, {}, name, free)


def _gmlp(model: Any, image_size: int, common: dict[str, Any]) -> TimmNetwork:
    free = common | dict(img_size=image_size)
    fixed = dict(
        patch_size=model.patch_size,
        num_blocks=model.depth,
        embed_dim=model.hidden_dim,
        mlp_ratio=ratio(model.ffn_dim, model.hidden_dim),
    )
    code = dict(block_layer="timm.models.mlp_mixer.SpatialGatingBlock", mlp_layer="timm.layers.GatedMlp")
    name = _published(GMLP_NAMES, gmlp.VARIANTS, model, "patch_size", "depth", "hidden_dim", "ffn_dim")
    return TimmNetwork("MlpMixer", free | fixed, code, name, free)


def _convmixer(model: Any, common: dict[str, Any]) -> TimmNetwork:
    fixed = dict(dim=model.hidden_dim, depth=model.depth, kernel_size=model.kernel_size, patch_size=model.patch_size)
    code = dict(act_layer="torch.nn.ReLU") if model.activation == "relu" else {}
    fields = ("patch_size", "depth", "hidden_dim", "kernel_size", "activation")
    name = _published(CONVMIXER_NAMES, convmixer.VARIANTS, model, *fields)
    return TimmNetwork("ConvMixer", common | fixed, code, name, common, first_conv="stem.0")


def ratio(hidden: int, width: int) -> float:
    """Return the number r for which timm's int(r * width) is `hidden`."""
    quotient = hidden / width
    return quotient if int(quotient * width) == hidden else (hidden + 0.5) / width


def to_entries(model: nn.Module, variables: Mapping[str, Any], image_size: int) -> dict[str, np.ndarray]:
    """Convert variables to the entries of timm's state dict: the inverse of `load_timm.from_timm`.

    Fixed position embeddings (sincos2d) become an entry, with zeros for the class token.

    Args:
      model: an MlpMixer, Gmlp, ConvMixer or VisionTransformer.
      variables: of `model`, with stacked blocks or without.
      image_size: side in pixels of its inputs.

    Returns:
      {name: float32 array}, without PyTorch's counters `num_batches_tracked`, which it makes itself.
    """
    sources = param_sources(_unrolled(model))
    entries: dict[str, dict[int, np.ndarray]] = {}
    for (_, *path), value in traverse_util.flatten_dict(unstack_blocks(variables)).items():
        name, source = sources["/".join(path)]
        entries.setdefault(name, {})[source.part] = source.write(np.asarray(value, np.float32))
    arrays = {name: np.concatenate([parts[i] for i in sorted(parts)]) for name, parts in entries.items()}
    if (table := fixed_positions(model, image_size)) is not None:
        arrays["pos_embed"] = table
    return arrays


def fixed_positions(model: nn.Module, image_size: int) -> np.ndarray | None:
    """Return the table of a network with sincos2d positions as timm's pos_embed; None for any other network."""
    network: Any = model
    if getattr(model, "posemb", None) != "sincos2d":
        return None
    side = image_size // network.patch_size
    table = vit.sincos2d(side, side, network.hidden_dim).astype(np.float32)
    return np.pad(table, ((int(network.pool_type == "cls"), 0), (0, 0)))[None]


def from_entries(model: nn.Module, entries: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Convert the result of `to_entries` to variables.

    Raises:
      UserError: as `load_timm.from_timm`, or other position embeddings than the fixed ones that `model` has.
    """
    table = fixed_positions(model, image_size)
    if table is not None:
        entries = dict(entries)
        if not np.array_equal(entries.pop("pos_embed", None), table):
            raise UserError("entry 'pos_embed' does not hold sincos2d positions, which posemb='sincos2d' stands for")
    return from_timm(model, entries)


def expected_shapes(model: nn.Module, image_size: int, channels: int) -> dict[str, Shape]:
    """Return {entry: shape} of the result of `to_entries`, without weights."""
    network = _unrolled(model)
    sources = param_sources(network)
    shapes = {}
    for path, shape in variable_shapes(network, image_size, channels).items():
        name, source = sources[path.partition("/")[2]]
        shapes[name] = source.expected(shape)
    if getattr(network, "posemb", None) == "sincos2d":
        patches = (image_size // network.patch_size) ** 2
        shapes["pos_embed"] = (1, patches + (network.pool_type == "cls"), network.hidden_dim)
    return shapes


def _unrolled(model: nn.Module) -> Any:
    network: Any = model
    if type(model) not in FAMILIES:
        raise UserError(f"timm has no class for {type(model).__name__}; {INSTEAD}")
    return network.clone(scan=False)


def num_params(shapes: Mapping[str, Shape]) -> int:
    """Return how many numbers arrays of these shapes hold."""
    return sum(math.prod(shape) for shape in shapes.values())
