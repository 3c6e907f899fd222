"""Networks and weights in timm's layout: config.json and model.safetensors, or a bare file.

A bare file says what it is by the names and shapes of its entries. What these do not show (heads, activation) is
timm's own for an architecture of that name or size, or assumed and noted.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from patchnets.errors import UserError
from patchnets.models import convmixer
from patchnets.weights import files
from patchnets.weights.class_names import class_names
from patchnets.weights.json_values import numbers_of, value_of
from patchnets.weights.layout import (
    HALF,
    Notes,
    Preprocessing,
    Pretrained,
    Variables,
    architecture_of,
    assume_heads,
    depth_of,
    image_size_of,
    is_square,
    make_spec,
    size_of,
)
from patchnets.weights.load_timm import Shape, layers_of, match_entries, to_variables, variable_shapes
from patchnets.weights.timm import POOLS

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# An entry that only one family has: the family, and timm's preprocessing of most of its weights.
FAMILIES = {
    "blocks.0.mlp_tokens.fc1.weight": ("mlp_mixer", Preprocessing(HALF, HALF, 0.875, "bicubic")),
    "blocks.0.mlp_channels.gate.proj.weight": ("gmlp", Preprocessing(HALF, HALF, 0.875, "bicubic")),
    "blocks.0.0.fn.0.weight": ("convmixer", Preprocessing(**IMAGENET, crop_pct=0.96, interpolation="bicubic")),
    "patch_embed.proj.weight": ("vit", Preprocessing(HALF, HALF, 0.9, "bicubic")),
}
LEFTOVERS = (r"\.num_batches_tracked$", r"^mask_token$")  # BatchNorm's counters; masks of self-supervised training
# Heads of timm's sizes, and of architectures that are exceptions.
NUM_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16, "giant": 16, "gigantic": 16, "so400m": 16}
EXCEPTIONS = {"vit_base_patch16_gap_224": 16, "test_vit": 2, "test_vit2": 2, "test_vit3": 3, "test_vit4": 3}
# Architectures of timm 1.0.31 whose entry points ask for the tanh form of GELU.
TANH = re.compile("base_patch32_siglip|large_patch16_siglip(_gap)?_512|so400m_patch16_siglip|giantopt_patch16_siglip")
LAYER_SCALE = 1e-5  # initial value where the configuration has none; trained factors replace it
NOT_HERE = ("reg_token", "dist_token", "norm_pre.weight")  # of ViTs; those that follow from them are less telling
GELU = {"gelu": "exact", "gelu_erf": "exact", "gelu_tanh": "tanh"}


def read(
    path: pathlib.Path, config: Mapping[str, Any] | None = None, *, source: str, network: str | None = None
) -> Pretrained:
    """Return the weights in a safetensors file in timm's layout.

    Args:
      path: the file.
      config: the content of config.json; None for a bare file.
      source: what to call the weights.
      network: timm's name of the architecture, or ours of the family.

    Raises:
      UserError: no network of ours fits the entries, or `network` is another than theirs.
      RunError: the file's header is broken, or has entries that are no floating-point numbers.
    """
    config, header = config or {}, files.read_header(path, safetensors=True)
    notes = Notes(leftovers=[name for name in header if any(re.search(part, name) for part in LEFTOVERS)])
    shapes = {name: shape for name, (shape, _) in header.items() if name not in notes.leftovers}
    files.check_floats(path, {name: header[name] for name in shapes})
    label = str(path)
    family, default = next((known for entry, known in FAMILIES.items() if entry in shapes), (None, Preprocessing()))
    if family is None:
        first = next(iter(shapes), "none")
        raise UserError(f"{label} is of no layout that is known: its first entry is {first!r}")
    if other := next((name for name in NOT_HERE if name in shapes), None):
        raise UserError(f"{label} has an entry {other!r} of shape {shapes[other]}, which no network here has")
    architecture = architecture_of(config, family, network, label)
    args = value_of(config, "model_args", dict, label) or {}
    cfg = value_of(config, "pretrained_cfg", dict, label) or config  # older files have its keys at the top
    labels = next((part[key] for part in (config, cfg) for key in ("label_names", "labels") if part.get(key)), None)
    fields, patches = _fields(family, shapes, config, architecture, args, notes, label)
    image_size = _image_size(fields["patch_size"], patches, cfg, notes, label)
    shapes = _with_class_position(shapes, patches) if family == "vit" and patches is not None else shapes
    num_classes = size_of(shapes, "head.weight", 0, label, missing=0)
    rules = {
        "exif_orientation": value_of(config, "exif_orientation", bool, label),
        "background": config.get("background"),
    }
    spec = make_spec(
        family,
        fields,
        image_size=image_size,
        channels=_stem(shapes, family, label)[1],
        classes=class_names(num_classes, labels, notes, label),
        preprocessing=_preprocessing(cfg, notes, label),
        default=default,
        notes=notes,
        label=label,
        resizes_first=True,
        **{name: value for name, value in rules.items() if value is not None},
    )
    if not config and not network and family != "convmixer":
        notes.assume("gelu exact and timm's norm_epsilon, for the file has none")
    if fields.get("posemb") == "none" and args.get("pos_embed") != "none":
        notes.assume("posemb none, for the file has no position embeddings")
    model = spec.create_model()
    ours = variable_shapes(model, image_size, spec.channels)
    sources = match_entries(model, layers_of(model), shapes, ours, label)

    def load() -> tuple[Variables, None]:
        entries = files.read_floats(path, shapes, safetensors=True)
        if "pos_embed" in entries and entries["pos_embed"].shape != shapes["pos_embed"]:
            entries["pos_embed"] = np.pad(entries["pos_embed"], ((0, 0), (1, 0), (0, 0)))
        return {"batch_stats": {}} | to_variables(entries, sources, ours), None

    return Pretrained(
        spec, "timm", source, path, path, header, load, assumed=tuple(notes.assumed), leftovers=tuple(notes.leftovers)
    )


def _stem(shapes: Mapping[str, Shape], family: str, label: str) -> Shape:
    """Return the shape of the patch embedding's kernel, (width, channels, patch, patch)."""
    name = {"vit": "patch_embed.proj.weight", "convmixer": "stem.0.weight"}.get(family, "stem.proj.weight")
    size_of(shapes, name, 3, label)
    if shapes[name][2] != shapes[name][3]:
        raise UserError(f"{label}: {name!r} of shape {shapes[name]} has patches that are not square")
    return shapes[name]


def _fields(
    family: str,
    shapes: Mapping[str, Shape],
    config: Mapping[str, Any],
    architecture: str,
    args: Mapping[str, Any],
    notes: Notes,
    label: str,
) -> tuple[dict[str, Any], int | None]:
    """Return the fields of a network, and the number of its patches if the entries show it."""
    width, _, patch_size, _ = _stem(shapes, family, label)
    fields: dict[str, Any] = dict(
        patch_size=patch_size, hidden_dim=width, depth=depth_of(shapes, r"blocks\.(\d+)\.", label)
    )
    act_layer = value_of(args, "act_layer", str, label)
    if family == "convmixer":
        fields["kernel_size"] = size_of(shapes, "blocks.0.0.fn.0.weight", 2, label)
        return fields | _activation(act_layer, architecture, fields, notes, label), None
    if act_layer is None:
        act_layer = "gelu_tanh" if TANH.search(architecture) else "gelu"
    if act_layer not in GELU:
        raise UserError(f"{label}: act_layer={act_layer[:80]!r} is not available; known: {', '.join(GELU)}")
    fields["gelu"] = GELU[act_layer]
    if family == "gmlp":
        fields["ffn_dim"] = size_of(shapes, "blocks.0.mlp_channels.fc1.weight", 0, label)
        return fields, size_of(shapes, "blocks.0.mlp_channels.gate.proj.weight", 0, label)
    if family == "mlp_mixer":
        fields["tokens_mlp_dim"] = size_of(shapes, "blocks.0.mlp_tokens.fc1.weight", 0, label)
        fields["channels_mlp_dim"] = size_of(shapes, "blocks.0.mlp_channels.fc1.weight", 0, label)
        return fields, size_of(shapes, "blocks.0.mlp_tokens.fc1.weight", 1, label)
    fields["mlp_dim"] = size_of(shapes, "blocks.0.mlp.fc1.weight", 0, label)
    fields["num_heads"] = _num_heads(architecture, fields, args, notes, label)
    fields["pool_type"] = _pool_type(shapes, config, args, label)
    fields["posemb"] = "learned" if "pos_embed" in shapes else "none"
    fields["norm_after_pooling"] = "fc_norm.weight" in shapes
    fields["rep_size"] = size_of(shapes, "pre_logits.fc.weight", 0, label, missing=0)
    if "blocks.0.ls1.gamma" in shapes:
        fields["layer_scale"] = float(value_of(args, "init_values", (float, int), label) or LAYER_SCALE)
    if "pos_embed" not in shapes:
        return fields, None
    tokens, has_class = size_of(shapes, "pos_embed", 1, label), fields["pool_type"] == "cls"
    patches = tokens - 1 if has_class and is_square(tokens - 1) else tokens
    return fields, patches


def _activation(
    act_layer: str | None, architecture: str, fields: Mapping[str, Any], notes: Notes, label: str
) -> dict[str, str]:
    if act_layer is not None:
        if act_layer == "relu":
            return {"activation": "relu"}
        if act_layer not in GELU:
            raise UserError(f"{label}: act_layer={act_layer[:80]!r} is not available; known: relu, {', '.join(GELU)}")
        return {"activation": "gelu", "gelu": GELU[act_layer]}
    relu = convmixer.VARIANTS["768/32"]
    if architecture.startswith("convmixer_"):
        return {"activation": "relu" if architecture.startswith("convmixer_768_32") else "gelu"}
    is_relu = all(fields[name] == relu[name] for name in ("depth", "hidden_dim"))
    notes.assume(f"activation {'relu, as of ConvMixer-768/32' if is_relu else 'gelu'}, for the file has none")
    return {"activation": "relu" if is_relu else "gelu"}


def _num_heads(architecture: str, fields: Mapping[str, Any], args: Mapping[str, Any], notes: Notes, label: str) -> int:
    """Return the heads of the configuration, of the architecture, of a published size, or else width / 64."""
    if (heads := value_of(args, "num_heads", int, label)) is not None:
        return heads
    if architecture in EXCEPTIONS:
        return EXCEPTIONS[architecture]
    if match := re.search(rf"(?:^|_)({'|'.join(NUM_HEADS)})(?=_|$)", architecture):
        return NUM_HEADS[match[1]]
    return assume_heads(fields["hidden_dim"], fields["depth"], fields["mlp_dim"], notes, label)


def _pool_type(shapes: Mapping[str, Shape], config: Mapping[str, Any], args: Mapping[str, Any], label: str) -> str:
    """Return how the tokens are pooled, by the entries; `global_pool` must agree.

    Raises:
      UserError: another pooling, or the mean of the patches beside a class token, which no network here has.
    """
    global_pool = value_of(args, "global_pool", str, label) or value_of(config, "global_pool", str, label)
    pools = {theirs: ours for ours, theirs in POOLS.items()}
    if global_pool and global_pool not in pools:
        raise UserError(f"{label}: global_pool={global_pool[:80]!r} is not available; known: {', '.join(pools)}")
    by_entries = "map" if "attn_pool.latent" in shapes else "cls" if "cls_token" in shapes else "gap"
    pool_type = pools.get(global_pool or "", by_entries)
    if pool_type == "cls" and not global_pool and "fc_norm.weight" in shapes:
        pool_type = "gap"
    if pool_type != "cls" and "cls_token" in shapes:
        raise UserError(
            f"{label} has the entry 'cls_token' and pools by global_pool={POOLS[pool_type]}; a network with a class "
            "token that does not classify by it is not available"
        )
    if pool_type != by_entries:
        raise UserError(
            f"{label}: global_pool={global_pool[:80]!r} does not go with its entries, which are of {by_entries}"
        )
    return pool_type


def _image_size(patch_size: int, patches: int | None, cfg: Mapping[str, Any], notes: Notes, label: str) -> int:
    size = numbers_of(cfg, "input_size", label)
    if patches is not None or size is None:
        return image_size_of(patches, patch_size, notes, label)
    if len(size) != 3 or size[1] != size[2] or size[1] != int(size[1]):
        raise UserError(f"{label}: input_size={list(size)} is no square [channels, height, width]")
    return int(size[1])


def _with_class_position(shapes: dict[str, Shape], patches: int) -> dict[str, Shape]:
    """Return the shapes with a position of the class token, which timm's `no_embed_class` omits: it is zero."""
    first, tokens, *rest = shapes["pos_embed"]
    has_class = "cls_token" in shapes and tokens == patches
    return shapes | {"pos_embed": (first, tokens + has_class, *rest)}


def _preprocessing(cfg: Mapping[str, Any], notes: Notes, label: str) -> Preprocessing:
    if (mode := value_of(cfg, "crop_mode", str, label)) not in (None, "center"):
        notes.assume(f"a center crop, for crop_mode {mode!r} is not available")
    return Preprocessing(
        numbers_of(cfg, "mean", label),
        numbers_of(cfg, "std", label),
        value_of(cfg, "crop_pct", (float, int), label),
        value_of(cfg, "interpolation", str, label),
    )
