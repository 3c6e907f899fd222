"""Draws pictures.

    python -m patchnets.plots WORKDIR
    python -m patchnets.plots augment --config=FILE[:ARGUMENT] [--out=FILE.png] [--config.KEY=VALUE ...]

The first draws those of a run into WORKDIR/plots/. The second draws what augmentation does: training images beside
samples as the configuration has them, and every operation by itself (default: augment.png).
"""

import os
import pathlib
import sys

from patchnets.errors import RunError, UserError


def run(argv: list[str]) -> int:
    """Carries out a command line and returns the exit status."""
    if len(argv) < 2 or {"-h", "--help"} & set(argv[1:]):
        print(__doc__)
        return 0 if len(argv) > 1 else 2
    try:
        print(_augment(argv) if argv[1] == "augment" else _curves(argv[1:]))
    except (UserError, RunError) as error:
        print(f"patchnets.plots: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"patchnets.plots: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _curves(arguments: list[str]) -> pathlib.Path:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError(f"{arguments[-1]!r} is not understood; give one work directory, or augment --config=FILE")
    from patchnets.plots import curves

    return curves.draw(pathlib.Path(arguments[0]))


def _augment(argv: list[str]) -> pathlib.Path:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from patchnets import main
    from patchnets.plots import augment

    out = next((a.split("=", 1)[1] for a in argv if a.startswith("--out=")), "augment.png")
    if not out.endswith(".png"):
        raise UserError(f"--out={out}: expected the name of a .png file")
    config, _ = main.parse([argv[0]] + [a for a in argv[2:] if not a.startswith("--out=")])
    main.keep_compiled()
    return augment.draw(config, pathlib.Path(out))


if __name__ == "__main__":
    sys.exit(run(sys.argv))
