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
from patchnets.errors import RunError, UserError
from patchnets.runtime.cli import ArgumentParser, file_of_type, path, run_cli

PLACES = ("dataset.path", "dataset.data_dir", "dataset.cache_dir")  # which may have changed since a run


def execute(arguments: list[str]) -> int:
    """Draws what a command line asks for, and prints the files; returns the exit status."""
    commands = {"augment": _augment, "mixing": _mixing}
    if arguments[:1] and arguments[0] in commands:
        print(commands[arguments[0]](arguments[1:]))
    else:
        print(_run(arguments))
    return 0


def _run(arguments: list[str]) -> str:
    """The pictures of a run; those that need neither data nor checkpoint also where these are gone."""
    from patchnets.plots import curves

    parser = ArgumentParser("python -m patchnets.plots", description=__doc__)
    parser.add_argument("workdir", type=path, help="a work directory, or augment or mixing")
    settings, overrides = parser.parse_with_overrides(arguments)
    directory, changes = settings.workdir, {}
    for override in overrides:
        key, equals, value = override.removeprefix("--config.").partition("=")
        if key not in PLACES or not equals:
            raise UserError(f"{override!r} is not understood; expected --config.KEY=DIR, KEY being {', '.join(PLACES)}")
        changes[key] = value
    if not (directory / "config.json").exists():  # figures alone, without the run
        return str(curves.draw(directory))
    runtime.silence_logs()
    runtime.enable_compilation_cache()
    from patchnets.plots import run

    try:
        drawn = run.draw_saved(directory, lambda text: print(f"patchnets.plots: {text}", file=sys.stderr), changes)
    except (UserError, RunError) as error:
        print(curves.draw(directory))
        raise type(error)(f"the other pictures could not be drawn: {error}") from error
    return "\n".join(map(str, drawn))


def _mixing(arguments: list[str]) -> pathlib.Path:
    parser = ArgumentParser(
        "python -m patchnets.plots mixing",
        description="Draws how the networks of several runs mix patches, side by side.",
    )
    parser.add_argument("workdirs", type=path, nargs="+", help="one or more work directories")
    parser.add_argument("--out", type=file_of_type(".png"), default="mixing.png", help="default: %(default)s")
    settings = parser.parse_args(arguments)
    runtime.silence_logs()
    runtime.enable_compilation_cache()
    from patchnets.plots import run

    return run.draw_side_by_side(settings.workdirs, settings.out)


def _augment(arguments: list[str]) -> pathlib.Path:
    parser = ArgumentParser(
        "python -m patchnets.plots augment",
        description="Draws what augmentation does: training images beside samples, and every operation by itself. "
        "Takes the options of patchnets.main, and its own.",
    )
    parser.add_argument("--config", metavar="FILE[:ARGUMENT]", help="a file of configs/, as patchnets.main takes it")
    parser.add_argument("--out", type=file_of_type(".png"), default="augment.png", help="default: %(default)s")
    settings, rest = parser.parse_known_args(arguments)
    runtime.silence_logs()
    from patchnets.experiment import data_options
    from patchnets.plots import augmentations

    config, _ = flags.parse_flags(
        ["patchnets.plots", *([] if settings.config is None else [f"--config={settings.config}"]), *rest]
    )
    runtime.enable_compilation_cache()
    return augmentations.draw(data_options(config), settings.out)


def main(argv: list[str]) -> int:
    """Carries out a command line and returns the exit status."""
    return run_cli(argv, execute, "patchnets.plots")


if __name__ == "__main__":
    runtime.reexec_with_huge_pages()
    sys.exit(main(sys.argv))
