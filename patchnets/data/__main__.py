"""Inspect a data set before anything is trained on it.

    python -m patchnets.data PATH|NAME [--output=DIR] [--config=FILE[:ARGUMENT]] [--config.KEY=VALUE ...]

PATH is a folder that contains train/CLASS/; NAME is digits or a data set of TFDS (--data_dir names where it lies).
Prints splits, classes, kinds and sizes of the images, those that cannot be read, those that are in it more than once,
in two splits or under two labels. DIR (default: inspection) receives all figures in inspection.json, and two pictures:
classes.png, images of each class as the network gets them in an evaluation, and augmented.png, the same images in a
training with the augmentation of --config (default: flip and random crops).

Exit status: 0; 1 an image cannot be read; 2 there is no such data set.
"""

import json
import pathlib
import sys
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

    from patchnets.data import inspection, value_range
    from patchnets.runtime.files import write_atomically

    source = data.open_source()
    if "train" in source.sizes and data.value_ranges is None:
        measured = value_range.measure([(source.records("train"), 0, source.sizes["train"])], source.channels)
        if measured is not None:
            source = source.with_ranges(measured.ranges)
            print("\n".join(value_range.describe(measured.ranges, measured)), flush=True)
    result = inspection.inspect(source)
    print("\n".join(inspection.describe(result)), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output / "inspection.json", json.dumps(result.to_json(), indent=2) + "\n")
    runtime.enable_compilation_cache()
    from patchnets.plots import contact_sheet

    written = contact_sheet.draw(result, data, options.output)
    print(f"\nwrote       {', '.join(map(str, [options.output / 'inspection.json', *written]))}")
    return 1 if result.unreadable() else 0


def options_of(dataset: str, data_dir: pathlib.Path | None, config: str | None, overrides: tuple[str, ...]) -> Any:
    """Return the data set's options (`DataOptions`): those of a configuration, or defaults.

    Raises:
      UserError: the configuration is invalid.
    """
    from patchnets.augment.preprocess import Augment
    from patchnets.data.options import DataOptions

    folder = pathlib.Path(dataset).expanduser()
    origin: dict[str, Any] = dict(name=dataset)
    if folder.is_dir() or "/" in dataset:
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
