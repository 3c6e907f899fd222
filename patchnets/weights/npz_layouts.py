"""Official .npz checkpoints of MLP-Mixer and ViT, in all the layouts in which they were published.

Mixer: that of its paper's code, and an older one in which an encoder holds the blocks. ViT: vision_transformer's,
the same within an optimizer (opt/target/), big_vision's (params/), and blocks stacked along a first axis.
"""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from patchnets.errors import UserError
from patchnets.weights import files
from patchnets.weights.class_names import class_names
from patchnets.weights.layout import (
    HALF,
    MAX_DEPTH,
    Notes,
    Preprocessing,
    Pretrained,
    Variables,
    architecture_of,
    depth_of,
    image_size_of,
    is_square,
    make_spec,
    size_of,
)
from patchnets.weights.load_timm import Shape, variable_shapes

PREFIXES = ("opt/target/", "params/img/", "params/", "target/", "img/", "")
# Outside of the prefix: states of optimizers, the text tower of a pair of networks with its temperature.
LEFTOVERS = re.compile(r"^(opt|optimizer|extra|params/txt|txt)/|^(params/)?(t|b|step)$")
# Theirs -> ours; {i} is a block. Without a number, encoderblock holds all blocks, stacked.
BLOCK = r"Transformer/encoderblock(?:_(?P<i>\d+))?/"
VIT = {
    r"embedding/": "stem/",
    r"cls$": "class_token",
    r"(Transformer/(posembed_input/)?)?pos_embedding$": "position_embedding",
    BLOCK + "LayerNorm_0/": "VitBlock_{i}/attention_norm/",
    BLOCK + "MultiHeadDotProductAttention_[01]/": "VitBlock_{i}/attention/",
    BLOCK + "LayerNorm_[12]/": "VitBlock_{i}/mlp_norm/",
    BLOCK + "MlpBlock_[03]/": "VitBlock_{i}/mlp/",
    r"Transformer/encoder_norm/": "pre_head_layer_norm/",
    r"(MAPHead_0/)?probe$": "map_head/probe",
    r"(MAPHead_0/)?MultiHeadDotProductAttention_0/": "map_head/attention/",
    r"(MAPHead_0/)?LayerNorm_0/": "map_head/norm/",
    r"(MAPHead_0/)?MlpBlock_0/": "map_head/mlp/",
    r"pre_logits/": "representation/",
    r"head/": "head/",
}
OLD_BLOCK = r"Mixer/encoderblock_(?P<i>\d+)/"
MIXER = {
    r"(stem|embedding)/": "stem/",
    r"MixerBlock_(?P<i>\d+)/": "MixerBlock_{i}/",
    **{
        OLD_BLOCK + f"{kind}_mixing_phase_0/{leaf}{n}$": f"MixerBlock_{{i}}/{kind}_mixing/Dense_{n - 1}/{leaf}"
        for kind in ("token", "channel")
        for leaf in ("kernel", "bias")
        for n in (1, 2)
    },
    OLD_BLOCK + "LayerNorm_": "MixerBlock_{i}/LayerNorm_",
    r"(Mixer/encoder_norm|pre_head_layer_norm)/": "pre_head_layer_norm/",
    r"head/": "head/",
}
TABLES = {"vit": VIT, "mlp_mixer": MIXER}
DEFAULT = {"vit": Preprocessing(HALF, HALF, 0.9, "bicubic"), "mlp_mixer": Preprocessing(HALF, HALF, 0.875, "bicubic")}


class Location(NamedTuple):
    """An array of the file, and of stacked blocks the index of one."""

    entry: str
    block: int | None
    shape: Shape


def read(path: pathlib.Path, source: str, network: str | None = None) -> Pretrained:
    """Return the weights in an official .npz file.

    Args:
      network: timm's name of the architecture, or ours of the family, which the file must be of.

    Raises:
      UserError: no network of ours fits the arrays.
      RunError: the file's header is broken, or has arrays that are no floating-point numbers.
    """
    header, label = files.read_header(path, safetensors=False), str(path)
    stems = ("embedding/kernel", "stem/kernel")
    prefix = next((start for start in PREFIXES if any(start + stem in header for stem in stems)), None)
    if prefix is None:
        first = next(iter(header), "none")
        raise UserError(f"{label} is no official .npz of MLP-Mixer or ViT: its first array is {first!r}")
    notes = Notes()
    outside = [name for name in header if not prefix or not name.startswith(prefix)]
    notes.leftovers += filter(LEFTOVERS.search, outside)
    arrays = {name: header[name] for name in header if name not in notes.leftovers}
    files.check_floats(path, arrays)
    is_vit = any(name.startswith(prefix + "Transformer/") for name in arrays)
    family = "vit" if is_vit else "mlp_mixer"
    architecture_of({}, family, network, label)
    locations = _locations(arrays, prefix, family, label)
    shapes = {ours: location.shape for ours, location in locations.items()}
    fields, patches = _vit_fields(shapes, notes, label) if is_vit else _mixer_fields(shapes, label)
    image_size = image_size_of(patches, fields["patch_size"], notes, label)
    num_classes = size_of(shapes, "head/kernel", 1, label, missing=0)
    spec = make_spec(
        family,
        fields,
        image_size=image_size,
        channels=size_of(shapes, "stem/kernel", 2, label),
        classes=class_names(num_classes, None, notes, label),
        preprocessing=Preprocessing(),
        default=DEFAULT[family],
        notes=notes,
        label=label,
    )
    notes.assume("gelu tanh and norm_epsilon 1e-6, as of the official networks, for the file has none")
    expected = variable_shapes(spec.create_model(), image_size, spec.channels)
    padded = (
        patches is not None and fields.get("pool_type") == "cls" and shapes["position_embedding"][1:2] == (patches,)
    )
    _compare(locations, expected, padded, label)

    def load() -> tuple[Variables, None]:
        names = {location.entry for location in locations.values()}
        loaded, flat = files.read_floats(path, names, safetensors=False), {}
        for ours, shape in expected.items():
            entry, block, _ = locations[ours.removeprefix("params/")]
            array = loaded[entry] if block is None else loaded[entry][block]
            if padded and ours == "params/position_embedding":
                array = np.pad(array.reshape(1, -1, shape[2]), ((0, 0), (1, 0), (0, 0)))
            flat[ours] = np.array(array.reshape(shape), np.float32, order="C")
        return {"batch_stats": {}} | traverse_util.unflatten_dict(flat, sep="/"), None

    layout = "official .npz" + (f", {prefix}" if prefix else "")
    return Pretrained(
        spec, layout, source, path, path, header, load, assumed=tuple(notes.assumed), leftovers=tuple(notes.leftovers)
    )


def _locations(arrays: files.Header, prefix: str, family: str, label: str) -> dict[str, Location]:
    """Return {our parameter: where it is in the file}.

    Raises:
      UserError: an array is no parameter of this family, or two are of the same one.
    """
    locations: dict[str, Location] = {}
    for entry, (shape, _) in arrays.items():
        name = entry.removeprefix(prefix)
        rules = ((re.match(theirs, name), ours) for theirs, ours in TABLES[family].items())
        match, ours = next(((match, ours) for match, ours in rules if match), (None, ""))
        if match is None or not entry.startswith(prefix):
            raise UserError(
                f"{label} has an array {entry!r} of shape {shape}, for which no network here has a parameter"
            )
        ours = ours + name[match.end() :]
        parts = {ours: Location(entry, None, shape)}
        if "{i}" in ours:
            index = match["i"]
            blocks = range(min(shape[0], MAX_DEPTH + 1) if shape else 0) if index is None else [None]
            parts = {
                ours.replace("{i}", index if block is None else str(block)): Location(
                    entry, block, shape if block is None else shape[1:]
                )
                for block in blocks
            }
        for name in parts.keys() & locations.keys():
            raise UserError(f"{label} has two arrays for {name}: {locations[name].entry!r} and {entry!r}")
        locations |= parts
    return locations


def _ends(shapes: Mapping[str, Shape], block: str, label: str) -> dict[str, Any]:
    """Return the fields that both families have."""
    patch = size_of(shapes, "stem/kernel", 0, label)
    if patch != size_of(shapes, "stem/kernel", 1, label):
        raise UserError(f"{label}: its patches of shape {shapes['stem/kernel'][:2]} are not square")
    width, depth = size_of(shapes, "stem/kernel", 3, label), depth_of(shapes, rf"{block}_(\d+)/", label)
    return dict(patch_size=patch, hidden_dim=width, depth=depth, gelu="tanh")


def _mixer_fields(shapes: Mapping[str, Shape], label: str) -> tuple[dict[str, Any], int]:
    """Return the fields of a Mixer and the number of its patches."""
    kernel = _squeezed(shapes, "MixerBlock_0/token_mixing/Dense_0/kernel", label)
    channels = _squeezed(shapes, "MixerBlock_0/channel_mixing/Dense_0/kernel", label)
    fields = dict(tokens_mlp_dim=kernel[1], channels_mlp_dim=channels[1])
    return _ends(shapes, "MixerBlock", label) | fields, kernel[0]


def _squeezed(shapes: Mapping[str, Shape], name: str, label: str) -> Shape:
    """Return the two axes of a kernel that has others of length 1."""
    size_of(shapes, name, 1, label)
    axes = tuple(size for size in shapes[name] if size > 1)
    if len(shapes[name]) > 2 and len(axes) != 2:
        raise UserError(f"{label}: {name} of shape {shapes[name]} is no matrix")
    return shapes[name] if len(shapes[name]) == 2 else axes


def _vit_fields(shapes: Mapping[str, Shape], notes: Notes, label: str) -> tuple[dict[str, Any], int | None]:
    """Return the fields of a ViT, and the number of its patches if the file has positions."""
    fields = _ends(shapes, "VitBlock", label) | dict(
        mlp_dim=size_of(shapes, "VitBlock_0/mlp/Dense_0/kernel", 1, label),
        num_heads=size_of(shapes, "VitBlock_0/attention/query/kernel", 1, label),
        pool_type="map" if "map_head/probe" in shapes else "cls" if "class_token" in shapes else "gap",
        rep_size=size_of(shapes, "representation/kernel", 1, label, missing=0),
        posemb="learned" if "position_embedding" in shapes else "sincos2d",
    )
    if "position_embedding" not in shapes:
        notes.assume("posemb sincos2d, for the file has no position embeddings")
        return fields, None
    tokens = size_of(shapes, "position_embedding", 1, label)
    return fields, tokens - 1 if fields["pool_type"] == "cls" and is_square(tokens - 1) else tokens


def _compare(locations: Mapping[str, Location], expected: Mapping[str, Shape], padded: bool, label: str) -> None:
    """Raise UserError for the first array that is unused, missing or of another shape."""
    for ours, location in locations.items():
        if f"params/{ours}" not in expected:
            raise UserError(
                f"{label} has an array {location.entry!r} of shape {location.shape}, which the network of its other "
                "arrays does not have"
            )
    for path, shape in expected.items():
        ours = path.removeprefix("params/")
        if ours not in locations:
            raise UserError(
                f"{label} has no array for {ours} of shape {shape}, which the network of its other arrays needs"
            )
        actual = locations[ours].shape
        wanted = (1, shape[1] - 1, *shape[2:]) if padded and ours == "position_embedding" else shape
        if math.prod(actual) != math.prod(wanted) or [n for n in actual if n > 1] != [n for n in wanted if n > 1]:
            raise UserError(
                f"{label}: array {locations[ours].entry!r} has shape {actual}; expected {wanted} for {ours}"
            )
