"""model.json: everything besides the weights that using a trained network takes.

It is written at the start of a run. With it a work directory needs neither its data set nor its configuration file to
classify new images.
"""

import dataclasses
import json
import math
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from patchnets import __version__, models
from patchnets import config as config_lib
from patchnets.augment.preprocess import Preprocess
from patchnets.config.schema import KEYS, LARGEST_FLOAT
from patchnets.data.bit_depth import ValueRanges
from patchnets.data.decode import INTERPOLATIONS
from patchnets.data.options import is_range
from patchnets.data.pixel_rules import BACKGROUNDS, PixelRules
from patchnets.errors import UserError, first_line
from patchnets.experiment import Experiment

FILE_NAME = "model.json"
FORMAT = 1  # changes when an older patchnets could misread the file
LOSSES = ("softmax", "sigmoid")
# What was done before a file had these keys.
OLDER_DEFAULTS = {name: config_lib.OLDER_DEFAULTS[f"dataset.{name}"] for name in ("exif_orientation", "background")}


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A trained network, what its outputs mean, and how images become its inputs.

    Attributes:
      network: its name in `models.MODELS`.
      fields: every field of the network that a configuration may set.
      classes: names, in the order of the logits; none for a network without a head, whose outputs are features.
      loss: softmax or sigmoid, the function that turns logits into probabilities.
      channels: 1 for gray, 3 for RGB, others for arrays.
      decoded_size: side in pixels to which an image's center square is resized when it is decoded (by Pillow).
      decoded_crop_pct: side of that square as a share of the image's shorter side.
      image_size: side in pixels of the network's inputs.
      crop_pct: share of the decoded side kept by the center crop before resizing to `image_size`.
      mean, std: per channel, on the scale 0 to 255.
      interpolation: bicubic or bilinear, that of decoding.
      shorter_side: in place of `decoded_crop_pct`, the pixels to which an image's shorter side is resized, of which the
        center square of `decoded_size` is cut (timm's rule).
      exif_orientation, background, value_ranges, level_bits: as in `patchnets.data.pixel_rules.PixelRules`.
      ema: whether checkpoints hold a running mean of the variables, by which the network is evaluated.
      best_metric: validation metric that selects the best checkpoint.
      dataset: name, split_specs and fingerprint of the training data.
      versions: of the packages that made it.
    """

    network: str
    fields: dict[str, Any]
    classes: tuple[str, ...]
    loss: str
    channels: int
    decoded_size: int
    decoded_crop_pct: float
    image_size: int
    crop_pct: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    shorter_side: int | None = None
    exif_orientation: bool = True
    background: str = "white"
    value_ranges: ValueRanges | None = None
    level_bits: int = 8
    ema: bool = False
    best_metric: str = "accuracy"
    dataset: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of_experiment(cls, experiment: Experiment) -> "ModelSpec":
        """Return the spec of the network that a run trains."""
        config, data, model = experiment.config, experiment.data, experiment.model
        streaming = data.preprocess.cropped  # images are cropped to the input size while they are decoded
        return cls(
            network=config.model.name,
            fields=plain_fields(config.model.name, model),
            classes=data.class_names,
            loss=config.loss,
            channels=data.channels,
            decoded_size=config.image_size if streaming else data.stored_size,
            decoded_crop_pct=config.crop_pct if streaming else 1.0,
            image_size=config.image_size,
            crop_pct=1.0 if streaming else config.crop_pct,
            mean=data.preprocess.mean,
            std=data.preprocess.std,
            exif_orientation=config.dataset.exif_orientation,
            background=config.dataset.background,
            value_ranges=data.value_ranges,
            level_bits=data.level_bits,
            ema=config.ema_decay is not None,
            best_metric=config.checkpoint.best_metric,
            dataset={"name": config.dataset.name, "splits": data.split_specs, "fingerprint": data.fingerprint},
            versions={"patchnets": __version__, "jax": jax.__version__, "python": platform.python_version()},
        )

    def create_model(self) -> nn.Module:
        """Return the network. Raise UserError if this version of patchnets has none of that name and fields."""
        kinds = models.all_config_fields()
        for name in self.fields.keys() & kinds.keys():
            value, kind = self.fields[name], kinds[name][0]
            if not isinstance(value, (int, float) if kind is float else kind) or (type(value) is bool) != (
                kind is bool
            ):
                raise UserError(
                    f"{name}={repr(value)[:80]} is no {kind.__name__}, which this field of {self.network} is"
                )
        models.validate(self.image_size, self.network, **self.fields)
        return models.create_model(self.network, **self.fields, num_classes=len(self.classes))

    @property
    def rules(self) -> PixelRules:
        """Which pixels a file stands for."""
        return PixelRules(self.exif_orientation, self.background, self.value_ranges, self.level_bits)

    @property
    def preprocess(self) -> Preprocess:
        """Decoded images to inputs of the network, on the device, as in the evaluation of training."""
        return Preprocess(self.image_size, self.mean, self.std, crop_pct=self.crop_pct)

    def to_json(self) -> dict[str, Any]:
        """Return the content of model.json."""
        return {"format": FORMAT} | dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Any, label: str) -> "ModelSpec":
        """Return the spec of a model.json's content, called `label` in errors.

        Raises:
          UserError: it is of another format, misses something, or holds a value that cannot be used.
        """
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            written = content.get("format") if isinstance(content, Mapping) else None
            raise UserError(
                f"{label} is of format {repr(written)[:80]}; this version of patchnets reads format {FORMAT}"
            )
        values = OLDER_DEFAULTS | {name: value for name, value in content.items() if name != "format"}
        known = {field.name: field for field in dataclasses.fields(cls)}
        required = {name for name, field in known.items() if _required(field)}
        if wrong := (set(values) - set(known)) | (required - set(values)):
            raise UserError(f"{label} does not have the keys of this version of patchnets: {', '.join(sorted(wrong))}")
        for name in ("classes", "mean", "std"):
            if isinstance(values[name], list):
                values[name] = tuple(values[name])
        if isinstance(pairs := values.get("value_ranges"), list):
            values["value_ranges"] = tuple(tuple(pair) if isinstance(pair, list) else pair for pair in pairs)
        spec = cls(**values)
        spec.check(label)
        return spec

    def check(self, label: str) -> None:
        """Raise UserError, which calls the file `label`, for a value that cannot be used."""
        for name, holds, expected in self._checks():
            if not holds:
                raise UserError(
                    f"{label}: {name}={repr(getattr(self, name))[:200]} cannot be used; expected {expected}"
                )

    def _checks(self) -> list[tuple[str, bool, str]]:
        """Return (attribute, whether its value can be used, the expected value) of what a file may get wrong."""

        def of(kind: type, values: Any) -> bool:
            return isinstance(values, tuple) and all(isinstance(value, kind) for value in values)

        def size_in_pixels(value: Any) -> bool:
            return type(value) is int and KEYS["image_size"].rule[1](value)

        def covers(side: Any) -> bool:
            return size_in_pixels(side) and not (size_in_pixels(self.decoded_size) and side < self.decoded_size)

        def share(value: Any) -> bool:
            return isinstance(value, int | float) and 0 < value <= 1

        def per_channel(values: Any, least: float) -> bool:
            is_number = lambda value: isinstance(value, int | float) and abs(value) <= LARGEST_FLOAT
            numbers = isinstance(values, tuple) and all(map(is_number, values))
            return numbers and len(values) == self.channels and min(values) > least

        def ranges(pairs: Any) -> bool:
            return of(tuple, pairs) and len(pairs) in (1, self.channels) and all(map(is_range, pairs))

        return [
            ("network", self.network in tuple(models.MODELS), f"one of {', '.join(models.MODELS)}"),
            ("fields", isinstance(self.fields, Mapping), "the fields of a network"),
            ("classes", of(str, self.classes) and len(set(self.classes)) == len(self.classes), "different names"),
            ("classes", bool(self.classes) or not self.dataset, "names, for a run has classes"),
            ("loss", self.loss in LOSSES, " or ".join(LOSSES)),
            ("channels", type(self.channels) is int and self.channels > 0, "a number of at least 1"),
            ("decoded_size", size_in_pixels(self.decoded_size), KEYS["image_size"].rule[0]),
            ("image_size", size_in_pixels(self.image_size), KEYS["image_size"].rule[0]),
            ("decoded_crop_pct", share(self.decoded_crop_pct), "a number above 0 and at most 1"),
            ("crop_pct", share(self.crop_pct), "a number above 0 and at most 1"),
            ("mean", per_channel(self.mean, -math.inf), "a number for each channel"),
            ("std", per_channel(self.std, 0.0), "a number above 0 for each channel"),
            ("shorter_side", self.shorter_side is None or covers(self.shorter_side), "pixels, at least decoded_size"),
            ("interpolation", self.interpolation in tuple(INTERPOLATIONS), " or ".join(INTERPOLATIONS)),
            ("exif_orientation", isinstance(self.exif_orientation, bool), "true or false"),
            ("background", self.background in (*BACKGROUNDS, "none"), "white, black or none"),
            (
                "value_ranges",
                self.value_ranges is None or ranges(self.value_ranges),
                "pairs of lowest and highest values",
            ),
            ("level_bits", self.level_bits in (8, 16), "8 or 16"),
            ("ema", isinstance(self.ema, bool), "true or false"),
            ("best_metric", self.best_metric in ("accuracy", "top5_accuracy", "loss"), "a validation metric"),
            ("dataset", isinstance(self.dataset, Mapping), "an object"),
            ("versions", isinstance(self.versions, Mapping), "an object"),
        ]


def plain_fields(name: str, network: Any) -> dict[str, Any]:
    """Return every field of a network, `name` in `models.MODELS`, that a configuration may set, as JSON holds it."""
    return {field: _plain(getattr(network, field)) for field in models.config_fields(name)}


def _plain(value: Any) -> Any:
    """Return the value of a field as JSON holds it: a dtype by its name."""
    return value if value is None or isinstance(value, bool | int | float | str) else jnp.dtype(value).name


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def read_model_spec(directory: pathlib.Path) -> ModelSpec:
    """Return the spec in a folder's model.json.

    Raises:
      UserError: it cannot be read, or not be used.
      FileNotFoundError: there is none.
    """
    path = directory / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)})") from error
    return ModelSpec.from_json(content, str(path))
