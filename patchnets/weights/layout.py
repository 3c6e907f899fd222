"""What a reader of a layout returns: a network, its preprocessing and classes, and its weights when they are needed."""

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from patchnets import models
from patchnets.config.schema import LARGEST_INT
from patchnets.errors import UserError
from patchnets.models import vit
from patchnets.run.model_spec import ModelSpec, plain_fields
from patchnets.runtime.format import list_names
from patchnets.weights import files
from patchnets.weights.files import Header
from patchnets.weights.json_values import value_of

Variables = dict[str, Any]
Shape = tuple[int, ...]
HALF = (0.5, 0.5, 0.5)  # mean or std of many weights, for levels from 0 to 1
# How timm's names of architectures begin.
ARCHITECTURES = {
    "mixer_": "mlp_mixer",
    "gmlp_": "gmlp",
    "convmixer_": "convmixer",
    **dict.fromkeys(("vit_", "deit", "flexivit_", "test_vit"), "vit"),
}
IMAGE_SIZE = 224  # where neither shapes nor configuration say one
MAX_DEPTH = 1000  # blocks of a network that a file may describe


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights that were trained before, and what they are weights of. The file is read when `variables` are needed.

    Attributes:
      spec: the network, its classes and preprocessing.
      layout: whose names the file has.
      source: what was read, as an absolute path or an id of the hub.
      path: the file or folder itself.
      file: the file of arrays; None for a checkpoint of a run.
      header: shape and type of every array, by its name in the file.
      load: returns {"params", "batch_stats"}, float32 NumPy arrays without stacked blocks, and the step of the
        checkpoint, None if unknown.
      assumed: lines that say what the file does not say, and was assumed.
      leftovers: arrays of the file that the network has no use for.
    """

    spec: ModelSpec
    layout: str
    source: str
    path: pathlib.Path
    file: pathlib.Path | None
    header: Header
    load: Callable[[], tuple[Variables, int | None]]
    assumed: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()

    @functools.cached_property
    def _loaded(self) -> tuple[Variables, int | None]:
        return self.load()

    @property
    def variables(self) -> Variables:
        """Return {"params", "batch_stats"}. Raise RunError if the file is broken or a number in it is not finite."""
        return self._loaded[0]

    @property
    def step(self) -> int | None:
        """Return the step of the checkpoint; None if unknown."""
        return self._loaded[1]

    @property
    def notes(self) -> tuple[str, ...]:
        """Return lines on what was assumed and what was left out."""
        left_out = (f"left out: {list_names(self.leftovers)}",) if self.leftovers else ()
        return (*(f"assumed: {line}" for line in self.assumed), *left_out)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield every array as the file has it, with its name, and keep none in memory.

        Raises:
          RunError: the file is broken.
        """
        if self.file is None:
            yield from traverse_util.flatten_dict(self.variables, sep="/").items()
        else:
            yield from files.iterate(self.file)

    @property
    def network(self) -> str:
        return self.spec.network

    @property
    def fields(self) -> dict[str, Any]:
        return self.spec.fields

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    @property
    def image_size(self) -> int:
        return self.spec.image_size

    @property
    def channels(self) -> int:
        return self.spec.channels

    @property
    def mean(self) -> tuple[float, ...]:
        return self.spec.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.spec.std

    @property
    def crop_pct(self) -> float:
        """Return the share of the shorter side that the center crop keeps, over decoding and resizing."""
        return self.spec.decoded_crop_pct * self.spec.crop_pct

    @property
    def interpolation(self) -> str:
        return self.spec.interpolation


@dataclasses.dataclass
class Notes:
    """What a reader assumes, and what it leaves out."""

    assumed: list[str] = dataclasses.field(default_factory=list)
    leftovers: list[str] = dataclasses.field(default_factory=list)

    def assume(self, line: str) -> None:
        self.assumed.append(line)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images become inputs, in timm's terms: mean and std of levels from 0 to 1; None for what a file omits."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None


def make_spec(
    network: str,
    fields: Mapping[str, Any],
    *,
    image_size: int,
    channels: int,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    default: Preprocessing,
    notes: Notes,
    label: str,
    resizes_first: bool = False,
    **rules: Any,
) -> ModelSpec:
    """Return the spec of a network; what `preprocessing` omits is taken from `default`, and noted.

    `label` is what errors call the file; `rules` are exif_orientation and background, where the file has them.
    `resizes_first`: images are resized to floor(image_size / crop_pct) pixels on the shorter side, and cut then.

    Raises:
      UserError: there is no such network, or a value that cannot be used.
    """
    stated = {name: value for name, value in dataclasses.asdict(preprocessing).items() if value is not None}
    values = dataclasses.asdict(default) | stated
    if missing := [f"{name} {value}" for name, value in values.items() if name not in stated]:
        notes.assume(f"{', '.join(missing)}, for the file has none")
    if values["interpolation"] not in ("bicubic", "bilinear"):
        notes.assume(f"interpolation bicubic, for {values['interpolation']!r} is not available")
        values["interpolation"] = "bicubic"
    models.validate(image_size, network, **fields)
    crop_pct = values["crop_pct"]
    shorter_side = math.floor(min(image_size / crop_pct, LARGEST_INT)) if resizes_first and 0 < crop_pct <= 1 else None
    spec = ModelSpec(
        network=network,
        fields=plain_fields(network, models.create_model(network, num_classes=len(classes), **fields)),
        classes=classes,
        loss="softmax",
        channels=channels,
        decoded_size=image_size,
        decoded_crop_pct=crop_pct,
        shorter_side=shorter_side,
        image_size=image_size,
        crop_pct=1.0,
        mean=_per_channel(values["mean"], channels, "mean"),
        std=_per_channel(values["std"], channels, "std"),
        interpolation=values["interpolation"],
        **rules,
    )
    spec.check(label)
    return spec


def _per_channel(levels: Sequence[float], channels: int, name: str) -> tuple[float, ...]:
    """Return mean or std of levels from 0 to 1 on the scale 0 to 255, for each channel; the mean of RGB for gray."""
    if channels == 1 and len(levels) == 3:
        levels = [sum(levels) / 3]
    if len(levels) == 1:
        levels = [*levels] * channels
    if len(levels) != channels:
        raise UserError(f"{name} {tuple(levels)} is for {len(levels)} channels, and the network takes {channels}")
    return tuple(float(level) * 255 for level in levels)


def square_side(count: int, name: str) -> int:
    """Return the side of a square grid of `count` patches. Raise UserError if they form none."""
    side = math.isqrt(count)
    if count < 1 or side * side != count:
        raise UserError(f"{name!r} is for {count} patches, which form no square; only square images are supported")
    return side


def is_square(count: int) -> bool:
    """Return whether `count` patches form a square grid."""
    return count > 0 and math.isqrt(count) ** 2 == count


def architecture_of(config: Mapping[str, Any], family: str, network: str | None, label: str) -> str:
    """Return timm's name of the architecture, without the tag of its weights; "" if nobody says it.

    Raises:
      UserError: `network` is of another family than the entries.
    """
    if network in models.MODELS:
        if network != family:
            raise UserError(f"{label} holds the weights of {family}, not of network={network}")
        network = None
    name = network or value_of(config, "architecture", str, label) or ""
    name = re.sub(r"^(hf-hub:)?timm[:/]", "", name).split(".")[0].lower()
    known = next((kind for start, kind in ARCHITECTURES.items() if name.startswith(start)), None)
    if known is None and network is not None:
        raise UserError(
            f"network={network!r} is neither one of {', '.join(models.MODELS)} nor an architecture of timm's"
        )
    if known not in (None, family):
        raise UserError(f"{label} holds the weights of {family}, not of the architecture {name}")
    return name


def image_size_of(patches: int | None, patch_size: int, notes: Notes, label: str) -> int:
    """Return the side in pixels of a square of `patches`; for None, a size near 224 is noted."""
    if patches is not None:
        return patch_size * square_side(patches, label)
    size = max(IMAGE_SIZE // patch_size, 1) * patch_size
    notes.assume(f"image_size {size}, for the file has none")
    return size


def size_of(shapes: Mapping[str, Shape], name: str, axis: int, label: str, missing: int | None = None) -> int:
    """Return the length of an axis of an entry; `missing`, unless it is None, where there is no such entry.

    Raises:
      UserError: the entry is missing or has fewer axes.
    """
    if missing is not None and name not in shapes:
        return missing
    if len(shapes.get(name, ())) <= axis:
        reason = f"{name!r} has shape {shapes[name]}" if name in shapes else f"there is no {name!r}"
        raise UserError(f"{label} is no network of a known layout: {reason}")
    return shapes[name][axis]


def depth_of(shapes: Mapping[str, Shape], pattern: str, label: str) -> int:
    """Return the number of blocks, of which the first group of `pattern` is the index."""
    blocks = {int(match[1]) for name in shapes if (match := re.match(pattern, name)) and len(match[1]) < 10}
    if not 0 < len(blocks) <= MAX_DEPTH or max(blocks) != len(blocks) - 1:
        raise UserError(f"{label} has {len(blocks):,} blocks; expected from 1 to {MAX_DEPTH:,}, counted from 0")
    return len(blocks)


def assume_heads(width: int, depth: int, mlp_dim: int, notes: Notes, label: str) -> int:
    """Return the heads of the published ViT of this size, or else width / 64; both are noted.

    Raises:
      UserError: the width does not divide by 64.
    """
    for name, size in vit.SIZES.items():
        if (size["hidden_dim"], size["depth"], size["mlp_dim"]) == (width, depth, mlp_dim):
            notes.assume(f"num_heads {size['num_heads']}, as of ViT-{name}, for the file has none")
            return size["num_heads"]
    if width % 64:
        raise UserError(
            f"{label} does not say how many heads its attention has; name the architecture (network=NAME; of a run, "
            "config.init.network=NAME)"
        )
    notes.assume(f"num_heads {width // 64}, 64 channels each, for the file has none")
    return width // 64
