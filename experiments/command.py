"""What the programs of this folder share on the command line."""

import sys
from collections.abc import Callable

from patchnets.errors import RunError, UserError, tell


def carry_out(argv: list[str], explanation: str | None, work: Callable[[list[str]], int]) -> int:
    """`work` with the arguments, or, for --help, the explanation; returns the exit status.

    A mistake of the user's, or what stops the work, is told in one line.
    """
    if {"--help", "-h"} & set(argv[1:]):
        print(explanation)
        return 0
    try:
        return work(argv[1:])
    except (UserError, RunError, OSError) as error:
        return tell(error)
    except KeyboardInterrupt:
        print("patchnets: interrupted", file=sys.stderr)
        return 130
