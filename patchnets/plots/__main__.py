"""Draw plots.

    python -m patchnets.plots WORKDIR [--config.dataset.data_dir=DIR ...]
    python -m patchnets.plots mixing WORKDIR WORKDIR ... [--out=FILE.png]
    python -m patchnets.plots augment --config=FILE[:ARGUMENT] [--out=FILE.png] [--config.KEY=VALUE ...]

The first draws the plots of a run into WORKDIR/plots/: learning curves, an image and its patches, patch filters,
position embeddings, depthwise kernels, token mixing, confusion matrix, accuracy by class, the most confident mistakes,
and calibration. Pass --config.dataset.* if the data have moved. The second compares the token mixing of several runs
in one figure (default: mixing.png). The third shows training images, augmented samples of a configuration, and every
operation by itself (default: augment.png).
"""

import pathlib
import sys

from patchnets import runtime
from patchnets.config import flags
from patchnets.errors import RunError, UserError
from patchnets.runtime.cli import ArgumentParser, file_of_type, path, run_cli

DATA_KEYS = ("dataset.path", "dataset.data_dir", "dataset.cache_dir")  # may differ from those of the run


def execute(arguments: list[str]) -> int:
    """Draw the requested plots, print the paths of their files, and return the exit status."""
    commands = {"augment": _augment, "mixing": _mixing}
    if arguments[:1] and arguments[0] in commands:
        print(commands[arguments[0]](arguments[1:]))
    else:
        print(_run(arguments))
    return 0


def _run(arguments: list[str]) -> str:
    """Draw the plots of a run; without its data or checkpoints, only the learning curves."""
    from patchnets.plots import curves

    parser = ArgumentParser("python -m patchnets.plots", description=__doc__)
    parser.add_argument("workdir", type=path, help="a work directory, or augment or mixing")
    settings, overrides = parser.parse_with_overrides(arguments)
    directory, changes = settings.workdir, {}
    for override in overrides:
        key, equals, value = override.removeprefix("--config.").partition("=")
        if key not in DATA_KEYS or not equals:
            raise UserError(f"{override!r}: expected --config.KEY=DIR, where KEY is one of {', '.join(DATA_KEYS)}")
        changes[key] = value
    if not (directory / "config.json").exists():  # only metrics, without the run
        return str(curves.draw(directory))
    runtime.silence_logs()
    runtime.enable_compilation_cache()
    from patchnets.plots import run

    try:
        drawn = run.draw_saved(directory, lambda text: print(f"patchnets.plots: {text}", file=sys.stderr), changes)
    except (UserError, RunError) as error:
        print(curves.draw(directory))
        raise type(error)(f"the other plots could not be drawn: {error}") from error
    return "\n".join(map(str, drawn))


def _mixing(arguments: list[str]) -> pathlib.Path:
    parser = ArgumentParser(
        "python -m patchnets.plots mixing",
        description="Draw the token mixing of several runs in one figure.",
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
        description="Draw training images, augmented samples of a configuration, and every operation by itself. "
        "Also takes the options of patchnets.main.",
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
    """Run a command line and return the exit status."""
    return run_cli(argv, execute, "patchnets.plots")


if __name__ == "__main__":
    runtime.start_program("patchnets.plots")
    sys.exit(main(sys.argv))
