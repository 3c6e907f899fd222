"""Every key a configuration may have: its default, what it means, and which values it takes.

This table is the only place that knows. `default_config` makes the ConfigDict that the files in configs/ start from,
`check` holds a finished configuration against it before anything is compiled, and `describe` prints it for --help.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from patchnets import models
from patchnets.errors import UserError

LARGEST_INT, LARGEST_FLOAT = 2**31 - 1, 3.4e38  # what 32 bits hold
Rule = tuple[str, Callable[[Any], bool]]  # what is expected, in words; whether a value is that


def at_least(low: float) -> Rule:
    return f"a number of at least {low}", lambda v: low <= v <= (LARGEST_INT if isinstance(v, int) else LARGEST_FLOAT)


def above(low: float) -> Rule:
    return f"a number above {low}", lambda v: low < v <= LARGEST_FLOAT


def within(low: float, high: float) -> Rule:
    """A number in [low, high)."""
    return f"a number from {low} up to, not including, {high}", lambda v: low <= v < high


def between(low: float, high: float) -> Rule:
    """A number in [low, high]."""
    return f"a number from {low} to {high}", lambda v: low <= v <= high


def inside(low: float, high: float) -> Rule:
    """A number in (low, high)."""
    return f"a number above {low} and below {high}", lambda v: low < v < high


def one_of(*names: str) -> Rule:
    return "one of " + ", ".join(names), lambda v: v in names


FINITE: Rule = ("a finite number", lambda v: abs(v) <= LARGEST_FLOAT)
RATIO: Rule = ("a number above 0 and at most 1", lambda v: 0 < v <= 1)
ANYTHING: Rule = ("anything", lambda v: True)
DEVICES: Rule = ("a number of devices of at least 1, or -1 for all", lambda v: v == -1 or v >= 1)


@dataclasses.dataclass(frozen=True)
class Key:
    """One key. A `default` that is a type means: of this type, and not set."""

    default: Any
    help: str
    rule: Rule = ANYTHING


KEYS: dict[str, Key] = {
    "seed": Key(0, "fixes initial parameters, data order, augmentation and dropout", within(0, 2**31)),
    "dataset.name": Key("digits", "digits, folder, or the name of a TFDS image classification data set"),
    "dataset.path": Key(str, "folder: where train/CLASS/*.jpg|png and optionally val/ and test/ lie"),
    "dataset.data_dir": Key(str, "TFDS: where data sets lie (default: TFDS_DATA_DIR or ~/tensorflow_datasets)"),
    "dataset.train_split": Key(str, "split to train on (default: train, less the validation split)"),
    "dataset.val_split": Key(str, "split to validate on, or none (default: the data set's own, else train[90%:])"),
    "dataset.test_split": Key(str, "split for the one test at the end, or none (default: test, where there is one)"),
    "dataset.cache_dir": Key(str, "where decoded images are kept (default: PATCHNETS_CACHE or ~/.cache/patchnets)"),
    "dataset.feed": Key(
        "auto",
        "resident: all images decoded once and kept on the devices; streaming: read while training; "
        "auto: resident where the decoded images take at most max_resident_gib",
        one_of("auto", "resident", "streaming"),
    ),
    "dataset.max_resident_gib": Key(8.0, "the most memory, in GiB, that resident images may take decoded", above(0)),
    "dataset.placement": Key(
        "replicated",
        "resident: every device holds all images (replicated), or its share of them (sharded)",
        one_of("replicated", "sharded"),
    ),
    "dataset.workers": Key(
        int, "streaming: processes that decode; 0 for none beside this (default: cores)", at_least(0)
    ),
    "dataset.corrupt": Key(
        "stop", "streaming: a record that cannot be decoded stops the run, or is skipped", one_of("stop", "skip")
    ),
    "image_size": Key(
        224, "height and width in pixels that the model sees; images are resized to it", between(1, 16_384)
    ),
    "normalize": Key(
        "symmetric",
        "symmetric: pixels to [-1, 1]; unit: to [0, 1]; imagenet: its mean and deviation; dataset: train's own",
        one_of("symmetric", "unit", "imagenet", "dataset"),
    ),
    "eval_crop": Key(1.0, "share of the side of evaluation images that is kept, about the centre", RATIO),
    "augment.flip": Key(False, "mirror half of the training images left to right"),
    "augment.flip_vertical": Key(False, "mirror half of the training images top to bottom"),
    "augment.crop_padding": Key(
        0, "pad by so many pixels of the stored image, and crop its size at random", at_least(0)
    ),
    "augment.crop_area": Key(1.0, "crop at random from this share of the image's area up to all, and resize", RATIO),
    "augment.crop_aspect": Key(
        4 / 3, "such a crop is at most so many times as wide as high, and the reverse", at_least(1)
    ),
    "augment.zoom": Key(0.0, "zoom training images in and out by up to this factor, as Keras RandomZoom", within(0, 1)),
    "augment.rotation": Key(0.0, "turn training images by up to this share of a full turn, each way", within(0, 1)),
    "augment.shear": Key(0.0, "shear training images by up to this slope, each way and along each axis", within(0, 1)),
    "augment.shift": Key(0.0, "move training images by up to this share of their size, each way", within(0, 1)),
    "augment.brightness": Key(0.0, "scale brightness by a factor from 1 - this to 1 + this", between(0, 1)),
    "augment.contrast": Key(0.0, "the same for contrast", between(0, 1)),
    "augment.saturation": Key(0.0, "the same for saturation", between(0, 1)),
    "augment.hue": Key(0.0, "turn hues by up to this share of the colour circle, each way", between(0, 0.5)),
    "augment.grayscale": Key(0.0, "probability of taking the colours away", between(0, 1)),
    "augment.policy": Key(
        "none",
        "none, randaugment, autoaugment_cifar10, autoaugment_imagenet, trivialaugment (gray images keep their colours)",
        one_of("none", "randaugment", "autoaugment_cifar10", "autoaugment_imagenet", "trivialaugment"),
    ),
    "augment.layers": Key(2, "randaugment: operations an image", between(1, 100)),
    "augment.magnitude": Key(
        9.0, "randaugment: their strength; 10 is the strongest of timm, and 30 of torchvision", between(0, 30)
    ),
    "augment.magnitude_std": Key(0.0, "randaugment: standard deviation of the strength", at_least(0)),
    "augment.ranges": Key(
        "timm",
        "randaugment: whose operations and ranges: timm (-inc1), torchvision (magnitudes to 30) or tensorflow",
        one_of("timm", "torchvision", "tensorflow"),
    ),
    "augment.policy_probability": Key(1.0, "randaugment: probability of each operation", between(0, 1)),
    "augment.erasing": Key(0.0, "probability of erasing a rectangle", between(0, 1)),
    "augment.erasing_mode": Key(
        "constant",
        "what an erased rectangle is filled with: constant (the mean), random (one colour) or pixel (noise)",
        one_of("constant", "random", "pixel"),
    ),
    "augment.mixup": Key(0.0, "mixup: alpha of the Beta distribution of the mixing weight; 0 for none", at_least(0)),
    "augment.cutmix": Key(0.0, "CutMix: the same", at_least(0)),
    "augment.mix_switch": Key(0.5, "where both are on, the probability of CutMix", between(0, 1)),
    "augment.mix_probability": Key(1.0, "probability that a batch, or an example, is mixed at all", between(0, 1)),
    "augment.mix_per": Key(
        "batch", "mixing weights are drawn once a batch, or for each example", one_of("batch", "example")
    ),
    "batch_size": Key(128, "examples in a step, over all devices", at_least(1)),
    "eval_batch_size": Key(int, "examples in an evaluation step (default: batch_size)", at_least(1)),
    "total_epochs": Key(float, "length of the run in passes over the training split; or give total_steps", above(0)),
    "total_steps": Key(int, "length of the run in steps; or give total_epochs", at_least(1)),
    "eval_every_epochs": Key(float, "how often to validate and save (default: every epoch)", above(0)),
    "eval_every_steps": Key(int, "the same, in steps", at_least(1)),
    "log_every_steps": Key(int, "how often to write training metrics (default: with each validation)", at_least(1)),
    "steps_per_dispatch": Key(int, "steps between two looks at the device (default: about two seconds)", at_least(1)),
    "accumulate": Key(1, "parts of a batch that are worked through one after the other, for less memory", at_least(1)),
    "loss": Key("softmax", "cross-entropy over all classes, or of each class by itself", one_of("softmax", "sigmoid")),
    "head_bias": Key(0.0, "what the biases of the head start at; -log(classes) suits the sigmoid loss", FINITE),
    "label_smoothing": Key(0.0, "share of the target spread evenly over all classes", within(0, 1)),
    "ema_decay": Key(float, "evaluate a running mean of the parameters with this decay (default: none)", inside(0, 1)),
    "optimizer.name": Key("adamw", "the optimizer", one_of("adamw", "adam", "sgd", "lamb", "lion", "adafactor")),
    "optimizer.learning_rate": Key(1e-3, "peak learning rate", at_least(0)),
    "optimizer.weight_decay": Key(
        0.0, "each step takes learning rate times this off a weight; adam and sgd add it to the gradient", at_least(0)
    ),
    "optimizer.decay": Key("kernels", "which weights decay: kernels, or all, as Keras does", one_of("kernels", "all")),
    "optimizer.momentum": Key(0.9, "sgd: decay of the running sum of gradients", within(0, 1)),
    "optimizer.nesterov": Key(False, "sgd: Nesterov's momentum"),
    "optimizer.beta1": Key(0.9, "decay of the gradient's running mean; adafactor: 0 for none", within(0, 1)),
    "optimizer.beta2": Key(0.999, "decay of the squared gradient's running mean; 0.99 suits lion", within(0, 1)),
    "optimizer.epsilon": Key(1e-8, "added to the root of the squared gradient's mean (adamw, adam, lamb)", above(0)),
    "optimizer.clip_norm": Key(float, "scale gradients down to this global norm (default: never)", above(0)),
    "optimizer.sam_rho": Key(float, "sharpness-aware minimisation within this radius (default: none)", above(0)),
    "optimizer.lr_rules": Key(
        (), "((regex, factor), ...): the first to match a parameter's name scales its learning rate"
    ),
    "optimizer.decay_rules": Key((), "((regex, factor), ...): the same for its decay, in place of optimizer.decay"),
    "optimizer.freeze_rules": Key((), "((regex, true or false), ...): whether it stays as it is"),
    "schedule.name": Key(
        "cosine",
        "learning rate after the warm-up",
        one_of("constant", "cosine", "linear", "one_cycle", "step", "rsqrt"),
    ),
    "schedule.warmup_epochs": Key(float, "length of the linear warm-up from zero; or warmup_steps", at_least(0)),
    "schedule.warmup_steps": Key(int, "the same, in steps", at_least(0)),
    "schedule.end_factor": Key(0.0, "where cosine and linear end, as a share of the peak", between(0, 1)),
    "schedule.step_factor": Key(0.1, "step: what each step multiplies the rate by", inside(0, 1)),
    "schedule.step_every_epochs": Key(float, "step: how often; or step_every_steps", above(0)),
    "schedule.step_every_steps": Key(int, "the same, in steps", at_least(1)),
    "schedule.timescale_steps": Key(
        10_000, "rsqrt: peak * sqrt(timescale / (timescale + steps since warm-up))", at_least(1)
    ),
    "schedule.cooldown_epochs": Key(
        float, "constant and rsqrt: the rate goes linearly to 0 over the last so many", at_least(0)
    ),
    "schedule.cooldown_steps": Key(int, "the same, in steps", at_least(0)),
    "schedule.plateau_factor": Key(
        float, "multiply the learning rate by this on a plateau of validation", inside(0, 1)
    ),
    "schedule.plateau_patience": Key(int, "validations without a lower loss that make a plateau", at_least(1)),
    "stop_patience": Key(
        int, "end the run after so many validations without a lower loss (default: never)", at_least(1)
    ),
    "checkpoint.keep": Key(2, "how many of the latest checkpoints to keep; the best one is kept besides", at_least(1)),
    "checkpoint.every_steps": Key(int, "save this often too, between validations", at_least(1)),
    "checkpoint.best": Key(
        "accuracy", "the validation metric that decides which is best", one_of("accuracy", "top5_accuracy", "loss")
    ),
    "mesh.data": Key(-1, "devices that share each batch; -1 takes all", DEVICES),
    "tensorboard": Key(True, "write TensorBoard events (where TensorFlow is installed)"),
    "plots": Key(True, "draw the learning curves into plots/ at the end"),
    "model.name": Key("mlp_mixer", "the architecture"),
    "model.variant": Key(str, "a published size, e.g. S/16; fields below override it"),
    "claims.accuracy": Key(float, "published test top-1 accuracy that the configuration aims at", between(0, 1)),
    "claims.top5_accuracy": Key(float, "published test top-5 accuracy", between(0, 1)),
    "claims.tolerance": Key(0.01, "how far below a claim a result still reproduces it", between(0, 1)),
    "claims.source": Key(str, "where it is published"),
    "claims.void": Key(str, "why the run is not held to its claims; set where the command line changes the recipe"),
}
# Where things lie and how a run is watched: they may change when it continues, for the figures do not hang on them.
WATCHING = {"log_every_steps", "eval_batch_size", "checkpoint.every_steps"}  # a run's recipe does not hang on them
INCIDENTAL = {
    "dataset.path", "dataset.data_dir", "dataset.cache_dir", "dataset.max_resident_gib", "steps_per_dispatch",
    "checkpoint.keep", "mesh.data", "tensorboard", "plots", "dataset.placement", "dataset.workers", "dataset.corrupt",
    "claims.accuracy", "claims.top5_accuracy", "claims.tolerance", "claims.source",
    "claims.void",
}  # fmt: skip
ALTERNATIVES = [
    ("total_epochs", "total_steps"),
    ("eval_every_epochs", "eval_every_steps"),
    ("schedule.warmup_epochs", "schedule.warmup_steps"),
    ("schedule.step_every_epochs", "schedule.step_every_steps"),
    ("schedule.cooldown_epochs", "schedule.cooldown_steps"),
]


def known_keys() -> dict[str, Key]:
    """KEYS and, below `model.`, the fields of every architecture: not set, so that the variant decides."""
    fields = {f"model.{name}": Key(kind, text) for name, (kind, text) in models.all_fields().items()}
    return KEYS | fields


def default_config(**values: Any) -> ml_collections.ConfigDict:
    """Every known key at its default, except those given; `model=dict(depth=4)` sets model.depth.

    Keys that are not set hold typed placeholders. Raises UserError for a key that does not exist.
    """
    config = ml_collections.ConfigDict()
    for name, key in known_keys().items():
        *parents, leaf = name.split(".")
        node = config
        for parent in parents:
            if parent not in node:
                node[parent] = ml_collections.ConfigDict()
            node = node[parent]
        node[leaf] = config_dict.placeholder(key.default) if isinstance(key.default, type) else key.default
    config.lock()
    for name in flatten(values):
        if name not in known_keys():
            raise unknown_key(name)
    config.update(values)
    return config


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} for every leaf of a nested configuration; keys that are not set are left out."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = _listed(value)
    return flat


def _listed(value: Any) -> Any:
    """Tuples as lists, however deep, as JSON gives them back."""
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value


def unknown_key(name: str) -> UserError:
    """The error for a key that does not exist, with the nearest one that does."""
    leaves: dict[str, str] = {}
    for known in known_keys():
        leaves.setdefault(known.split(".")[-1], known)
    leaf = name.split(".")[-1]
    near = [leaves[leaf]] if leaf in leaves else difflib.get_close_matches(name, list(known_keys()), n=1, cutoff=0.75)
    near = near or [leaves[close] for close in difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.75)]
    hint = f"; did you mean config.{near[0]}?" if near else "; --help lists the known ones"
    return UserError(f"unknown key config.{name}{hint}")


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError, in one line, for the first key that is unknown, of a wrong type or out of its range."""
    flat, keys = flatten(config), known_keys()
    for name, value in flat.items():
        if name not in keys:
            raise unknown_key(name)
        kind = keys[name].default if isinstance(keys[name].default, type) else type(keys[name].default)
        kinds = (int, float) if kind is float else list if kind is tuple else kind
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"config.{name}={value!r} is of type {type(value).__name__}; expected {kind.__name__}")
        expected, holds = keys[name].rule
        if not holds(value):
            raise UserError(f"config.{name}={value!r} is out of range; expected {expected}")
    missing = [name for name, key in KEYS.items() if not isinstance(key.default, type) and name not in flat]
    if missing:
        raise UserError(f"config.{missing[0]} is missing; start from patchnets.config.default_config()")
    for one, other in ALTERNATIVES:
        if one in flat and other in flat:
            raise UserError(f"config.{one}={flat[one]} and config.{other}={flat[other]} are both set; give one")
    if "total_epochs" not in flat and "total_steps" not in flat:
        raise UserError("the length of the run is not set; give config.total_epochs or config.total_steps")
    if config.batch_size % config.accumulate:
        raise UserError(
            f"config.accumulate={config.accumulate} does not divide config.batch_size={config.batch_size}; choose one "
            "that does"
        )
    models.check(config.model, config.image_size)


def displaced(config: ml_collections.ConfigDict, given: Collection[str]) -> list[str]:
    """The keys of a configuration file that keys `given` on the command line take the place of.

    Steps displace epochs and the reverse; a variant of a model displaces the fields that it defines, and the name of a
    model all that the file says about the model.
    """
    gone = []
    if "model.name" in given:
        gone += [f"model.{field}" for field in config.model if field != "name"]
    for one, other in ALTERNATIVES:
        gone += [other] if one in given else [one] if other in given else []
    if "model.variant" in given:
        gone += [f"model.{field}" for field in models.variant_fields(config.model)]
    return [name for name in gone if name not in given]


def digest(config: ml_collections.ConfigDict) -> str:
    """Twelve hexadecimal digits that name what a run computes: neither the order of keys nor INCIDENTAL ones matter."""
    essential = {name: value for name, value in flatten(config).items() if name not in INCIDENTAL}
    return hashlib.sha256(json.dumps(essential, sort_keys=True).encode()).hexdigest()[:12]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """["a.b: 1 there, 2 here", ...] for every key, INCIDENTAL ones aside, in which two flat configurations differ."""
    names = sorted((old.keys() | new.keys()) - INCIDENTAL)
    changed = (name for name in names if old.get(name) != new.get(name))
    return [f"{name}: {old.get(name, 'not set')} there, {new.get(name, 'not set')} here" for name in changed]


def recipe_changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which two flat configurations differ as recipes: seeds, places, logs and claims do not count."""
    apart = INCIDENTAL | WATCHING | {"seed"}
    return sorted(name for name in (one.keys() | other.keys()) - apart if one.get(name) != other.get(name))


def describe(config: ml_collections.ConfigDict | None = None) -> str:
    """One line a key, with its value in `config` (or its default) and its meaning, for --help."""
    flat = flatten(default_config() if config is None else config)
    rows = [(f"config.{name}", str(flat.get(name, "-")), key.help) for name, key in known_keys().items()]
    wide = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return "\n".join(f"  --{name:<{wide[0]}}  {value:<{wide[1]}}  {text}" for name, value, text in rows)
