"""Configurations, held against the table of keys (schema.py), which is the only place that knows them.

`default_config` makes the ConfigDict that the files in configs/ start from, `validate` holds a finished configuration
against the table before anything is compiled, and `format_help` prints it for --help.
"""

import difflib
import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from patchnets import models
from patchnets.config.schema import KEYS, KEYS_IGNORED_BY_HASH, LOGGING_KEYS, MUTUALLY_EXCLUSIVE, Key
from patchnets.errors import UserError


def known_keys() -> dict[str, Key]:
    """KEYS and, below `model.`, the fields of every architecture: not set, so that the variant decides."""
    fields = {f"model.{name}": Key(kind, text) for name, (kind, text) in models.all_config_fields().items()}
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


def from_saved(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The configuration of a work directory's config.json. Raises UserError where this version does not know it."""

    def hashable(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: hashable(item) for name, item in value.items()}
        return tuple(map(hashable, value)) if isinstance(value, list) else value

    config = default_config(**hashable(values))
    validate(config)
    return config


def flatten(config: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} for every leaf of a nested configuration; keys that are not set are left out."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = _listed(value)
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dictionary of which `flatten` makes `flat`."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, leaf = name.split(".")
        node = nested
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = value
    return nested


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


def validate(config: ml_collections.ConfigDict) -> None:
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
    for one, other in MUTUALLY_EXCLUSIVE:
        if one in flat and other in flat:
            raise UserError(f"config.{one}={flat[one]} and config.{other}={flat[other]} are both set; give one")
    if "total_epochs" not in flat and "total_steps" not in flat:
        raise UserError("the length of the run is not set; give config.total_epochs or config.total_steps")
    if config.batch_size % config.grad_accum_steps:
        raise UserError(
            f"config.grad_accum_steps={config.grad_accum_steps} does not divide "
            f"config.batch_size={config.batch_size}; choose one "
            "that does"
        )
    if config.cpu.microbatch and config.grad_accum_steps > 1:
        raise UserError(
            f"config.cpu.microbatch={config.cpu.microbatch} and config.grad_accum_steps={config.grad_accum_steps} both "
            "split a batch; give one"
        )
    models.validate(config.image_size, **config.model)


def overridden_by(flat: Mapping[str, Any], given: Collection[str]) -> list[str]:
    """The keys of a configuration file, flat, that keys `given` on the command line take the place of.

    Steps displace epochs and the reverse; a variant of a model displaces the fields that it defines, and the name of a
    model all that the file says about the model.
    """
    gone = []
    if "model.name" in given:
        gone += [name for name in flat if name.startswith("model.") and name != "model.name"]
    for one, other in MUTUALLY_EXCLUSIVE:
        gone += [other] if one in given else [one] if other in given else []
    if "model.variant" in given:
        gone += [f"model.{field}" for field in models.variant_fields(flat["model.name"], flat.get("model.variant"))]
    return [name for name in gone if name not in given]


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name what a run computes: neither the order of keys nor KEYS_IGNORED_BY_HASH ones
    matter."""
    essential = {name: value for name, value in flatten(config).items() if name not in KEYS_IGNORED_BY_HASH}
    return hashlib.sha256(json.dumps(essential, sort_keys=True).encode()).hexdigest()[:12]


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], apart: Collection[str]) -> list[str]:
    """The keys, those `apart` aside, in which two flat configurations differ."""
    return sorted(name for name in (old.keys() | new.keys()) - set(apart) if old.get(name) != new.get(name))


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """["a.b: 1 there, 2 here", ...] for every key, KEYS_IGNORED_BY_HASH ones aside, in which two flat configurations
    differ."""
    names = changed_keys(old, new, KEYS_IGNORED_BY_HASH)
    return [f"{name}: {old.get(name, 'not set')} there, {new.get(name, 'not set')} here" for name in names]


def recipe_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys in which two flat configurations differ as recipes: seeds, places, logs and claims do not count,
    nor does cpu.microbatch, which like a seed decides what dropout leaves out."""
    return changed_keys(old, new, KEYS_IGNORED_BY_HASH | LOGGING_KEYS | {"seed", "cpu.microbatch"})


def format_help(config: Mapping[str, Any] | None = None) -> str:
    """One line a key, with its value in `config` (or its default) and its meaning, for --help."""
    flat = flatten(default_config() if config is None else config)
    rows = [(f"config.{name}", str(flat.get(name, "-")), key.help) for name, key in known_keys().items()]
    wide = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return "\n".join(f"  --{name:<{wide[0]}}  {value:<{wide[1]}}  {text}" for name, value, text in rows)
