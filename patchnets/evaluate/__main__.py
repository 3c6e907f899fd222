"""Evaluate a trained model on labeled images.

    python -m patchnets.evaluate MODEL
    python -m patchnets.evaluate MODEL --data=FOLDER
    python -m patchnets.evaluate MODEL --dataset=NAME --split=test [--data_dir=DIR]
    python -m patchnets.evaluate MODEL --probe=knn,fewshot,linear [--data=FOLDER | --dataset=NAME] [--k=N ...]

MODEL is a work directory, an export for timm or npz, or weights that others trained (docs/weights.md). The first
evaluates on the test split of a run's own data set; the second on a folder that has a folder of images for each class,
or folders test/ and val/ that have these; the third on a split of the digits or of a TFDS data set. Classes are matched
by name.

The last evaluates the features before the head: classifiers are fitted to those of the train split and tested on the
test split, whose classes may be any. knn has the 20 nearest neighbors vote (DINO's rule); fewshot fits least squares to
1, 5, 10 and 25 images of each class, five times; linear is a logistic regression, regularized as is best on validation
(the val split, or the last tenth of train), which only this one needs. The results go into
MODEL/evaluation/DATA-probes/probes.json. With --features=DIR the features are kept, and the next probe of the same
images takes them from there.

Accuracy, top-5 accuracy, loss, precision, recall and F1 by class, confusion and calibration are printed and written to
MODEL/evaluation/DATA/, as evaluation.json, CSV files and pictures. Exit status: 0; 1 if some images could not be read,
the others being evaluated; 2 if the request cannot be carried out.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Iterator
from typing import Any

from patchnets import runtime
from patchnets.errors import RunError, UserError, first_line
from patchnets.runtime.cli import (
    ArgumentParser,
    add_size_options,
    checkpoint,
    count,
    default_output,
    out_folder,
    path,
    positive_float,
    positive_int,
    run_cli,
    seed,
)

PROBE_SETTINGS = ("k", "temperature", "shots", "draws", "seed")  # of `probes.ProbeSettings`, which has their defaults


def make_parser() -> ArgumentParser:
    """Return the options of this command."""
    parser = ArgumentParser("python -m patchnets.evaluate", description=__doc__)
    parser.add_argument("model", type=path, metavar="MODEL", help="a run, an export, or others' weights")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--data", type=path, metavar="FOLDER", help="a folder of class folders, or of test/ and val/")
    data.add_argument("--dataset", metavar="NAME", help="digits, or a name of TFDS")
    parser.add_argument(
        "--split", help="in TFDS's syntax; without --dataset also train, val and test of the run (default: test)"
    )
    parser.add_argument("--data_dir", metavar="DIR", help="where TFDS's data sets are")
    parser.add_argument(
        "--probe", type=probe_names, metavar="NAMES", help="knn, fewshot, linear, or several with commas"
    )
    parser.add_argument("--k", type=positive_int, metavar="N", help="knn: neighbors (default: 20)")
    parser.add_argument(
        "--temperature", type=positive_float, metavar="T", help="knn: a vote is exp(cosine / T) (default: 0.07)"
    )
    parser.add_argument("--shots", type=shot_counts, metavar="N,N", help="fewshot: images a class (default: 1,5,10,25)")
    parser.add_argument("--draws", type=positive_int, metavar="N", help="fewshot: draws of them (default: 5)")
    parser.add_argument("--seed", type=seed, metavar="N", help="fewshot: of the draws (default: 0)")
    parser.add_argument("--features", type=out_folder, metavar="DIR", help="keep the features of --probe there")
    for split in ("train", "val", "test"):
        parser.add_argument(f"--{split}_split", metavar="SPLIT", help="of --probe, in TFDS's syntax: train[:5000]")
    parser.add_argument("--output", type=out_folder, metavar="DIR", help="default: MODEL/evaluation/DATA")
    parser.add_argument("--network", metavar="NAME", help="what others' weights are of, if they do not say it")
    parser.add_argument(
        "--checkpoint",
        type=checkpoint,
        default="best",
        metavar="best|latest|STEP",
        help="best by validation, latest, or of a step (default: %(default)s)",
    )
    add_size_options(parser)
    parser.add_argument("--batch_size", type=positive_int, default=64, metavar="N", help="default: %(default)s")
    return parser


def probe_names(value: str) -> list[str]:
    """Parse --probe."""
    names = value.split(",")
    if unknown := [name for name in names if name not in ("knn", "fewshot", "linear")]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown; expected knn, fewshot or linear")
    return names


def shot_counts(value: str) -> tuple[int, ...]:
    """Parse --shots."""
    return tuple(sorted({count(number) for number in value.split(",")}))


def execute(arguments: list[str]) -> int:
    """Evaluate as a command line says; return the exit status."""
    options = make_parser().parse_args(arguments)
    if options.split and options.data:
        raise UserError(f"--split={options.split} goes with --dataset or the run's own data; --data names one split")
    for name in ("features", *(f"{role}_split" for role in ("train", "val", "test")), *PROBE_SETTINGS):
        if getattr(options, name) is not None and not options.probe:
            raise UserError(f"--{name} goes with --probe")
    runtime.silence_logs()
    runtime.enable_compilation_cache()
    from patchnets.evaluate import data, report
    from patchnets.inference import evaluation
    from patchnets.inference.load import load

    model = load(options.model, options.checkpoint, options.network, options.image_size, options.resize)
    if options.probe:
        return probe_features(model, options)
    model.require_classes()
    selection = data.select(
        model.spec,
        options.model,
        folder=options.data,
        dataset=options.dataset,
        split=options.split,
        data_dir=options.data_dir,
    )
    directory = options.output or default_output(options.model, "evaluation", selection.label + variant_of(options))
    with report.output_folder(directory) as partial:
        outputs = evaluation.compute_outputs(model, with_progress(selection.data), options.batch_size)
        val, val_name = None, selection.val_name
        if selection.val is not None:
            try:
                val = evaluation.compute_outputs(model, with_progress(selection.val), options.batch_size)
            except (UserError, RunError) as error:
                val_name = first_line(error)
        result = evaluation.compute_metrics(model, selection.data.name, outputs, val)
        about = {
            "model": str(options.model),
            "network": model.spec.network,
            "checkpoint": options.checkpoint,
            "image_size": model.spec.image_size,
            "loss_function": model.spec.loss,
            "temperature_fitted_on" if val else "no_temperature_because": val_name,
        }
        files = report.write_files(result, about, partial, title=selection.label, numbered=selection.data.numbered)
    print(report.format_table(result, val_name))
    print(f"  {directory}: {', '.join(files)}", flush=True)
    notes = report.format_notes(result)
    complete = not result.unreadable and not any(result.unknown_classes.values())
    if selection.role and complete and data.differs_from_run(model.spec, selection.role, outputs.labels):
        notes.insert(0, f"these are not the images of the run's {selection.role} split: their labels differ")
    if val is not None and val.unreadable:
        notes += [*val.unreadable[:1], f"{len(val.unreadable):,} validation images could not be read"]
    for note in notes:
        print(f"patchnets.evaluate: {note}", file=sys.stderr)
    return 1 if result.unreadable or (val is not None and val.unreadable) else 0


def probe_features(model: Any, options: argparse.Namespace) -> int:
    """Evaluate a model's features as a command line says; return the exit status."""
    from patchnets.evaluate import probe
    from patchnets.inference.probes import ProbeSettings, run_probes

    if options.split:
        raise UserError("--split does not go with --probe, which uses the train, val and test splits")
    data = probe.select(
        model.spec,
        options.model,
        folder=options.data,
        dataset=options.dataset,
        data_dir=options.data_dir,
        with_val="linear" in options.probe,
        chosen={"train": options.train_split, "val": options.val_split, "test": options.test_split},
    )
    label = "".join(c if c.isalnum() or c in "-._" else "_" for c in data.label + variant_of(options))
    directory = options.output or default_output(options.model, "evaluation", f"{label}-probes")
    roles = [role for role in ("train", "val", "test") if getattr(data, role) is not None]
    sets = {role: features_of(model, data, role, options) for role in roles}
    changed = {name: value for name in PROBE_SETTINGS if (value := getattr(options, name)) is not None}
    settings = ProbeSettings(options.probe, **changed)
    labeled = {role: split.labeled for role, split in sets.items()}
    results, notes = run_probes(settings, labeled["train"], labeled["test"], labeled.get("val"))
    print(probe.format_table(data, sets, results))
    for note in notes:
        print(f"patchnets.evaluate: {note}", file=sys.stderr)
    about = {
        "model": str(options.model),
        "network": model.spec.network,
        "checkpoint": options.checkpoint,
        "image_size": model.spec.image_size,
        "resize": None if options.image_size is None else options.resize,
        "data": data.label,
        "splits": {role: getattr(data, role).name for role in roles},
        "images": {role: len(split.labels) for role, split in sets.items()},
    }
    probe.write_results(directory, about, results)
    print(f"  {directory}: {probe.FILE_NAME}", flush=True)
    unreadable = [line for split in sets.values() for line in split.unreadable]
    for line in [*unreadable[:3], f"{len(unreadable):,} images could not be read"] if unreadable else []:
        print(f"patchnets.evaluate: {line}", file=sys.stderr)
    return 1 if unreadable else 0


def features_of(model: Any, data: Any, role: str, options: argparse.Namespace) -> Any:
    """Return the features of a split: those that were kept in options.features, or else computed, and kept there."""
    from patchnets.evaluate import kept_features, probe

    images = getattr(data, role)
    compute = functools.partial(
        probe.compute_features, model, with_progress(images), data.train.classes, options.batch_size
    )
    if options.features is None:
        return compute()
    file, identity = options.features / f"{role}.npz", probe.identity(model, data, images)
    kept = kept_features.read(file, identity)
    if kept is None:
        kept = compute()
        kept_features.write(file, kept, identity)
    return kept


def variant_of(options: argparse.Namespace) -> str:
    """Return what the name of a folder of results says of the checkpoint and the image size, if they were chosen."""
    checkpoint = "" if options.checkpoint == "best" else f"-{options.checkpoint}"
    return checkpoint if options.image_size is None else f"{checkpoint}-{options.image_size}px"


def with_progress(images: Any) -> Any:
    """Return labeled images that show on a terminal how many of them have been read."""
    from tqdm import tqdm

    def examples() -> Iterator[Any]:
        yield from tqdm(images.examples(), images.name, images.count, unit=" images", disable=None, leave=False)

    return dataclasses.replace(images, examples=examples)


def main(argv: list[str]) -> int:
    """Carry out a command line and return the exit status."""
    return run_cli(argv, execute, "patchnets.evaluate")


if __name__ == "__main__":
    runtime.start_program("patchnets.evaluate")
    sys.exit(main(sys.argv))
