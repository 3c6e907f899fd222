"""Inspect a data set before anything is trained on it.

    python -m patchnets.data PATH|NAME [--output=DIR] [--config=FILE[:ARGUMENT]] [--config.KEY=VALUE ...]

PATH is a folder that contains train/CLASS/; NAME is digits or a data set of TFDS (--data_dir names where it lies).
Prints splits, classes, kinds and sizes of the images, those that cannot be read, those that are in it more than once,
in two splits or under two labels. DIR (default: inspection) receives all figures in inspection.json, and two pictures:
classes.png, the central squares of images of each class, and augmented.png, the same squares in a training with the
augmentation of --config (default: flip and random crops).

Exit status: 0; 1 an image or a split cannot be read; 2 there is no such data set.
"""

import json
import pathlib
import sys
import tempfile
from typing import Any

from patchnets import runtime
from patchnets.errors import UserError
from patchnets.runtime.cli import ArgumentParser, out_folder, path, run_cli

PROGRAM = "patchnets.data"
IMAGE_SIZE, CROP_SCALE_MIN = 128, 0.35  # without --config


def execute(arguments: list[str]) -> int:
    """Inspect the data set that a command line names; return the exit status."""
    parser = ArgumentParser(f"python -m {PROGRAM}", description=__doc__)
    parser.add_argument("dataset", metavar="PATH|NAME", help="a folder, digits, or a data set of TFDS")
    parser.add_argument("--output", type=out_folder, default="inspection", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--data_dir", type=path, metavar="DIR", help="where TFDS's data sets lie")
    parser.add_argument("--config", metavar="FILE[:ARGUMENT]", help="a file of configs/, as patchnets.main takes it")
    options, overrides = parser.parse_with_overrides(arguments)
    runtime.silence_logs()
    data = options_of(options.dataset, options.data_dir, options.config, overrides)

    from patchnets.augment.preprocess import check_channels
    from patchnets.data import inspection, value_range
    from patchnets.runtime.files import write_atomically

    source = data.open_source()
    check_channels(data.augment, source.channels, data.normalize)
    prepare_output(options.output, data.path)
    if data.value_ranges is None:
        source = value_range.with_measured_ranges(source)
    result = inspection.inspect(source)
    print("\n".join(inspection.describe(result)), flush=True)
    write_atomically(options.output / "inspection.json", json.dumps(result.to_json(), indent=2) + "\n")
    runtime.enable_compilation_cache()
    from patchnets.plots import contact_sheet

    written = contact_sheet.draw(result, data, options.output)
    print(f"\nwrote       {', '.join(map(str, [options.output / 'inspection.json', *written]))}")
    return 1 if result.unreadable() or result.problems else 0


def prepare_output(output: pathlib.Path, data: str | None) -> None:
    """Make the folder of the results, before images are read for minutes.

    Raises:
      UserError: it lies in a split of the folder `data`, where its pictures would count as images of a class.
      OSError: it cannot be written.
    """
    from patchnets.data.sources.folder import SPLIT_NAMES

    root = pathlib.Path(data).expanduser().resolve() if data else None
    if root is not None and output.resolve().is_relative_to(root):
        first = next(iter(output.resolve().relative_to(root).parts), "")
        if any(first.lower() in names for names in SPLIT_NAMES.values()):
            raise UserError(f"--output={output} lies among the images; name a folder outside of {root / first}")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output):
        pass


def options_of(dataset: str, data_dir: pathlib.Path | None, config: str | None, overrides: tuple[str, ...]) -> Any:
    """Return the data set's options (`DataOptions`): those of a configuration, or defaults.

    Raises:
      UserError: the configuration is invalid.
    """
    from patchnets.augment.preprocess import Augment
    from patchnets.data.options import DataOptions

    folder = pathlib.Path(dataset).expanduser()
    origin: dict[str, Any] = dict(name=dataset)
    if folder.is_dir() or dataset.startswith(("/", ".", "~")):  # others may be a configuration of TFDS: NAME/CONFIG
        origin = dict(name="folder", path=str(folder))
    if data_dir is not None:
        origin["data_dir"] = str(data_dir)
    if config is None and not overrides:
        return DataOptions(**origin, image_size=IMAGE_SIZE, augment=Augment(flip=True, crop_scale_min=CROP_SCALE_MIN))
    from patchnets.config import flags
    from patchnets.experiment import data_options

    if config is None:
        raise UserError(f"{overrides[0]} changes a configuration; name it with --config")
    of_data = [f"--config.dataset.{key}={value}" for key, value in origin.items()]
    parsed, _ = flags.parse_flags([PROGRAM, f"--config={config}", *of_data, *overrides])
    return data_options(parsed)


def main(argv: list[str]) -> int:
    """Carry out a command line and return the exit status."""
    return run_cli(argv, execute, PROGRAM)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
