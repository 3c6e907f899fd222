"""python -m patchnets.plots WORKDIR: draws the pictures of a run into WORKDIR/plots/."""

import pathlib
import sys

from patchnets.errors import UserError
from patchnets.plots import curves


def run(argv: list[str]) -> int:
    if len(argv) != 2 or argv[1].startswith("-"):
        print(__doc__)
        return 0 if argv[1:] in (["-h"], ["--help"]) else 2
    try:
        print(curves.draw(pathlib.Path(argv[1])))
    except UserError as error:
        print(f"patchnets.plots: {error}", file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv))
