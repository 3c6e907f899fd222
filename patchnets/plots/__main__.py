"""Draw plots.

    python -m patchnets.plots WORKDIR [--config.dataset.data_dir=DIR ...]
    python -m patchnets.plots mixing WORKDIR WORKDIR ... [--out=FILE.png]
    python -m patchnets.plots augment --config=FILE[:ARGUMENT] [--out=FILE.png] [--config.KEY=VALUE ...]

The first draws those of a run into WORKDIR/plots/: learning curves, an image and its patches, patch filters, position
embeddings, depthwise kernels, token mixing, confusion matrix, accuracy by class, the most confident mistakes, and
calibration. Keys say where the data are now. The second draws token mixing of several runs side by side
(default: mixing.png). The third draws what augmentation does: training images beside samples as the configuration
has them, and every operation by itself (default: augment.png).
"""

import pathlib
import sys

from patchnets import runtime
from patchnets.config import flags
from patchnets.errors import RunError, UserError, report_error

PLACES = ("dataset.path", "dataset.data_dir", "dataset.cache_dir")  # which may have changed since a run


def main(argv: list[str]) -> int:
    """Carries out a command line and returns the exit status."""
    if len(argv) < 2 or {"-h", "--help"} & set(argv[1:]):
        print(__doc__)
        return 0 if len(argv) > 1 else 2
    commands = {"augment": _augment, "mixing": _mixing}
    try:
        print(commands.get(argv[1], _run)(argv))
    except (UserError, RunError, OSError) as error:
        return report_error(error, "patchnets.plots")
    return 0


def _run(argv: list[str]) -> str:
    """The pictures of a run; those that need neither data nor checkpoint also where these are gone."""
    if argv[1].startswith("-"):
        raise UserError(f"{argv[1]!r} is not understood; give one work directory, or augment --config=FILE")
    from patchnets.plots import curves

    place, changes = pathlib.Path(argv[1]), {}
    for argument in argv[2:]:
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or key not in PLACES or not equals:
            raise UserError(f"{argument!r} is not understood; expected --config.KEY=DIR, KEY being {', '.join(PLACES)}")
        changes[key] = value
    if not (place / "config.json").exists():  # figures alone, without the run
        return str(curves.draw(place))
    runtime.silence_logs()
    runtime.enable_compilation_cache()
    from patchnets.plots import run

    try:
        drawn = run.draw_saved(place, lambda text: print(f"patchnets.plots: {text}", file=sys.stderr), changes)
    except (UserError, RunError) as error:
        print(curves.draw(place))
        raise type(error)(f"the other pictures could not be drawn: {error}") from error
    return "\n".join(map(str, drawn))


def _mixing(argv: list[str]) -> pathlib.Path:
    out, places = _out(argv, "mixing.png"), [a for a in argv[2:] if not a.startswith("--out=")]
    if not places or any(place.startswith("-") for place in places):
        raise UserError("mixing: expected one or more work directories, and perhaps --out=FILE.png")
    runtime.silence_logs()
    runtime.enable_compilation_cache()
    from patchnets.plots import run

    return run.draw_side_by_side([pathlib.Path(place) for place in places], out)


def _out(argv: list[str], default: str) -> pathlib.Path:
    """--out. Raises UserError unless it is the name of a PNG."""
    out = next((a.split("=", 1)[1] for a in argv if a.startswith("--out=")), default)
    if not out.endswith(".png"):
        raise UserError(f"--out={out}: expected the name of a .png file")
    return pathlib.Path(out)


def _augment(argv: list[str]) -> pathlib.Path:
    runtime.silence_logs()
    from patchnets.plots import augmentations

    out = _out(argv, "augment.png")
    config, _ = flags.parse_flags([argv[0]] + [a for a in argv[2:] if not a.startswith("--out=")])
    runtime.enable_compilation_cache()
    return augmentations.draw(config, out)


if __name__ == "__main__":
    runtime.reexec_with_huge_pages()
    sys.exit(main(sys.argv))
