"""What the programs of this folder share on the command line."""

import pathlib
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence

from patchnets.errors import RunError, UserError, report_error


def run_cli(argv: list[str], explanation: str | None, work: Callable[[list[str]], int]) -> int:
    """`work` with the arguments, or, for --help, the explanation; returns the exit status.

    A mistake of the user's, or what stops the work, is told in one line.
    """
    if {"--help", "-h"} & set(argv[1:]):
        print(explanation)
        return 0
    try:
        return work(argv[1:])
    except (UserError, RunError, OSError) as error:
        return report_error(error)
    except KeyboardInterrupt:
        print("patchnets: interrupted", file=sys.stderr)
        return 130


def split_options(
    arguments: Sequence[str], options: Collection[str], switches: Collection[str] = ()
) -> tuple[dict[str, str], tuple[str, ...]]:
    """{option: value} of --OPTION=VALUE, {switch: "yes"} of --SWITCH, and the --config.KEY=VALUE that runs are handed.

    Raises UserError for any other argument.
    """
    given: dict[str, str] = {}
    handed_on = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        name = option.removeprefix("--")
        if option.startswith("--config."):
            handed_on.append(argument)
        elif option.startswith("--") and name in switches and not equals:
            given[name] = "yes"
        elif option.startswith("--") and name in options and value:
            given[name] = value
        else:
            raise UserError(
                f"{argument!r} is not understood; options have the form --NAME=VALUE, and --help lists them"
            )
    return given, tuple(handed_on)


def count(name: str, given: Mapping[str, str]) -> int | None:
    """An option that is a whole number from 1 to 9,999; None where it is not given. Raises UserError for others."""
    if name not in given:
        return None
    if not re.fullmatch(r"0*[1-9]\d{0,3}", given[name], re.ASCII):
        raise UserError(f"--{name}={given[name][:40]}: expected a whole number above 0, and below 10,000")
    return int(given[name])


def home(path: str) -> pathlib.Path:
    """A path with its ~ resolved. Raises UserError where it names no user."""
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}") from error
