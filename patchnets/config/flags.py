"""Parse the training command line into a configuration and a work directory; print --help."""

import difflib
import json
import os
import pathlib
import re
import runpy
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from absl import flags

from patchnets.errors import UserError, first_line
from patchnets.runtime.files import refuse_url

UNKNOWN_KEY = re.compile(r'Key "(\w+)" does not exist')  # what a locked ConfigDict says


def parse_flags(argv: list[str], complete: bool = True) -> tuple[ml_collections.ConfigDict, str]:
    """Return (configuration, work directory) from a command line; executes the configuration file once. Unless it has
    to be `complete`, values are not checked.

    Raises:
      UserError: the command line or the configuration is invalid; in one line.
    """
    from ml_collections import config_flags

    from patchnets import config as config_lib
    from patchnets.config import published

    argv = [argv[0]] + [re.sub(r"^-(?=[a-z])", "--", argument) for argument in argv[1:]]
    for name in re.findall(r"^--(?:no)?config\.([\w.]+)", "\n".join(argv), re.MULTILINE):
        if name not in config_lib.known_keys():
            raise config_lib.unknown_key(name)
    path, argv = _pop_config_path(argv)
    if not path:
        raise UserError("--config is not given; for example --config=configs/mixer_digits.py, and --help explains")
    name, colon, variant = path.partition(":")
    file = find_config(name)
    config = load_config(file + colon + variant)
    original = config_lib.flatten(config)
    argv, unset = _unset(argv, config_lib.known_keys())
    values = flags.FlagValues()
    try:
        config_flag = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        workdir_flag = flags.DEFINE_string("workdir", None, "", flag_values=values)
        rest = values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_tidy(error)) from error
    config = config_flag.value
    overrides = config_flags.get_override_values(values["config"])
    config.update_from_flattened_dict(
        dict.fromkeys([*config_lib.overridden_by(config_lib.flatten(config), [*overrides, *unset]), *unset])
    )
    changed = config_lib.recipe_diff(original, config_lib.flatten(config))
    marked = published.mark_incomparable(published.Published(**config.published.to_dict()), changed)
    config.published.incomparable = marked.incomparable
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not understood; overrides have the form --config.KEY=VALUE")
    if complete:
        config_lib.validate(config)
    refuse_url(workdir_flag.value or "", "--workdir=")
    name = pathlib.Path(file).stem
    variant = "".join(c if c.isalnum() or c in "-_." else "-" for c in variant)
    return config, workdir_flag.value or os.path.join("runs", f"{name}-{variant}" if variant else name)


def config_directories() -> list[pathlib.Path]:
    """Return the folders searched by name: ./configs, configs/ of the clone, configs/ of the installed package."""
    package = pathlib.Path(__file__).resolve().parents[1]
    return [pathlib.Path("configs"), package.parent / "configs", package / "configs"]


def find_config(name: str) -> str:
    """Return the file of a configuration, from a path or the name of one shipped with patchnets ("mixer_digits").

    Raises:
      UserError: there is no such file or name; the message suggests similar names.
    """
    if pathlib.Path(name).is_file():
        return name
    known: dict[str, pathlib.Path] = {}
    for directory in reversed(config_directories()):
        known |= {path.stem: path for path in sorted(directory.glob("*.py")) if path.stem != "__init__"}
    if name in known:
        return str(known[name])
    near = difflib.get_close_matches(pathlib.Path(name).stem, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"--config={name}: there is no such file, and patchnets has no configuration of that name{hint}")


def _pop_config_path(argv: list[str]) -> tuple[str | None, list[str]]:
    """Return the value of the last --config, and the command line without any --config."""
    path, rest, i = None, [], 0
    while i < len(argv):
        name, equals, value = argv[i].partition("=")
        if name == "--config" and not equals:
            i += 1
            value = argv[i] if i < len(argv) else ""
        if name == "--config":
            path = value
        else:
            rest.append(argv[i])
        i += 1
    return path, rest


def _unset(argv: list[str], keys: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the command line without --config.KEY=None, and those keys; only keys that may be unset."""
    unset = [match[1] for a in argv if (match := re.fullmatch(r"--config\.([\w.]+)=None", a))]
    unset = [name for name in unset if isinstance(keys[name].default, type)]
    return [a for a in argv if a not in {f"--config.{name}=None" for name in unset}], unset


def load_config(path: str) -> ml_collections.ConfigDict:
    """Return the configuration that FILE[:ARGUMENT] defines, or a work directory's config.json holds.

    Keys that it does not set have their defaults. Raise UserError if it cannot be loaded.
    """
    from patchnets import config as config_lib

    file, *argument = path.split(":", 1)
    if file.endswith(".json") and not argument:
        config = from_json(path)
    else:
        config = from_file("config", path, file, lambda names: names["get_config"](*argument))
    if not isinstance(config, ml_collections.ConfigDict | Mapping):
        raise UserError(f"--config={path}: get_config() returns a {type(config).__name__}; expected a ConfigDict")
    groups = {name.partition(".")[0] for name in config_lib.known_keys()}
    if isinstance(config, ml_collections.ConfigDict) and groups <= set(config):
        return config
    try:
        return config_lib.default_config(**config_lib.unflatten(config_lib.flatten(config)))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"--config={path} cannot be loaded: {_tidy(error)}") from error


def from_json(path: str) -> dict[str, Any]:
    """Return the object in a JSON file. Raise UserError if it holds none."""
    try:
        values = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--config={path} cannot be read ({first_line(error)})") from error
    if not isinstance(values, dict):
        raise UserError(f"--config={path} holds a {type(values).__name__}; expected a configuration, {{...}}")
    return values


def from_file(option: str, value: str, file: str, read: Callable[[dict[str, Any]], Any]) -> Any:
    """Execute a Python file and return `read(names)`, where `names` are the file's global variables.

    Raises:
      UserError: the file, passed as --`option`=`value`, does not exist, or it or `read` raises; in one line.
    """
    if not pathlib.Path(file).is_file():
        raise UserError(f"--{option}={value}: there is no such file")
    try:
        return read(runpy.run_path(file))
    except UserError:
        raise
    except Exception as error:  # the file may raise anything
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = f" (line {lines[-1]})" if lines else ""
        if unknown := UNKNOWN_KEY.search(str(error)):
            from patchnets import config as config_lib

            raise UserError(f"--{option}={value}: {config_lib.unknown_key(unknown[1])}{line}") from error
        raise UserError(f"--{option}={value} cannot be loaded: {type(error).__name__}: {_tidy(error)}{line}") from error


def _tidy(error: BaseException) -> str:
    """Return an error's message in one line."""
    return first_line(error, limit=1_000_000).split(" Other fields present")[0][:400]  # ml_collections lists all keys


def print_help(argv: list[str], usage: str | None) -> None:
    """Print --help: `usage`, and every key with its value and meaning."""
    from patchnets import config as config_lib

    try:
        config = parse_flags([a for a in argv if a not in ("--help", "-h", "-help")], complete=False)[0]
    except UserError:
        config = None
    print(usage)
    print(
        "Keys, their values"
        + (" in this configuration" if config is not None else " by default")
        + " (- if not set), and meanings:\n"
    )
    print(config_lib.format_help(None if config is None else config_lib.flatten(config)))
