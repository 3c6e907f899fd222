"""Train networks of several families with one recipe, at equal cost, and compare their accuracies.

    python -m experiments.compare --models=mlp_mixer,fnet,gmlp,convmixer,vit --match=params --dataset=cifar100 --seeds=3

The recipe is configs/compare.py; other keys, such as --config.optimizer.learning_rate=3e-4, change it for all networks.
Finished runs are kept: the same command trains what is missing and resumes interrupted runs.

Writes compare.md, compare.json, compare.png and curves.png into the folder, also when interrupted. Exit status: 0; 1 if
a run failed; 2 for an invalid command line; 128 + N if signal N stopped it.
"""

import argparse
import dataclasses
import functools
import pathlib
import re
import shlex
import sys
import types
from collections.abc import Callable, Mapping, Sequence

from experiments.compare import report
from experiments.compare.costs import Pilots, counted
from experiments.compare.match_cost import FAMILIES, Shape, matched
from experiments.runner import dataset_arg as data_lib
from experiments.runner import jobs as jobs_lib
from experiments.runner.cli import add_run_options
from experiments.runner.jobs import Interrupted
from experiments.runner.progress import train
from experiments.runner.run_spec import Budget, RunSpec
from patchnets.config import flags
from patchnets.errors import UserError
from patchnets.models import flops as models_cost
from patchnets.runtime.cli import ArgumentParser, run_cli, words

MATCHES = tuple(report.EQUAL)
TOLERANCE = 0.024  # relative to the target, so that any two networks are within report.WITHIN of each other
ROWS = 8  # rows of patches in an image
WARMUP = 0.1  # share of a run
VALIDATIONS = 10  # per run, if --minutes sets its length
MOST = {"epochs": 1e6, "minutes": 1e6, "target": 1e15}
OWN = {"model.name", "model.variant", "model.patch_size", "dataset.name", "dataset.path", "total_epochs", "total_steps"}
OWN |= {f"model.{field}" for family in FAMILIES for field in Shape(family).fields}
VARIANTS = ("cifar100", "cifar10", "digits")  # of configs/compare.py
UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclasses.dataclass(frozen=True)
class Options:
    families: tuple[str, ...]
    match: str
    targets: tuple[float, ...]  # empty: the cost of the first family's default network
    dataset: str
    epochs: float | None
    minutes: float | None
    seeds: int
    workdir: pathlib.Path
    parallel: int | None
    report_only: bool
    listing: bool
    handed_on: tuple[str, ...]

    @property
    def other_data(self) -> str | None:
        """The data set to override in the recipe; None if the recipe has a variant of that name."""
        return None if self.dataset in VARIANTS else self.dataset


def parse_args(arguments: Sequence[str], description: str | None = None) -> Options:
    """Parse the command line; raise UserError if it is invalid."""
    parser = ArgumentParser("python -m experiments.compare", description=description)
    parser.add_argument(
        "--models",
        type=words(tuple(FAMILIES), "family"),
        default=tuple(FAMILIES),
        metavar="NAME,NAME...",
        help=f"families, of {', '.join(FAMILIES)} (default: all)",
    )
    parser.add_argument(
        "--match",
        choices=MATCHES,
        default="params",
        help="cost that is equal for all networks of a target, within 5 %%: parameters (default), FLOPs per image, or "
        "time of a training step on this machine, which short runs measure first; if the real runs differ more, the "
        "report and the last line say so",
    )
    parser.add_argument(
        "--target",
        type=targets,
        default=(),
        metavar="N,N...",
        help="the cost: parameters, multiply-accumulates (half the FLOPs), or milliseconds per step, such as 300k; "
        "several give several sizes of a family (default: the cost of the first family with 8 blocks of 128 channels)",
    )
    parser.add_argument(
        "--dataset",
        type=functools.partial(data_lib.checked, option="dataset"),
        default="cifar100",
        help="digits, the name of a TFDS data set, or folder:PATH with train/CLASS/ in it (default: cifar100)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=limited("epochs"), help="length of every run (default: 10)")
    length.add_argument(
        "--minutes",
        type=limited("minutes"),
        help="instead of --epochs: minutes of training on this machine, for every run",
    )
    add_run_options(parser, 3, "network", "runs/compare-MATCH")
    values, overrides = parser.parse_with_overrides(arguments)
    if refused := [a for a in overrides if a.removeprefix("--config.").partition("=")[0] in OWN]:
        raise UserError(f"{refused[0]}: use --models, --target, --dataset, --epochs or --minutes, which set it")
    return Options(
        values.models,
        values.match,
        values.target,
        values.dataset,
        None if values.minutes else values.epochs or 10.0,
        values.minutes,
        values.seeds,
        values.workdir or pathlib.Path("runs", f"compare-{values.match}"),
        values.parallel,
        values.report,
        values.list,
        overrides,
    )


def limited(option: str) -> Callable[[str], float]:
    """Return a parser of positive numbers with an optional unit: "1.5M" is 1500000."""

    def number(value: str) -> float:
        parts = re.fullmatch(r"(\d{1,12}(?:\.\d{0,12})?)([kMG]?)", value, re.ASCII)
        result = float(parts[1]) * UNITS[parts[2]] if parts else 0.0
        if not 0 < result <= MOST[option]:
            expected = f"a number above 0, such as 20, 300k or 1.5M, and at most {MOST[option]:,.0f}"
            raise argparse.ArgumentTypeError(f"expected {expected}, got {value[:120]!r}")
        return result

    return number


def targets(value: str) -> tuple[float, ...]:
    """Parse --target."""
    return tuple(map(limited("target"), value.split(",")))


def row(options: Options, shape: Shape, length: Mapping[str, float] = types.MappingProxyType({})) -> RunSpec:
    """Return the row of a network, without published results; `length` has the keys that set the length of the run."""
    config = "configs/compare.py" + ("" if options.other_data else f":{options.dataset}")
    with jobs_lib.at_root():
        size = flags.parse_flags(["compare", f"--config={config}", *options.handed_on])[0].image_size
    fields = shape.fields | {"patch_size": max(1, size // ROWS)}
    changes = {f"model.{field}": value for field, value in fields.items()} | dict(length)
    name = f"{shape.family}-{shape.width}-{shape.depth}"
    epochs = float(length.get("total_epochs", 0))
    dataset = data_lib.name_of(options.dataset)
    return RunSpec(
        name, config, dataset, {}, f"compared at equal {options.match}", Budget(epochs, "any"), changes=changes
    )


def run_length(options: Options, shape: Shape, pilots: Pilots) -> Mapping[str, float]:
    """Return the keys that set the length of a run, and of its warm-up unless the command line sets it."""
    has_warmup = any(argument.startswith("--config.schedule.warmup_") for argument in options.handed_on)
    if options.epochs:
        warmup = {} if has_warmup else {"schedule.warmup_epochs": WARMUP * options.epochs}
        return {"total_epochs": options.epochs} | warmup
    assert options.minutes is not None
    steps = max(1, round(60_000 * options.minutes / pilots.milliseconds(row(options, shape))))
    warmup = {} if has_warmup else {"schedule.warmup_steps": round(WARMUP * steps)}
    return {"total_steps": steps, "eval_every_steps": -(-steps // VALIDATIONS)} | warmup


def counted_as(options: Options, shape: Shape) -> models_cost.ModelCost:
    """Count parameters and multiply-accumulates of a network."""
    job = jobs_lib.job(row(options, shape), 0, options.workdir, options.other_data, options.handed_on)
    return counted(job.arguments)


def chosen(options: Options, pilots: Pilots) -> dict[Shape, list[float]]:
    """Choose a network of each family for each target; return {network: its targets}.

    Raises:
      UserError: a family has no network of this cost, or the data set or the command line is invalid.
      RunError: a pilot run failed.
    """

    def cost_of(shape: Shape) -> float:
        if options.match == "time":
            return pilots.milliseconds(row(options, shape))
        model_cost = counted_as(options, shape)
        return float(model_cost.params if options.match == "params" else model_cost.macs)

    targets = options.targets or (cost_of(Shape(options.families[0])),)
    shapes: dict[Shape, list[float]] = {}
    for target in dict.fromkeys(targets):
        for family in options.families:
            shapes.setdefault(matched(family, target, TOLERANCE, cost_of), []).append(target)
    return shapes


def execute(arguments: list[str]) -> int:
    """Choose networks, train and report; return the exit status."""
    options = parse_args(arguments, __doc__)
    jobs_lib.check_workdir(options.workdir)
    pilots = Pilots(options.workdir / "speeds", options.other_data, options.handed_on, not options.report_only)
    try:
        shapes = chosen(options, pilots)
        rows = [row(options, shape, run_length(options, shape, pilots)) for shape in shapes]
    except Interrupted as stop:
        print("patchnets: stopped; run the same command to resume", file=sys.stderr)
        return 128 + stop.number
    costs = [counted_as(options, shape) for shape in shapes]
    for each, model_cost in zip(rows, costs):
        print(f"{each.id} (family-width-depth): {model_cost.params:,} parameters, {model_cost.macs:,} MACs an image")
    if options.listing:
        return 0
    # Seed by seed, so that early results cover all families.
    jobs = [
        jobs_lib.job(each, seed, options.workdir, options.other_data, options.handed_on)
        for seed in range(options.seeds)
        for each in rows
    ]
    jobs_lib.check_unmixed(jobs)
    if options.report_only and not any(job.summary() for job in jobs):
        raise UserError(f"--workdir={options.workdir}: none of these runs has finished there; leave out --report")
    status, failures = (0, {}) if options.report_only else train(rows, jobs, options.parallel)
    compared = [
        report.compared(each, [job for job in jobs if job.row is each], failures, shape, cost, targets)
        for each, (shape, targets), cost in zip(rows, shapes.items(), costs)
    ]
    command = shlex.join(["python", "-m", "experiments.compare", *jobs_lib.without_paths(arguments)])
    files = report.write(options.workdir, command, options.match, compared)
    print("\n".join(report.screen(compared, options.match)))
    print(f"written: {', '.join(map(str, files))}")
    for sentence in report.unequal(compared, options.match):
        print(
            f"patchnets: --match={options.match} does not hold: {sentence}; an idle machine measures more precisely",
            file=sys.stderr,
        )
    if status:
        print("patchnets: stopped; run the same command to resume", file=sys.stderr)
    return status or int(bool(failures))


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status."""
    return run_cli(argv, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
