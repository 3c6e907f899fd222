"""Make, check and compare configurations. schema.py lists every key.

`default_config` makes the ConfigDict that the files in configs/ start from, `validate` checks a finished configuration
before anything is compiled, and `format_help` prints all keys for --help.
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

# The value of a key that a configuration leaves to the command line, and the keys for which it may.
TO_BE_SET, MAY_BE_LEFT = "", ("dataset.name", "init.weights")
# What versions before a key did, if that is not its default.
OLDER_DEFAULTS = {"dataset.exif_orientation": False, "dataset.background": "none"}


def known_keys() -> dict[str, Key]:
    """Return KEYS and, as `model.*`, the fields of every architecture, unset so that the variant decides."""
    fields = {f"model.{name}": Key(kind, text) for name, (kind, text) in models.all_config_fields().items()}
    return KEYS | fields


def default_config(**values: Any) -> ml_collections.ConfigDict:
    """Return all keys at their defaults, updated by `values`; `model=dict(depth=4)` sets model.depth.

    Unset keys hold typed placeholders.

    Raises:
      UserError: unknown key.
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
    config.update(_lists_to_tuples(values))
    return config


def from_saved(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Return the configuration saved in a work directory's config.json; raise UserError if it is invalid."""
    config = default_config(**unflatten(OLDER_DEFAULTS | flatten(values)))
    validate(config)
    return config


def with_defaults(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a flat configuration with what an older version of patchnets did for each key that it does not have."""
    return flatten(default_config()) | OLDER_DEFAULTS | dict(flat)


def _lists_to_tuples(value: Any) -> Any:
    """Return nested values with tuples for the lists of JSON."""
    if isinstance(value, Mapping):
        return {name: _lists_to_tuples(item) for name, item in value.items()}
    return tuple(map(_lists_to_tuples, value)) if isinstance(value, list) else value


def flatten(config: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": value} for every leaf of a nested configuration, without unset keys."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = _tuples_to_lists(value)
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Invert `flatten`: return the nested dictionary."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, leaf = name.split(".")
        node = nested
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = value
    return nested


def _tuples_to_lists(value: Any) -> Any:
    """Convert nested tuples to lists, as JSON does."""
    return [_tuples_to_lists(item) for item in value] if isinstance(value, tuple | list) else value


def unknown_key(name: str) -> UserError:
    """Return the error for an unknown key; it suggests the nearest known one."""
    leaves: dict[str, str] = {}
    for known in known_keys():
        leaves.setdefault(known.split(".")[-1], known)
    leaf = name.split(".")[-1]
    near = [leaves[leaf]] if leaf in leaves else difflib.get_close_matches(name, list(known_keys()), n=1, cutoff=0.75)
    near = near or [leaves[close] for close in difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.75)]
    hint = f"; did you mean config.{near[0]}?" if near else "; --help lists all keys"
    return UserError(f"unknown key config.{name}{hint}")


def validate(config: ml_collections.ConfigDict) -> None:
    """Raise UserError, in one line, for the first key that is unknown, has the wrong type or is out of range."""
    flat, keys = flatten(config), known_keys()
    for name, value in flat.items():
        if name not in keys:
            raise unknown_key(name)
        kind = keys[name].default if isinstance(keys[name].default, type) else type(keys[name].default)
        kinds = (int, float) if kind is float else list if kind is tuple else kind
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"config.{name}={value!r} is of type {type(value).__name__}; expected {kind.__name__}")
        if value == TO_BE_SET and name in MAY_BE_LEFT:
            raise UserError(f"config.{name} is not set, and this configuration needs it: {keys[name].help}")
        expected, holds = keys[name].rule
        if not holds(value):
            raise UserError(f"config.{name}={value!r} is out of range; expected {expected}")
    missing = [name for name, key in KEYS.items() if not isinstance(key.default, type) and name not in flat]
    if missing:
        raise UserError(f"config.{missing[0]} is missing; start from patchnets.config.default_config()")
    for first, second in MUTUALLY_EXCLUSIVE:
        if first in flat and second in flat:
            raise UserError(f"config.{first}={flat[first]} and config.{second}={flat[second]} are both set; give one")
    if "total_epochs" not in flat and "total_steps" not in flat:
        raise UserError("the length of the run is not set; give config.total_epochs or config.total_steps")
    if config.batch_size % config.grad_accum_steps:
        raise UserError(
            f"config.grad_accum_steps={config.grad_accum_steps} does not divide "
            f"config.batch_size={config.batch_size}; choose one that does"
        )
    if config.cpu.microbatch and config.grad_accum_steps > 1:
        raise UserError(
            f"config.cpu.microbatch={config.cpu.microbatch} and config.grad_accum_steps={config.grad_accum_steps} both "
            "split a batch; give one"
        )
    if not network_of_weights(flat):
        models.validate(config.image_size, **config.model)


def network_of_weights(flat: Mapping[str, Any]) -> bool:
    """Return whether a flat configuration leaves the network to its `init.weights`: it sets no field of one but those
    that only training looks at."""
    free = ("name", *models.TRAINING_FIELDS)
    fields = [name.removeprefix("model.") for name in flat if name.startswith("model.")]
    return "init.weights" in flat and all(field in free for field in fields)


def overridden_by(flat: Mapping[str, Any], set_keys: Collection[str]) -> list[str]:
    """Return the keys of a flat configuration that become unset when the command line sets `set_keys`.

    Steps override epochs and vice versa; model.variant overrides the fields that it defines, and model.name all other
    model keys.
    """
    unset = []
    if "model.name" in set_keys:
        unset += [name for name in flat if name.startswith("model.") and name != "model.name"]
    for first, second in MUTUALLY_EXCLUSIVE:
        unset += [second] if first in set_keys else [first] if second in set_keys else []
    if "model.variant" in set_keys:
        unset += [f"model.{field}" for field in models.variant_fields(flat["model.name"], flat.get("model.variant"))]
    return [name for name in unset if name not in set_keys]


def config_hash(config: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits that identify the results of a configuration.

    Independent of the order of keys and of KEYS_IGNORED_BY_HASH.
    """
    hashed = {name: value for name, value in flatten(config).items() if name not in KEYS_IGNORED_BY_HASH}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:12]


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], ignored: Collection[str]) -> list[str]:
    """Return the keys, except `ignored`, in which two flat configurations differ."""
    return sorted(name for name in (old.keys() | new.keys()) - set(ignored) if old.get(name) != new.get(name))


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return ["a.b: 1 there, 2 here", ...] for the differences of two flat configurations that config_hash sees."""
    names = changed_keys(old, new, KEYS_IGNORED_BY_HASH)
    return [f"{name}: {old.get(name, 'not set')} there, {new.get(name, 'not set')} here" for name in names]


def recipe_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two flat configurations differ as recipes.

    Seeds, paths, logging and published figures do not count, nor does cpu.microbatch: like a seed, it only changes
    dropout masks; nor do keys that the old one leaves to be set.
    """
    left = {name for name, value in old.items() if value == TO_BE_SET}
    return changed_keys(old, new, KEYS_IGNORED_BY_HASH | LOGGING_KEYS | {"seed", "cpu.microbatch"} | left)


def format_help(config: Mapping[str, Any] | None = None) -> str:
    """Format one line per key, with its value in `config` (or its default) and its meaning, for --help."""
    flat = flatten(default_config() if config is None else config)
    rows = [(f"config.{name}", str(flat.get(name, "-")), key.help) for name, key in known_keys().items()]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return "\n".join(f"  --{name:<{widths[0]}}  {value:<{widths[1]}}  {text}" for name, value, text in rows)
