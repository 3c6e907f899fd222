"""Trained weights as the start of a run of another network: other classes, channels, patches or image size.

Every parameter of both networks is accounted for: taken, resized, new, or left out and why.
"""

import dataclasses
import hashlib
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from flax import traverse_util

from patchnets import models
from patchnets.errors import UserError
from patchnets.models.blocks import unstack_blocks
from patchnets.models.resize_weights import adapt_channels, resize_patches, resize_weights
from patchnets.weights.load_timm import variable_shapes

FILE_NAME = "init.json"
HEADS = ("new", "zeros", "keep")
STEM, POSITIONS, CLASS_TOKEN = "params/stem/kernel", "params/position_embedding", "params/class_token"
HEAD = "params/head/"
ZEROS = "config.init.head=zeros"  # why a head is new
# What one of the networks may have and the other may not.
OPTIONAL = {
    "params/class_token": "class token",
    "params/map_head/": "attention pooling",
    "params/representation/": "dense layer before the head",
}
# Fields that change what the same weights compute, and that no shape shows.
SAME_FIELDS = ("num_heads", "activation", "posemb")  # of posemb, those without parameters
USUALLY_SAME_FIELDS = ("gelu", "norm_epsilon", "batch_norm_epsilon", "norm_after_pooling")


@dataclasses.dataclass(frozen=True)
class Initialization:
    """Values for some of a network's variables, and where each comes from.

    Attributes:
      source: where the trained variables come from.
      sha256: of the trained variables (`digest`).
      arrays: {"params/VitBlock_0/mlp/Dense_0/kernel": array}, of blocks that are not stacked.
      taken: names of arrays that are as they were.
      adapted: name -> what was changed, such as "(1, 197, 768) -> (1, 577, 768), bilinear".
      new: name -> why it starts as in a run from scratch.
      left_out: name in the source -> why it is not used.
      notes: lines on settings in which the networks differ.
    """

    source: str
    sha256: str
    arrays: dict[str, np.ndarray]
    taken: list[str]
    adapted: dict[str, str]
    new: dict[str, str]
    left_out: dict[str, str]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the content of init.json."""
        return {name: value for name, value in vars(self).items() if name != "arrays"}

    def summary(self) -> list[str]:
        """Return the account in a few lines."""
        lines = [f"{len(self.taken)} arrays as they are, {len(self.adapted)} adapted, {len(self.new)} new"]
        lines += [f"{name.removeprefix('params/')}: {how}" for name, how in self.adapted.items()]
        lines += [f"new: {names} ({why})" for why, names in _by_reason(self.new)]
        lines += [f"left out: {names} ({why})" for why, names in _by_reason(self.left_out)]
        return lines + self.notes


def _by_reason(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (reason, the names that have it in a line), a name for each layer."""
    names: dict[str, dict[str, None]] = {}
    for name, why in reasons.items():
        short = name.removeprefix("params/")
        names.setdefault(why, {})[short.rpartition("/")[0] or short] = None
    return [(why, ", ".join(list(layers)[:4]) + (", ..." if len(layers) > 4 else "")) for why, layers in names.items()]


def initialize(
    network: str,
    fields: Mapping[str, Any],
    variables: Mapping[str, Any],
    model: nn.Module,
    *,
    old_size: int,
    image_size: int,
    channels: int,
    head: str = "new",
    resize: str = "bilinear",
    skip: Sequence[str] = (),
    source: str = "",
    sha256: str = "",
    notes: Sequence[str] = (),
) -> Initialization:
    """Adapt trained variables to `model`, as far as they fit.

    Args:
      network, fields: of the trained network, as in `models.create_model`.
      variables: {"params", "batch_stats"} of it, for images of `old_size` pixels a side.
      model: the network to be trained, for images of `image_size` pixels a side and `channels` channels.
      head: new (as in a run from scratch), zeros, or keep (the classes must be the same).
      resize: rule of `models.resize_weights`.
      skip: regular expressions; variables of `model` whose full name one of them matches start new.
      source, sha256, notes: kept in the result.

    Raises:
      UserError: the networks are of different kinds, or a parameter of either fits nowhere in the other.
    """
    trained: Any = models.create_model(network, num_classes=1, **{**fields, "scan": False})
    target: Any = model
    if type(trained) is not type(model):
        raise UserError(
            f"config.init.weights holds a {type(trained).__name__}, and config.model is a {type(model).__name__}; "
            f"leave config.model unset, or set config.model.name={network}"
        )
    notes = [*notes, *_compare_fields(trained, target)]
    apart = unstack_blocks(variables)
    new_size = image_size // target.patch_size * trained.patch_size  # for which the source has as many patches
    resized = apart if new_size == old_size else resize_weights(trained, apart, old_size, new_size, resize)[1]
    before, available = _flat(apart), _flat(resized)
    shapes = variable_shapes(target, image_size, channels)
    new = _reasons_for_new(shapes, available, network, head, skip)
    result = Initialization(source, sha256, {}, [], {}, new, {}, notes)
    for name, shape in shapes.items():
        if name in new:
            if new[name] == ZEROS:
                result.arrays[name] = np.zeros(shape, np.float32)
            continue
        value = _fit(name, available[name], target, trained, channels)
        if value.shape != shape:
            raise UserError(_misfit(name, before[name].shape, shape))
        result.arrays[name] = np.array(value, np.float32, order="C")
        if np.array_equal(value, before[name]):
            result.taken.append(name)
        else:
            how = f", {resize}" if not np.array_equal(available[name], before[name]) else ""
            result.adapted[name] = f"{before[name].shape} -> {shape}{how}"
    for name in sorted(available.keys() - (shapes.keys() - new.keys())):
        result.left_out[name] = new.get(name) or _reason_if_optional(name, "this network has none")
    return result


def _reasons_for_new(
    shapes: Mapping[str, Any], available: Container[str], network: str, head: str, skip: Sequence[str]
) -> dict[str, str]:
    """Return {name: why it starts new} of the variables that do not start from trained ones.

    Raises:
      UserError: the source lacks one that it should have, or a pattern of `skip` is none or matches nothing.
    """
    patterns = [_compiled(regex, shapes) for regex in skip]
    new: dict[str, str] = {}
    for name in shapes:
        if any(pattern.fullmatch(name.partition("/")[2]) for pattern in patterns):
            new[name] = "config.init.skip"
        elif name.startswith(HEAD) and head != "keep":
            new[name] = f"config.init.head={head}"
        elif name not in available:
            new[name] = _reason_if_optional(name, f"{network} of the source has none")
    return new


def digest(variables: Mapping[str, Any]) -> str:
    """Return a SHA-256 of names, shapes and values of variables: the same in every file format that holds them."""
    sha = hashlib.sha256()
    for name, value in sorted(_flat(unstack_blocks(variables)).items()):
        sha.update(f"{name} {value.shape} {value.dtype}".encode())
        sha.update(np.ascontiguousarray(value).data)
    return sha.hexdigest()


def _flat(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in traverse_util.flatten_dict(variables, sep="/").items()}


def _compare_fields(trained: Any, target: Any) -> list[str]:
    """Return a line for each field in which the networks may differ; raise UserError for those that must agree."""
    notes = []
    for name in (*SAME_FIELDS, *USUALLY_SAME_FIELDS):
        before, now = getattr(trained, name, None), getattr(target, name, None)
        if before == now or "learned" in (before, now):
            continue
        if name in SAME_FIELDS:
            raise UserError(f"config.model.{name}={now}, and config.init.weights was trained with {before}; set it so")
        notes.append(f"note: config.model.{name}={now}; the weights were trained with {before}")
    return notes


def _fit(name: str, value: np.ndarray, target: Any, trained: Any, channels: int) -> np.ndarray:
    """Return a value with the channels, the patch size and the class token that the network to be trained has."""
    if name == STEM:
        if value.shape[2] != channels:
            value = np.asarray(adapt_channels(value, channels))
        if value.shape[0] != target.patch_size:
            value = np.asarray(resize_patches(value, target.patch_size))
    if name == POSITIONS:
        had, has = (getattr(network, "pool_type", None) == "cls" for network in (trained, target))
        if had and not has:
            return value[:, 1:]
        if has and not had:
            return np.pad(value, ((0, 0), (1, 0), (0, 0)))
    return value


def _reason_if_optional(name: str, reason: str) -> str:
    """Return why a variable is only in one of the networks; raise UserError if both should have it."""
    for start, what in OPTIONAL.items():
        if name.startswith(start):
            return f"{what}: {reason}"
    if name.startswith(HEAD):
        return f"head: {reason}"
    raise UserError(
        f"config.init.weights: {name.partition('/')[2]} fits nowhere: {reason}; compare the fields of config.model"
    )


def _misfit(name: str, had: tuple[int, ...], needs: tuple[int, ...]) -> str:
    what = f"config.init.weights: {name.partition('/')[2]} is of shape {had}, and this run needs {needs}"
    if name.startswith(HEAD):
        return f"{what}; config.init.head=keep takes the same classes, new or zeros any"
    return f"{what}; compare the fields of config.model, or name it in config.init.skip"


def _compiled(regex: str, shapes: Mapping[str, Any]) -> re.Pattern[str]:
    """Return a compiled regular expression of config.init.skip; raise UserError if it is none or matches nothing."""
    try:
        pattern = re.compile(regex)
    except (re.error, TypeError) as error:
        raise UserError(f"config.init.skip: {regex!r} is no regular expression ({error})") from error
    names = [name.partition("/")[2] for name in shapes]
    if not any(pattern.fullmatch(name) for name in names):
        raise UserError(
            f"config.init.skip: {regex!r} matches no parameter; it has to match a full name, such as {names[0]}"
        )
    return pattern
