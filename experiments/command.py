"""What the programs of this folder share on the command line."""

import sys
from collections.abc import Callable

from patchnets.errors import RunError, UserError


def carry_out(argv: list[str], explanation: str | None, work: Callable[[list[str]], int]) -> int:
    """`work` with the arguments, or, for --help, the explanation; returns the exit status.

    A mistake of the user's, or what stops the work, is told in one line.
    """
    if {"--help", "-h"} & set(argv[1:]):
        print(explanation)
        return 0
    try:
        return work(argv[1:])
    except (UserError, RunError) as error:
        print(f"patchnets: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"patchnets: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("patchnets: interrupted", file=sys.stderr)
        return 130
