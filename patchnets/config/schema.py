"""Table of all configuration keys: default, meaning and allowed values.

Fields of `augment.` are those of `Augment` (patchnets/augment/preprocess.py); fields of `model.`, other than name and
variant, those of the networks (patchnets/models/__init__.py).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from patchnets.augment.preprocess import Augment
from patchnets.data import options
from patchnets.optim import schedules
from patchnets.runtime.files import is_url

LARGEST_INT, LARGEST_FLOAT = 2**31 - 1, 3.4e38  # what 32 bits hold
Rule = tuple[str, Callable[[Any], bool]]  # (description of the expected value, predicate)


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


def one_of_numbers(*numbers: int) -> Rule:
    return "one of " + ", ".join(map(str, numbers)), lambda v: v in numbers


FINITE: Rule = ("a finite number", lambda v: abs(v) <= LARGEST_FLOAT)
RATIO: Rule = ("a number above 0 and at most 1", lambda v: 0 < v <= 1)
ANY: Rule = ("anything", lambda v: True)
LOCAL: Rule = ("a path on this machine, such as that of a mounted bucket, and no URL", lambda v: not is_url(v))
DEVICES: Rule = ("a number of devices of at least 1, or -1 for all", lambda v: v == -1 or v >= 1)


@dataclasses.dataclass(frozen=True)
class Key:
    """A configuration key. A `default` that is a type means: a value of that type, not set by default."""

    default: Any
    help: str
    rule: Rule = ANY


def augment_key(field: dataclasses.Field) -> Key:
    """Return the key of a field of `Augment`, whose metadata has its meaning and its allowed values."""
    meaning, limits = field.metadata["meaning"], field.metadata["limits"]
    match limits:
        case {"choices": choices}:
            rule = one_of(*choices)
        case {"at_least": low, "at_most": high}:
            rule = between(low, high)
        case {"at_least": low, "below": high}:
            rule = within(low, high)
        case {"at_least": low}:
            rule = at_least(low)
        case {"above": 0, "at_most": 1}:
            rule = RATIO
        case {}:
            rule = ANY
    return Key(field.default, meaning, rule)


KEYS: dict[str, Key] = {
    "seed": Key(0, "seed of initial parameters, data order, augmentation and dropout", within(0, 2**31)),
    "dataset.name": Key("digits", "digits, folder, or the name of a TFDS image classification data set", LOCAL),
    "dataset.path": Key(
        str, "folder: a path with images in train/CLASS/ and optionally val/CLASS/ and test/CLASS/", LOCAL
    ),
    "dataset.data_dir": Key(
        str, "TFDS: folder of prepared data sets (default: TFDS_DATA_DIR or ~/tensorflow_datasets)"
    ),
    "dataset.channels": Key(
        int, "folder: 1 for gray or 3 for RGB images (default: gray if all of train are)", one_of_numbers(1, 3)
    ),
    "dataset.exif_orientation": Key(
        True, "turn images as their EXIF header says, as viewers do; false: the stored pixels, as TFDS and torchvision"
    ),
    "dataset.background": Key(
        "white",
        "color behind transparent pixels; none: the color stored under them",
        one_of(*options.CHOICES["background"]),
    ),
    "dataset.value_range": Key(
        tuple,
        "(lowest, highest) value of images of more than 8 bits: levels 0 and 255 (default: the values in train)",
        ("(lowest, highest)", options.is_range),
    ),
    "dataset.train_split": Key(str, "split to train on (default: train, less the validation split)"),
    "dataset.val_split": Key(str, "split to validate on, or none (default: the data set's own, else train[90%:])"),
    "dataset.test_split": Key(str, "split for the test at the end, or none (default: test, if there is one)"),
    "dataset.cache_dir": Key(str, "folder for decoded images (default: PATCHNETS_CACHE or ~/.cache/patchnets)", LOCAL),
    "dataset.loader": Key(
        "auto",
        "on_device: all images decoded once and kept on the devices; streaming: read during training; "
        "auto: either, as the decoded images fit into max_on_device_gib, if both make the same images, else streaming "
        "for random crops and on_device for small squares",
        one_of(*options.CHOICES["loader"]),
    ),
    "dataset.max_on_device_gib": Key(
        8.0, "largest size of decoded images, in GiB, that on_device may take on each device", above(0)
    ),
    "dataset.on_device_sharding": Key(
        "replicated",
        "on_device: every device holds all images (replicated) or its share (sharded)",
        one_of(*options.CHOICES["on_device_sharding"]),
    ),
    "dataset.num_workers": Key(
        int, "streaming: worker processes that decode; 0: this process (default: cores)", at_least(0)
    ),
    "dataset.on_corrupt": Key(
        "stop", "stop at a record that cannot be read or decoded, or skip it", one_of(*options.CHOICES["on_corrupt"])
    ),
    "image_size": Key(224, "height and width of model inputs in pixels; images are resized to it", between(1, 16_384)),
    "normalize": Key(
        "symmetric",
        "symmetric: pixels to [-1, 1]; unit: to [0, 1]; imagenet: its mean and deviation; dataset: those of train",
        one_of(*options.CHOICES["normalize"]),
    ),
    "crop_pct": Key(1.0, "share of the side of evaluation images kept by the center crop", RATIO),
    **{f"augment.{field.name}": augment_key(field) for field in dataclasses.fields(Augment)},
    "batch_size": Key(128, "examples in a step, over all devices", at_least(1)),
    "eval_batch_size": Key(int, "examples in an evaluation step (default: batch_size)", at_least(1)),
    "total_epochs": Key(float, "length of the run in passes over the training split; or give total_steps", above(0)),
    "total_steps": Key(int, "length of the run in steps; or give total_epochs", at_least(1)),
    "eval_every_epochs": Key(float, "how often to validate and save (default: every epoch)", above(0)),
    "eval_every_steps": Key(int, "the same, in steps", at_least(1)),
    "log_every_steps": Key(int, "how often to write training metrics (default: with each validation)", at_least(1)),
    "steps_per_call": Key(int, "steps per dispatch (default: about two seconds)", at_least(1)),
    "grad_accum_steps": Key(1, "number of microbatches a batch is split into, to save memory", at_least(1)),
    "loss": Key(
        "softmax", "softmax cross-entropy, or sigmoid cross-entropy of each class", one_of("softmax", "sigmoid")
    ),
    "init.weights": Key(
        str, "trained weights to start from: a work directory, an export, or another source (docs/transfer.md)"
    ),
    "init.network": Key(
        str, "of init.weights that do not say it: timm's name of the architecture, or ours of the family"
    ),
    "init.head": Key(
        "new", "head of a run with init.weights: new, zeros, or keep (the same classes)", one_of("new", "zeros", "keep")
    ),
    "init.resize": Key(
        "bilinear",
        "how positions and token-mixing weights are adapted to another image size",
        one_of("bilinear", "bicubic", "bicubic_no_antialias", "block_diagonal"),
    ),
    "init.skip": Key((), "(regex, ...): parameters that start new all the same"),
    "init_head_bias": Key(0.0, "initial bias of the head; -log(classes) suits the sigmoid loss", FINITE),
    "label_smoothing": Key(0.0, "share of the target spread uniformly over all classes", within(0, 1)),
    "ema_decay": Key(float, "evaluate a running mean of the parameters with this decay (default: none)", inside(0, 1)),
    "optimizer.name": Key("adamw", "the optimizer", one_of("adamw", "adam", "sgd", "lamb", "lion", "adafactor")),
    "optimizer.learning_rate": Key(1e-3, "peak learning rate", at_least(0)),
    "optimizer.weight_decay": Key(
        0.0, "decoupled weight decay, times the learning rate; adam and sgd add it to the gradient", at_least(0)
    ),
    "optimizer.wd_mask": Key(
        "kernels", "parameters that decay: kernels, or all, as in Keras", one_of("kernels", "all")
    ),
    "optimizer.momentum": Key(0.9, "sgd: momentum", within(0, 1)),
    "optimizer.nesterov": Key(False, "sgd: Nesterov's momentum"),
    "optimizer.beta1": Key(0.9, "decay of the gradient's running mean; adafactor: 0 for none", within(0, 1)),
    "optimizer.beta2": Key(0.999, "decay of the squared gradient's running mean; 0.99 suits lion", within(0, 1)),
    "optimizer.epsilon": Key(1e-8, "added to the root of the squared gradient's mean (adamw, adam, lamb)", above(0)),
    "optimizer.grad_clip_norm": Key(float, "scale gradients down to this global norm (default: never)", above(0)),
    "optimizer.sam_rho": Key(float, "sharpness-aware minimization within this radius (default: none)", above(0)),
    "optimizer.lr_mults": Key(
        (), "((regex, factor), ...): the first to match a parameter's name scales its learning rate"
    ),
    "optimizer.layer_decay": Key(
        float, "learning rate of each layer as a share of that of the layer above it (default: all alike)", RATIO
    ),
    "optimizer.wd_mults": Key((), "((regex, factor), ...): the same for weight decay, instead of optimizer.wd_mask"),
    "optimizer.frozen": Key((), "((regex, true or false), ...): whether a parameter is frozen"),
    "frozen_features": Key(
        "auto",
        "with all but the head frozen: compute the head's inputs once, by layers as in evaluation (no dropout, "
        "BatchNorm by its running statistics), or never; auto: once if that is the same",
        one_of("auto", "once", "never"),
    ),
    "probes.names": Key(
        (),
        "classifiers on the features of the best checkpoint, tested on test at the end: knn, fewshot, linear",
        (
            "some of knn, fewshot, linear, as in ('knn','linear')",
            lambda v: all(name in ("knn", "fewshot", "linear") for name in v),
        ),
    ),
    "probes.every_validations": Key(
        int, "also knn and fewshot on the validation split, every this many validations (default: never)", at_least(1)
    ),
    "probes.k": Key(20, "knn: neighbors", at_least(1)),
    "probes.temperature": Key(0.07, "knn: a vote is exp(cosine / temperature)", above(0)),
    "probes.shots": Key(
        (1, 5, 10, 25),
        "fewshot: training images of each class",
        ("whole numbers of at least 1", lambda v: all(type(shots) is int and shots >= 1 for shots in v)),
    ),
    "probes.draws": Key(5, "fewshot: draws of these images, of which the mean counts", at_least(1)),
    "schedule.name": Key(
        "cosine",
        "learning rate after the warm-up",
        one_of(*schedules.NAMES),
    ),
    "schedule.warmup_epochs": Key(float, "length of the linear warm-up from zero; or warmup_steps", at_least(0)),
    "schedule.warmup_steps": Key(int, "the same, in steps", at_least(0)),
    "schedule.end_factor": Key(0.0, "end of cosine and linear, as a share of the peak", between(0, 1)),
    "schedule.step_factor": Key(0.1, "step: factor of each step", inside(0, 1)),
    "schedule.step_every_epochs": Key(float, "step: how often; or step_every_steps", above(0)),
    "schedule.step_every_steps": Key(int, "the same, in steps", at_least(1)),
    "schedule.timescale_steps": Key(
        10_000, "rsqrt: peak * sqrt(timescale / (timescale + steps since warm-up))", at_least(1)
    ),
    "schedule.cooldown_epochs": Key(float, "constant and rsqrt: length of a final linear decay to 0", at_least(0)),
    "schedule.cooldown_steps": Key(int, "the same, in steps", at_least(0)),
    "reduce_on_plateau.factor": Key(
        float, "multiply the learning rate by this on a plateau of validation", inside(0, 1)
    ),
    "reduce_on_plateau.patience": Key(
        int, "number of validations without a lower loss that make a plateau", at_least(1)
    ),
    "early_stopping.patience": Key(
        int, "stop after this many validations without a lower loss (default: never)", at_least(1)
    ),
    "checkpoint.max_to_keep": Key(2, "number of latest checkpoints to keep, in addition to the best one", at_least(1)),
    "checkpoint.save_interval_steps": Key(int, "also save every this many steps, between validations", at_least(1)),
    "checkpoint.best_metric": Key(
        "accuracy", "validation metric that selects the best checkpoint", one_of("accuracy", "top5_accuracy", "loss")
    ),
    "mesh.data": Key(-1, "devices that share each batch, with replicated parameters; -1: all that remain", DEVICES),
    "mesh.fsdp": Key(1, "devices that share each batch and the parameters; -1: all that remain", DEVICES),
    "mesh.fsdp_rules": Key(
        tuple,
        "dimension that fsdp splits, if not the largest: ((regex, index of the dimension, or -1 for none), ...)",
    ),
    "cpu.devices": Key(
        int, "on a CPU: devices that its cores make in a process (default: one a core, as batches divide)", at_least(1)
    ),
    "cpu.microbatch": Key(
        int,
        "on a CPU: examples that a device takes through the network at a time; 0: the whole batch at once, as on an "
        "accelerator (default: as many as stay in a core's cache). Dropout draws a mask for each microbatch",
        at_least(0),
    ),
    "tensorboard": Key(True, "write TensorBoard events (if tensorboard is installed)"),
    "plots": Key(True, "draw plots of the run into plots/ at the end"),
    "model.name": Key("mlp_mixer", "the architecture"),
    "model.variant": Key(str, "a published size, e.g. S/16; fields below override it"),
    "published.accuracy": Key(float, "published test top-1 accuracy of the recipe", between(0, 1)),
    "published.top5_accuracy": Key(float, "published test top-5 accuracy", between(0, 1)),
    "published.tolerance": Key(
        0.01, "how far below the published value a result still counts as reproduced", between(0, 1)
    ),
    "published.source": Key(str, "where it is published"),
    "published.incomparable": Key(
        str, "why the run is not compared with published values; set if flags change the recipe"
    ),
}
# Keys for logging and evaluation that do not change the recipe.
LOGGING_KEYS = {
    "log_every_steps",
    "eval_batch_size",
    "checkpoint.save_interval_steps",
    *(name for name in KEYS if name.startswith("probes.")),
}
# Keys that may differ when resuming, because they do not affect results.
KEYS_IGNORED_BY_HASH = {
    "dataset.path",
    "dataset.data_dir",
    "dataset.cache_dir",
    "dataset.max_on_device_gib",
    "steps_per_call",
    "checkpoint.max_to_keep",
    "mesh.data",
    "mesh.fsdp",
    "mesh.fsdp_rules",
    "cpu.devices",
    "tensorboard",
    "plots",
    "dataset.on_device_sharding",
    "dataset.num_workers",
    "dataset.on_corrupt",
    "published.accuracy",
    "published.top5_accuracy",
    "published.tolerance",
    "published.source",
    "published.incomparable",
}
MUTUALLY_EXCLUSIVE = [
    ("total_epochs", "total_steps"),
    ("eval_every_epochs", "eval_every_steps"),
    ("schedule.warmup_epochs", "schedule.warmup_steps"),
    ("schedule.step_every_epochs", "schedule.step_every_steps"),
    ("schedule.cooldown_epochs", "schedule.cooldown_steps"),
]
