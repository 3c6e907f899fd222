"""The command line to a configuration and a work directory; --help."""

import itertools
import os
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from patchnets.errors import UserError, first_line

if TYPE_CHECKING:
    import ml_collections


def parse_flags(argv: list[str]) -> "tuple[ml_collections.ConfigDict, str]":
    """(configuration, work directory) from a command line. Raises UserError, in one line, for what is wrong with it."""
    from ml_collections import config_flags

    from patchnets import config as config_lib
    from patchnets.config import published

    argv = [argv[0]] + [re.sub(r"^-(?=[a-z])", "--", argument) for argument in argv[1:]]
    for name in re.findall(r"^--(?:no)?config\.([\w.]+)", "\n".join(argv), re.MULTILINE):
        if name not in config_lib.known_keys():
            raise config_lib.unknown_key(name)
    path = next((a.split("=", 1)[1] for a in argv if a.startswith("--config=")), None)
    path = path or next((b for a, b in itertools.pairwise(argv) if a == "--config"), None)
    if path is None:
        raise UserError("--config is not given; for example --config=configs/mixer_digits.py, and --help explains")
    original = _load_file(path)
    argv, unset = _unset(argv, config_lib.known_keys())
    values = flags.FlagValues()
    try:
        config_flag = config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
        workdir_flag = flags.DEFINE_string("workdir", None, "", flag_values=values)
        rest = values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_tidy(error)) from error
    config = config_flag.value
    given = config_flags.get_override_values(values["config"])
    config.update_from_flattened_dict(
        dict.fromkeys([*config_lib.overridden_by(config_lib.flatten(config), [*given, *unset]), *unset])
    )
    changed = config_lib.recipe_diff(original, config_lib.flatten(config))
    figures = published.mark_incomparable(published.Published(**config.published.to_dict()), changed)
    config.published.incomparable = figures.incomparable
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not understood; overrides have the form --config.KEY=VALUE")
    config_lib.validate(config)
    name = pathlib.Path(path.split(":", 1)[0]).stem
    variant = "".join(c if c.isalnum() or c in "-_." else "-" for c in path.partition(":")[2])
    return config, workdir_flag.value or os.path.join("runs", f"{name}-{variant}" if variant else name)


def _unset(argv: list[str], keys: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The command line without --config.KEY=None, and those keys, which may be left without a value."""
    unset = [match[1] for a in argv if (match := re.fullmatch(r"--config\.([\w.]+)=None", a))]
    unset = [name for name in unset if isinstance(keys[name].default, type)]
    return [a for a in argv if a not in {f"--config.{name}=None" for name in unset}], unset


def _load_file(path: str) -> dict[str, Any]:
    """Loads a configuration file once to say what is wrong with it, which the flag that loads it again does not.

    Returns it as a flat dictionary."""
    from patchnets import config as config_lib

    sys.modules.pop("config_config", None)  # the name under which the flag would find an earlier file again
    file, *argument = path.split(":", 1)
    return from_file("config", path, file, lambda names: config_lib.flatten(names["get_config"](*argument)))


def from_file(option: str, told: str, file: str, work: Callable[[dict[str, Any]], Any]) -> Any:
    """What `work` makes of the names that a Python file defines.

    Raises:
      UserError: the file, given as --`option`=`told`, is not there, or something in it fails; in one line.
    """
    if not pathlib.Path(file).is_file():
        raise UserError(f"--{option}={told}: there is no such file")
    try:
        return work(runpy.run_path(file))
    except UserError:
        raise
    except Exception as error:  # anything that a file may do
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        where = f" (line {lines[-1]})" if lines else ""
        raise UserError(f"--{option}={told} cannot be loaded: {type(error).__name__}: {_tidy(error)}{where}") from error


def _tidy(error: BaseException) -> str:
    """An error's own words in one line."""
    return first_line(error, limit=1_000_000).split(" Other fields present")[0][:400]  # ml_collections prints them all


def print_help(argv: list[str], usage: str | None) -> None:
    """--help: what the program does, and every key with its value and meaning."""
    from patchnets import config as config_lib

    try:
        config = parse_flags([a for a in argv if a not in ("--help", "-h", "-help")])[0]
    except UserError:
        config = None
    print(usage)
    print(
        "Keys, their values"
        + (" as given" if config is not None else " by default")
        + " (- for not set), and meanings:\n"
    )
    print(config_lib.format_help(None if config is None else config_lib.flatten(config)))
