"""ViT and DINOv2 in the layout of Hugging Face's transformers: config.json and model.safetensors."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from patchnets.errors import UserError
from patchnets.weights import files
from patchnets.weights.class_names import class_names
from patchnets.weights.json_values import numbers_of, value_of
from patchnets.weights.layout import (
    HALF,
    Notes,
    Preprocessing,
    Pretrained,
    Shape,
    Variables,
    architecture_of,
    assume_heads,
    depth_of,
    is_square,
    make_spec,
    size_of,
    square_side,
)
from patchnets.weights.load_timm import (
    CONV,
    DENSE,
    FROM_HEADS,
    NORM,
    PLAIN,
    Layers,
    match_entries,
    to_heads,
    to_variables,
    variable_shapes,
)

STEM = "embeddings.patch_embeddings.projection"
ATTENTION = "encoder.layer.{i}.attention.attention."
BOTH: Layers = {
    "stem": (STEM, CONV),
    "class_token": ("embeddings.cls_token", PLAIN),
    "position_embedding": ("embeddings.position_embeddings", PLAIN),
    "VitBlock_{i}/attention/query": (ATTENTION + "query", to_heads()),
    "VitBlock_{i}/attention/key": (ATTENTION + "key", to_heads()),
    "VitBlock_{i}/attention/value": (ATTENTION + "value", to_heads()),
    "VitBlock_{i}/attention/out": ("encoder.layer.{i}.attention.output.dense", FROM_HEADS),
    "pre_head_layer_norm": ("layernorm", NORM),
}
LAYERS: dict[str, Layers] = {
    "vit": {
        **BOTH,
        "VitBlock_{i}/attention_norm": ("encoder.layer.{i}.layernorm_before", NORM),
        "VitBlock_{i}/mlp_norm": ("encoder.layer.{i}.layernorm_after", NORM),
        "VitBlock_{i}/mlp/Dense_0": ("encoder.layer.{i}.intermediate.dense", DENSE),
        "VitBlock_{i}/mlp/Dense_1": ("encoder.layer.{i}.output.dense", DENSE),
    },
    "dinov2": {
        **BOTH,
        "VitBlock_{i}/attention_norm": ("encoder.layer.{i}.norm1", NORM),
        "VitBlock_{i}/attention_scale": ("encoder.layer.{i}.layer_scale1.lambda1", PLAIN),
        "VitBlock_{i}/mlp_norm": ("encoder.layer.{i}.norm2", NORM),
        "VitBlock_{i}/mlp/Dense_0": ("encoder.layer.{i}.mlp.fc1", DENSE),
        "VitBlock_{i}/mlp/Dense_1": ("encoder.layer.{i}.mlp.fc2", DENSE),
        "VitBlock_{i}/mlp_scale": ("encoder.layer.{i}.layer_scale2.lambda1", PLAIN),
    },
}
EPSILON = {"vit": 1e-12, "dinov2": 1e-6}  # transformers' own where the configuration has none
LEFTOVERS = re.compile(r"(^|\.)(pooler\.dense\.(weight|bias)|embeddings\.mask_token)$")
GELU = {"gelu": "exact", "gelu_python": "exact", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
DEFAULT = {
    "vit": Preprocessing(HALF, HALF, 1.0, "bilinear"),
    "dinov2": Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875, "bicubic"),
}


def is_layout(header: files.Header) -> bool:
    """Return whether a file has the names of transformers' ViT or DINOv2."""
    return any(name.endswith(f"{STEM}.weight") for name in header)


def read(
    path: pathlib.Path,
    config: Mapping[str, Any] | None = None,
    processor: Mapping[str, Any] | None = None,
    *,
    source: str,
    network: str | None = None,
) -> Pretrained:
    """Return the weights in a safetensors file of transformers' ViT or DINOv2.

    Args:
      path: the file.
      config: the content of config.json; None for a bare file.
      processor: the content of preprocessor_config.json; None if there is none.
      source: what to call the weights.
      network: as for `timm_folder.read`.

    Raises:
      UserError: no network of ours fits the entries.
      RunError: the file's header is broken, or has entries that are no floating-point numbers.
    """
    config, header, label = config or {}, files.read_header(path, safetensors=True), str(path)
    notes = Notes(leftovers=list(filter(LEFTOVERS.search, header)))
    shapes = {name: shape for name, (shape, _) in header.items() if name not in notes.leftovers}
    files.check_floats(path, {name: header[name] for name in shapes})
    architecture_of({}, "vit", network, label)
    prefix = next(name for name in shapes if name.endswith(f"{STEM}.weight")).removesuffix(f"{STEM}.weight")
    kind = "vit" if f"{prefix}encoder.layer.0.layernorm_before.weight" in shapes else "dinov2"
    stated = value_of(config, "model_type", str, label)
    if stated not in (None, kind):
        raise UserError(
            f"{label}: model_type={stated[:80]!r} is not available, or not that of its entries; known: vit, dinov2"
        )
    layers = {ours: (prefix + theirs, leaves) for ours, (theirs, leaves) in LAYERS[kind].items()}
    layers["head"] = ("classifier", DENSE)
    fields, patches = _fields(shapes, prefix, kind, config, notes, label)
    image_size = fields["patch_size"] * square_side(patches, label)
    num_classes = size_of(shapes, "classifier.weight", 0, label, missing=0)
    spec = make_spec(
        "vit",
        fields,
        image_size=image_size,
        channels=size_of(shapes, f"{prefix}{STEM}.weight", 1, label),
        classes=class_names(num_classes, config.get("id2label"), notes, label),
        preprocessing=_preprocessing(processor, image_size, notes, label),
        default=DEFAULT[kind],
        notes=notes,
        label=label,
    )
    model = spec.create_model()
    ours = variable_shapes(model, image_size, spec.channels)
    sources = match_entries(model, layers, shapes, ours, label)

    def load() -> tuple[Variables, None]:
        entries: dict[str, np.ndarray] = files.read_floats(path, shapes, safetensors=True)
        return {"batch_stats": {}} | to_variables(entries, sources, ours), None

    layout = f"transformers ({kind})"
    return Pretrained(
        spec, layout, source, path, path, header, load, assumed=tuple(notes.assumed), leftovers=tuple(notes.leftovers)
    )


def _fields(
    shapes: Mapping[str, Shape], prefix: str, kind: str, config: Mapping[str, Any], notes: Notes, label: str
) -> tuple[dict[str, Any], int]:
    """Return the fields of a ViT, and the number of its patches."""
    stem, layer = f"{prefix}{STEM}.weight", f"{prefix}encoder.layer."
    patch = size_of(shapes, stem, 3, label)
    if patch != shapes[stem][2]:
        raise UserError(f"{label}: {stem!r} of shape {shapes[stem]} has patches that are not square")
    up = LAYERS[kind]["VitBlock_{i}/mlp/Dense_0"][0].format(i=0)
    fields = dict(
        patch_size=patch,
        hidden_dim=shapes[stem][0],
        depth=depth_of(shapes, re.escape(layer) + r"(\d+)\.", label),
        mlp_dim=size_of(shapes, f"{prefix}{up}.weight", 0, label),
        pool_type="cls",
        **_settings(config, kind, notes, label),
    )
    heads = value_of(config, "num_attention_heads", int, label)
    sizes = (fields["hidden_dim"], fields["depth"], fields["mlp_dim"])
    fields["num_heads"] = assume_heads(*sizes, notes, label) if heads is None else heads
    if kind == "dinov2":
        fields["layer_scale"] = float(value_of(config, "layerscale_value", (float, int), label) or 1.0)
    positions = f"{prefix}embeddings.position_embeddings"
    tokens = size_of(shapes, positions, 1, label)
    if not is_square(tokens - 1):
        raise UserError(
            f"{label}: {positions!r} is for {tokens} tokens; expected a class token and a square of patches"
        )
    return fields, tokens - 1


def _settings(config: Mapping[str, Any], kind: str, notes: Notes, label: str) -> dict[str, Any]:
    """Return the fields that no shape shows: GELU's form and LayerNorm's epsilon."""
    act, epsilon = value_of(config, "hidden_act", str, label), value_of(config, "layer_norm_eps", (float, int), label)
    if act is None or epsilon is None:
        act, epsilon = act or "gelu", EPSILON[kind] if epsilon is None else epsilon
        notes.assume(f"hidden_act {act} and layer_norm_eps {epsilon}, for the configuration does not have both")
    if act not in GELU:
        raise UserError(f"{label}: hidden_act={act[:80]!r} is not available; known: {', '.join(GELU)}")
    return dict(gelu=GELU[act], norm_epsilon=float(epsilon))


def _preprocessing(processor: Mapping[str, Any] | None, image_size: int, notes: Notes, label: str) -> Preprocessing:
    """Return the preprocessing of a preprocessor_config.json. Raise UserError for a value of another kind."""
    if processor is None:
        return Preprocessing()
    label = f"{label}: preprocessor"
    resample = value_of(processor, "resample", int, label)
    mean, std = numbers_of(processor, "image_mean", label), numbers_of(processor, "image_std", label)
    if value_of(processor, "do_normalize", bool, label) is False:
        mean, std = (0.0,), (1.0,)
    size, crop_pct = _side(processor, "size", label), 1.0
    if value_of(processor, "do_center_crop", bool, label):
        crop = _side(processor, "crop_size", label) or image_size
        crop_pct = min(1.0, crop / (size or crop))
        size = crop
    else:
        notes.assume("the center square of an image, for squeezing all of it into a square is not available")
    if size not in (None, image_size):
        notes.assume(
            f"image_size {image_size}, that of the position embeddings; the preprocessor makes {size:g} px, to which "
            "transformers adapts them by the rule bicubic_no_antialias (image_size and resize)"
        )
    return Preprocessing(mean, std, crop_pct, None if resample is None else RESAMPLE.get(resample, str(resample)))


def _side(processor: Mapping[str, Any], name: str, label: str) -> float | None:
    """Return the side in pixels of a size: a number, or an object with shortest_edge, or height and width."""
    size = processor.get(name)
    size = size if isinstance(size, Mapping) else {"height": size}
    sides = numbers_of(size, "shortest_edge" if "shortest_edge" in size else "height", label)
    if sides is not None and not sides[0] > 0:
        raise UserError(f"{label}: {name} of {sides[0]} pixels is no size")
    return None if sides is None else sides[0]
