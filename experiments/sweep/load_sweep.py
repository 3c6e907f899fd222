"""The entries of a sweep, read from its file."""

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

NAME = r"(?!\d+$)[A-Za-z0-9][A-Za-z0-9_.+=-]{0,99}"  # not a number, which counts entries


def rows(sweep: str, config: str | None, handed_on: Sequence[str]) -> tuple[RunSpec, ...]:
    """A row, of which nothing was published, for each of the overrides that a file's `get_sweep` yields.

    They change `config` (FILE[:ARG]), or else what the file's CONFIG names, or the file's own configuration.

    Raises:
      UserError: the file cannot be used so, or the command line sets what the sweep does.
    """
    with jobs.at_root():
        named, is_one, read_entries = flags.from_file("sweep", sweep, sweep, _read)
    config = config or named or (sweep if is_one else None)
    if config is None:
        raise UserError(f"--sweep={sweep} has neither CONFIG nor get_config(); give --config=FILE[:ARGUMENT]")
    _check(sweep, read_entries)
    entries = [(name, _plain(f"{name} of --sweep={sweep}", overrides)) for name, overrides in read_entries]
    swept = {key for _, overrides in entries for key in overrides}
    if refused := [a for a in handed_on if a.removeprefix("--config.").partition("=")[0] in swept]:
        raise UserError(f"{refused[0]}: --sweep={sweep} sets it; leave it out")
    return tuple(_row(sweep, config, name, overrides, handed_on) for name, overrides in entries)


def _read(names: Mapping[str, Any]) -> tuple[str | None, bool, list[Any]]:
    """(the configuration that a file names, whether it is one itself, its entries)."""
    return names.get("CONFIG"), "get_config" in names, list(names["get_sweep"]())


def _check(sweep: str, entries: Sequence[Any]) -> None:
    """Raises UserError for the first entry that is no (name, overrides) of its own."""
    if not entries:
        raise UserError(f"--sweep={sweep}: get_sweep() has no entries; it yields (name, {{key: value}})")
    names = set()
    for entry in entries:
        if not isinstance(entry, tuple) or len(entry) != 2 or not isinstance(entry[1], Mapping):
            raise UserError(f"--sweep={sweep}: get_sweep() yields {str(entry)[:80]}; expected (name, {{key: value}})")
        name, overrides = entry
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise UserError(
                f"--sweep={sweep}: {str(name)[:120]!r} is no name; expected letters, digits and _.+=-, not a number"
            )
        if name in FILES:
            raise UserError(f"--sweep={sweep}: {name!r} is a file of the report; give the entry another name")
        if name in names:
            raise UserError(f"--sweep={sweep}: {name!r} is the name of two entries; give each its own")
        names.add(name)
        if unknown := [key for key in overrides if key not in config_lib.known_keys()]:
            raise config_lib.unknown_key(str(unknown[0]))
        if "seed" in overrides:
            raise UserError(
                f"{name} of --sweep={sweep}: seed={overrides['seed']}, and each entry is run with the seeds from 0 on; "
                "leave it out, and give --seeds=N"
            )


def _plain(entry: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry changes, as JSON can hold it. Raises UserError for what it cannot."""

    def plain(key: str, value: Any) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, tuple | list):
            return (tuple if isinstance(value, tuple) else list)(plain(key, item) for item in value)
        if value is not None and not isinstance(value, bool | int | float | str):
            raise UserError(
                f"{entry}: {key}={' '.join(str(value).split())[:80]} is of type {type(value).__name__}; expected a "
                "number, a word, a truth value, None, or a tuple of these"
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
