"""Classify images.

    python -m patchnets.predict MODEL IMAGES... [--output=FILE.csv|.jsonl|.npz] [--topk=5] [--explain=DIR] ...

MODEL is a work directory, an export for timm or npz, or weights that others trained (docs/weights.md). IMAGES are
files, folders (searched with the folders in them, for names that end as an image's), quoted patterns such as
'photos/**/*.jpg', or - for a list of paths on standard input, one a line. Images of any size and of every format that
Pillow decodes are cropped and resized as in the evaluation of training.

Each image is a line on the terminal: its name and its most probable classes. With --output they go into a file:

  .csv    filename, label, probability, label_2, probability_2, ..., error
  .jsonl  one object a line: filename, predictions (label, probability), or error
  .npz    arrays: filenames, probabilities, classes, errors, and features with --features

An image that cannot be read is named, has an `error` in the file, and makes the exit status 1 at the end; so does a
folder that cannot be searched. Exit status: 0; 1 an image could not be read, or the model; 2 the request cannot be
carried out.
"""

import argparse
import collections
import io
import os
import pathlib
import sys
from typing import Any

from patchnets import runtime
from patchnets.errors import RunError, UserError
from patchnets.runtime.cli import (
    ArgumentParser,
    add_size_options,
    checkpoint,
    count,
    out_folder,
    path,
    run_cli,
    share,
)

PROGRAM = "patchnets.predict"
SUFFIXES = (".csv", ".jsonl", ".npz")


def parse_args(arguments: list[str]) -> argparse.Namespace:
    """Return the options. Raise UserError for what is wrong with them."""
    parser = ArgumentParser(f"python -m {PROGRAM}", description=__doc__)
    parser.add_argument("model", metavar="MODEL", type=path, help="a run, an export, or others' weights")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders, patterns, or -")
    parser.add_argument("--topk", type=count, default=5, help="how many classes of each image (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", type=_output, help="a .csv, .jsonl or .npz file to write")
    parser.add_argument("--all", action="store_true", help="write the probability of every class (.csv, .jsonl)")
    parser.add_argument(
        "--threshold",
        type=share,
        help="mark the classes that are at least this probable: on the terminal by a *, in files as `labels`; an image "
        "without any is uncertain (default: 0.5 for a network of several labels an image, trained with loss sigmoid; "
        "no marks for others)",
    )
    parser.add_argument("--network", metavar="NAME", help="what others' weights are of, if they do not say it")
    parser.add_argument(
        "--checkpoint", type=checkpoint, default="best", help="best, latest or a step (default: %(default)s)"
    )
    add_size_options(parser)
    parser.add_argument("--batch_size", type=count, default=64, help="images at a time (default: %(default)s)")
    parser.add_argument("--features", action="store_true", help="write the inputs of the head too (.npz)")
    parser.add_argument(
        "--explain",
        metavar="DIR",
        type=out_folder,
        help="a folder that gets, for each image, a picture of what its first class rests on (attention rollout of a "
        "ViT, else SmoothGrad); no file in it is overwritten",
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first image that cannot be read")
    options = parser.parse_args(arguments)
    suffix = options.output.suffix if options.output else None
    if options.features and suffix != ".npz":
        raise UserError("--features are written to .npz files; give --output=FILE.npz")
    if options.all and suffix not in (".csv", ".jsonl"):
        raise UserError("--all is for .csv and .jsonl files (a .npz has every class); give --output=FILE.csv")
    return options


def _output(value: str) -> pathlib.Path:
    if not value.endswith(SUFFIXES):
        raise argparse.ArgumentTypeError(f"expected the name of a .csv, .jsonl or .npz file, got {value[:120]!r}")
    file = path(value)
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{value} is a folder; name a file")
    return file


def execute(arguments: list[str]) -> int:
    """Carry out a command line; return the exit status."""
    options = parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names need not have an encoding on the terminal
        sys.stdout.reconfigure(errors="backslashreplace")
    from patchnets.predict import inputs

    total = inputs.count_images(options.images, options.explain)
    runtime.silence_logs()
    from patchnets.parallel import cpu

    cpu.use_one_device_per_core({options.batch_size})
    runtime.enable_compilation_cache()
    from patchnets.inference.load import load
    from patchnets.predict import stream, writers

    model = load(options.model, options.checkpoint, options.network, options.image_size, options.resize)
    if options.explain or not options.features:
        model.require_classes()
    threshold = 0.5 if options.threshold is None and model.spec.loss == "sigmoid" else options.threshold
    layout = writers.Layout(
        model.classes, min(options.topk, len(model.classes)), options.all, threshold, options.explain is not None
    )
    passed_over = collections.Counter[str]()
    number = failed = folders = 0
    with writers.open_writer(options.output, layout) as writer, _progress(options, total) as progress:
        for prediction in stream.predictions(model, options, layout, passed_over):
            if prediction.error:
                progress.write(f"{PROGRAM}: {prediction.error}", file=sys.stderr)
                failed += 1
                folders += os.path.isdir(prediction.filename)
            elif options.output is None:
                print(stream.line(prediction, layout), flush=True)
            writer.write(prediction)
            number += 1
            progress.update()
        if not number:
            raise UserError("there are no paths of images on standard input")
    if passed_over:
        kinds = inputs.by_suffix(passed_over)
        print(f"{PROGRAM}: {passed_over.total():,} files are no images that Pillow reads ({kinds})", file=sys.stderr)
    if options.output is not None:
        print(f"{number:,} image{'s' * (number > 1)}: {options.output}")
    if failed:
        raise RunError(f"{failed:,} of {number:,} images{' and folders' * bool(folders)} could not be read")
    return 0


def _progress(options: argparse.Namespace, total: int | None) -> Any:
    """Return a progress bar: on a terminal, where predictions go into a file."""
    from tqdm import tqdm

    return tqdm(total=total, unit=" images", unit_scale=True, disable=True if options.output is None else None)


def main(argv: list[str]) -> int:
    """Carry out a command line and return the exit status."""
    return run_cli(argv, execute, PROGRAM)


if __name__ == "__main__":
    runtime.start_program(PROGRAM)
    sys.exit(main(sys.argv))
