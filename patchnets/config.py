"""Configurations, held against the table of keys (config_keys.py), which is the only place that knows them.

`default_config` makes the ConfigDict that the files in configs/ start from, `check` holds a finished configuration
against the table before anything is compiled, and `describe` prints it for --help.
"""

import difflib
import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from patchnets import models
from patchnets.config_keys import ALTERNATIVES, INCIDENTAL, KEYS, WATCHING, Key
from patchnets.errors import UserError


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


def saved(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The configuration of a work directory's config.json. Raises UserError where this version does not know it."""

    def hashable(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: hashable(item) for name, item in value.items()}
        return tuple(map(hashable, value)) if isinstance(value, list) else value

    config = default_config(**hashable(values))
    check(config)
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


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], apart: Collection[str]) -> list[str]:
    """The keys, those `apart` aside, in which two flat configurations differ."""
    return sorted(name for name in (old.keys() | new.keys()) - set(apart) if old.get(name) != new.get(name))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """["a.b: 1 there, 2 here", ...] for every key, INCIDENTAL ones aside, in which two flat configurations differ."""
    names = changed_keys(old, new, INCIDENTAL)
    return [f"{name}: {old.get(name, 'not set')} there, {new.get(name, 'not set')} here" for name in names]


def recipe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys in which two flat configurations differ as recipes: seeds, places, logs and claims do not count."""
    return changed_keys(old, new, INCIDENTAL | WATCHING | {"seed"})


def describe(config: ml_collections.ConfigDict | None = None) -> str:
    """One line a key, with its value in `config` (or its default) and its meaning, for --help."""
    flat = flatten(default_config() if config is None else config)
    rows = [(f"config.{name}", str(flat.get(name, "-")), key.help) for name, key in known_keys().items()]
    wide = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return "\n".join(f"  --{name:<{wide[0]}}  {value:<{wide[1]}}  {text}" for name, value, text in rows)
