"""Command lines: argparse with one-line errors, option types, exit statuses."""

import argparse
import os
import pathlib
import re
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

from patchnets.errors import RunError, UserError, first_line, report_error
from patchnets.runtime.disconnect import open_closed_streams
from patchnets.runtime.files import refuse_url


class ArgumentParser(argparse.ArgumentParser):
    """argparse.ArgumentParser that raises UserError, in one line, instead of exiting.

    `--name=` without a value is an error: usually the value was an unset shell variable.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self.register("type", None, text)

    def error(self, message: str) -> Any:
        """Raise UserError."""
        message = first_line(UserError(message.removeprefix("argument ")), limit=1000)
        if message.startswith(("unrecognized arguments", "the following arguments are required")):
            message += "; --help lists the options"
        raise UserError(message)

    def parse_with_overrides(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, tuple[str, ...]]:
        """Return the parsed options, and the `--config.KEY=VALUE` arguments unparsed. Raises UserError."""
        overrides = tuple(argument for argument in arguments if argument.startswith("--config."))
        return self.parse_args([argument for argument in arguments if argument not in overrides]), overrides


def run_cli(argv: Sequence[str], execute: Callable[[list[str]], int], program: str = "patchnets") -> int:
    """Run `execute` with the arguments of a command line and return its exit status.

    UserError, RunError, OSError and Ctrl-C are reported in one line, "PROGRAM: message".
    """
    open_closed_streams()
    try:
        return execute(list(argv[1:]))
    except SystemExit as done:  # --help
        return int(done.code or 0)
    except BrokenPipeError:  # nobody reads any more, as after `| head`; the interpreter shall not try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # SIGPIPE
    except (UserError, RunError, OSError) as error:
        return report_error(error, program)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130


# Option types. They raise argparse.ArgumentTypeError, which the parser reports with the option's name.


def text(value: str) -> str:
    """Parse one or more printable characters."""
    if not value or not value.isprintable():
        raise argparse.ArgumentTypeError(f"expected printable characters, got {value[:120]!r}")
    return value


def positive_int(value: str, limit: int = 10**15) -> int:
    """Parse an integer from 1 to `limit`; commas may separate thousands."""
    number = int(value.replace(",", "")) if re.fullmatch(r"\d[\d,]{0,19}", value, re.ASCII) else 0
    if not 0 < number <= limit:
        most = "" if limit == 10**15 else f", and at most {limit:,}"
        raise argparse.ArgumentTypeError(f"expected a whole number above 0{most}, got {value[:40]!r}")
    return number


def count(value: str) -> int:
    """Parse an integer from 1 to 9,999."""
    return positive_int(value, 9_999)


def seed(value: str) -> int:
    """Parse an integer from 0 to 2^31, as config.seed is."""
    number = int(value) if re.fullmatch(r"\d{1,10}", value, re.ASCII) else -1
    if not 0 <= number <= 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^31, got {value[:40]!r}")
    return number


def positive_float(value: str) -> float:
    """Parse a finite number above 0; commas may separate thousands."""
    try:
        number = float(value.replace(",", ""))
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {value[:40]!r}")
    return number


def share(value: str) -> float:
    """A number from 0 to 1."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {value[:40]!r}")
    return number


def path(value: str) -> pathlib.Path:
    """Parse a path and expand ~."""
    try:
        refuse_url(text(value))
        return pathlib.Path(value).expanduser()
    except (RuntimeError, UserError) as error:  # RuntimeError: no such user
        raise argparse.ArgumentTypeError(str(error) if isinstance(error, UserError) else f"{value}: {error}") from error


def out_folder(value: str) -> pathlib.Path:
    """Parse the path of a folder, which need not exist."""
    folder = path(value)
    if folder.exists() and not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{value} is a file; name a folder")
    return folder


def file_of_type(suffix: str) -> Callable[[str], pathlib.Path]:
    """Return the option type of file paths that end with `suffix`, such as ".png"."""

    def parse(value: str) -> pathlib.Path:
        if not value.endswith(suffix):
            raise argparse.ArgumentTypeError(f"expected the name of a {suffix} file, got {value[:120]!r}")
        return path(value)

    return parse


def default_output(model: pathlib.Path, *names: str) -> pathlib.Path:
    """Return a folder for what is made of a model: within the folder that it is. Raise UserError if it is none."""
    if not model.is_dir():
        raise UserError(f"{model} is no folder, in which to write; name one with --output=DIR")
    return model.joinpath(*names)


def add_size_options(parser: ArgumentParser) -> None:
    """Add --image_size and --resize, for a network at another size than that of its training."""
    parser.add_argument(
        "--image_size", type=count, metavar="N", help="side of the inputs in pixels (default: that of the training)"
    )
    parser.add_argument(
        "--resize",
        choices=("bilinear", "bicubic", "bicubic_no_antialias", "block_diagonal"),
        default="bilinear",
        metavar="RULE",
        help="how weights are adapted to --image_size, as config.init.resize (default: %(default)s)",
    )


def checkpoint(value: str) -> str | int:
    """Which checkpoint of a run: best, latest, or a step."""
    if value in ("best", "latest"):
        return value
    if re.fullmatch(r"\d[\d,]{0,19}", value, re.ASCII):
        return int(value.replace(",", ""))
    raise argparse.ArgumentTypeError(f"expected best, latest or a step, got {value[:40]!r}")


def words(known: Collection[str], noun: str) -> Callable[[str], tuple[str, ...]]:
    """Return the option type of comma-separated lists of `known` items; duplicates are dropped."""

    def parse(value: str) -> tuple[str, ...]:
        items = tuple(dict.fromkeys(value.split(",")))
        if unknown := [item for item in items if item not in known]:
            raise argparse.ArgumentTypeError(f"there is no {noun} {unknown[0][:120]!r}; known: {', '.join(known)}")
        return items

    return parse
