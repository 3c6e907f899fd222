"""Read the entries of a sweep from its file."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.runner import jobs
from experiments.runner.run_spec import Budget, RunSpec
from experiments.sweep.report import FILES
from patchnets import config as config_lib
from patchnets.config import flags
from patchnets.errors import UserError

NAME = r"(?!\d+$)[A-Za-z0-9][A-Za-z0-9_.+=-]{0,99}"  # not a number: --only=N selects by index


def rows(sweep: str, config: str | None, handed_on: Sequence[str]) -> tuple[RunSpec, ...]:
    """Return one row, without published results, for each (name, overrides) that the file's `get_sweep` yields.

    The overrides apply to `config` (FILE[:ARG]), else to the file's CONFIG, else to the file's own configuration.

    Raises:
      UserError: the file is invalid, or the command line sets a key that the sweep sets.
    """
    with jobs.at_root():
        named, has_config, read_entries = flags.from_file("sweep", sweep, sweep, _read)
    config = config or named or (sweep if has_config else None)
    if config is None:
        raise UserError(f"--sweep={sweep} has neither CONFIG nor get_config(); give --config=FILE[:ARGUMENT]")
    _check(sweep, read_entries)
    entries = [(name, _plain(f"{name} of --sweep={sweep}", overrides)) for name, overrides in read_entries]
    swept = {key for _, overrides in entries for key in overrides}
    if refused := [a for a in handed_on if a.removeprefix("--config.").partition("=")[0] in swept]:
        raise UserError(f"{refused[0]}: --sweep={sweep} sets it; leave it out")
    return tuple(_row(sweep, config, name, overrides, handed_on) for name, overrides in entries)


def _read(names: Mapping[str, Any]) -> tuple[str | None, bool, list[Any]]:
    """Return (CONFIG of the file or None, whether it has get_config, its entries)."""
    return names.get("CONFIG"), "get_config" in names, list(names["get_sweep"]())


def _check(sweep: str, entries: Sequence[Any]) -> None:
    """Raise UserError for the first entry that is not a valid (name, overrides) with a unique name."""
    if not entries:
        raise UserError(f"--sweep={sweep}: get_sweep() has no entries; it yields (name, {{key: value}})")
    names = set()
    for entry in entries:
        if not isinstance(entry, tuple) or len(entry) != 2 or not isinstance(entry[1], Mapping):
            raise UserError(f"--sweep={sweep}: get_sweep() yields {str(entry)[:80]}; expected (name, {{key: value}})")
        name, overrides = entry
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise UserError(
                f"--sweep={sweep}: {str(name)[:120]!r} is not a valid name; expected letters, digits, _.+=-, no number"
            )
        if name in FILES:
            raise UserError(f"--sweep={sweep}: {name!r} is a file of the report; give the entry another name")
        if name in names:
            raise UserError(f"--sweep={sweep}: two entries are named {name!r}; use unique names")
        names.add(name)
        if unknown := [key for key in overrides if key not in config_lib.known_keys()]:
            raise config_lib.unknown_key(str(unknown[0]))
        if "seed" in overrides:
            raise UserError(
                f"{name} of --sweep={sweep}: seed={overrides['seed']}, but each entry runs with seeds 0 to N - 1; "
                "remove it and use --seeds=N"
            )


def _plain(entry: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides of an entry as JSON types; raise UserError for other types."""

    def plain(key: str, value: Any) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, tuple | list):
            return (tuple if isinstance(value, tuple) else list)(plain(key, item) for item in value)
        if value is not None and not isinstance(value, bool | int | float | str):
            raise UserError(
                f"{entry}: {key}={' '.join(str(value).split())[:80]} is of type {type(value).__name__}; expected a "
                "number, string, bool, None, or a tuple of these"
            )
        return value

    return {key: plain(key, value) for key, value in overrides.items()}


def _row(sweep: str, config: str, name: str, overrides: Mapping[str, Any], handed_on: Sequence[str]) -> RunSpec:
    changes = [f"--config.{key}={value}" for key, value in overrides.items()]
    try:
        with jobs.at_root():
            parsed = flags.parse_flags(["sweep", f"--config={config}", *changes, *handed_on])[0]
    except UserError as error:
        raise UserError(f"{name} of --sweep={sweep}: {error}") from error
    return RunSpec(name, config, parsed.dataset.name, {}, sweep, Budget(parsed.get("total_epochs") or 0.0, "any"),
               changes=dict(overrides))  # fmt: skip
