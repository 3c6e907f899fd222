"""What a reader of a layout returns: a network, its preprocessing and classes, and its weights when they are needed."""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from patchnets import models
from patchnets.errors import RunError, UserError, first_line
from patchnets.run.model_spec import ModelSpec, plain_fields
from patchnets.weights.files import Header

Variables = dict[str, Any]
MAX_DEPTH = 1000  # blocks of a network that a file may describe


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights that were trained before, and what they are weights of. The file is read when `variables` are needed.

    Attributes:
      spec: the network, its classes and preprocessing.
      layout: whose names the file has.
      source: what was read, as an absolute path or an id of the hub.
      path: the file or folder itself.
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
) -> ModelSpec:
    """Return the spec of a network; what `preprocessing` omits is taken from `default`, and noted.

    `label` is what errors call the file.

    Raises:
      UserError: there is no such network, or a value that cannot be used.
    """
    values: dict[str, Any] = {}
    for name, value in dataclasses.asdict(preprocessing).items():
        values[name] = getattr(default, name) if value is None else value
        if value is None:
            notes.assume(f"{name} {values[name]}, for the file has none")
    if values["interpolation"] not in ("bicubic", "bilinear"):
        notes.assume(f"interpolation bicubic, for {values['interpolation']!r} is not available")
        values["interpolation"] = "bicubic"
    models.validate(image_size, network, **fields)
    spec = ModelSpec(
        network=network,
        fields=plain_fields(network, models.create_model(network, num_classes=len(classes), **fields)),
        classes=classes,
        loss="softmax",
        channels=channels,
        decoded_size=image_size,
        decoded_crop_pct=values["crop_pct"],
        image_size=image_size,
        crop_pct=1.0,
        mean=_per_channel(values["mean"], channels, "mean"),
        std=_per_channel(values["std"], channels, "std"),
        interpolation=values["interpolation"],
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


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
      RunError: it cannot be read, or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({first_line(error, 200)})") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no JSON object, but a {type(content).__name__}")
    return content


def value_of(content: Mapping[str, Any], name: str, kind: type | tuple[type, ...], label: str) -> Any:
    """Return an entry of a JSON object, None if it is missing or null.

    Raises:
      UserError: it is of another type.
    """
    value = content.get(name)
    expected = kind if isinstance(kind, tuple) else (kind,)
    if value is None or (isinstance(value, expected) and (type(value) is not bool or bool in expected)):
        return value
    raise UserError(f"{label}: {name}={str(value)[:80]!r} is no {expected[0].__name__}")


def numbers_of(content: Mapping[str, Any], name: str, label: str) -> tuple[float, ...] | None:
    """Return a list of numbers of a JSON object; a number as a list of one. Raise UserError for anything else."""
    value = content.get(name)
    values: list[Any] = value if isinstance(value, list) else [value]
    if value is None:
        return None
    if not values or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
        raise UserError(f"{label}: {name}={str(value)[:80]!r} is no list of numbers")
    return tuple(values)


def square_side(count: int, name: str) -> int:
    """Return the side of a square grid of `count` patches. Raise UserError if they form none."""
    side = math.isqrt(count)
    if count < 1 or side * side != count:
        raise UserError(f"{name!r} is for {count} patches, which form no square; only square images are supported")
    return side
