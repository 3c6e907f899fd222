"""The command line of `python -m experiments.reproduce`, and the runs that it selects."""

import dataclasses
import pathlib
from collections.abc import Sequence

from experiments.runner import dataset_arg as data_lib
from experiments.runner import jobs as jobs_lib
from experiments.runner.cli import add_run_options
from experiments.runner.jobs import Job
from experiments.runner.run_spec import RunSpec
from experiments.tables import SIZES, TABLES
from patchnets.errors import UserError
from patchnets.runtime.cli import ArgumentParser, path

DATA = ("dataset.name", "dataset.path")  # keys that --data sets


@dataclasses.dataclass(frozen=True)
class Options:
    table: str
    rows: tuple[RunSpec, ...]
    workdir: pathlib.Path
    seeds: int
    data: str | None
    parallel: int | None
    listing: bool
    report_only: bool
    handed_on: tuple[str, ...]
    weights: pathlib.Path = jobs_lib.WEIGHTS

    def data_of(self, row: RunSpec) -> str | None:
        """Return the data set that replaces the row's own; None to use its own."""
        return None if self.data == row.dataset else self.data

    def missing_weights(self, row: RunSpec) -> str | None:
        """Return the line that says what a row starts from, if it is not there; else None."""
        path = row.weights_in(self.weights)
        if path is None or path.exists():
            return None
        return f"needs the weights: put {row.weights} into {path.parent}, or name another folder with --weights=DIR"


def parse_args(arguments: Sequence[str], description: str | None = None) -> Options:
    """Parse the command line; raise UserError if it is invalid."""
    parser = ArgumentParser("python -m experiments.reproduce", description=description)
    parser.add_argument("--table", required=True, choices=[*TABLES, SIZES], help="sizes needs no training")
    parser.add_argument("--rows", metavar="ID,ID...", help="ids as --list prints them (default: all)")
    parser.add_argument(
        "--data",
        type=data_lib.checked,
        help="use this data set instead of the rows' own, without verdict: folder:PATH, or a name",
    )
    parser.add_argument(
        "--weights",
        type=path,
        default=jobs_lib.WEIGHTS,
        metavar="DIR",
        help="folder of the files of weights that rows start from (default: weights)",
    )
    add_run_options(parser, 1, "row", "runs/TABLE")
    settings, overrides = parser.parse_with_overrides(arguments)
    rows = {row.id: row for row in TABLES.get(settings.table, ())}
    wanted = settings.rows.split(",") if settings.rows else list(rows)
    if unknown := [name for name in wanted if name not in rows]:
        raise UserError(f"--rows: {settings.table} has no row {unknown[0]!r}; known: {', '.join(rows) or 'none'}")
    if refused := [a for a in overrides if a.removeprefix("--config.").partition("=")[0] in DATA]:
        raise UserError(f"{refused[0]}: use --data=NAME or --data=folder:PATH, which sets it")
    return Options(
        settings.table,
        tuple(rows[name] for name in dict.fromkeys(wanted)),
        settings.workdir or pathlib.Path("runs", settings.table),
        settings.seeds,
        settings.data,
        settings.parallel,
        settings.list,
        settings.report,
        overrides,
        settings.weights,
    )


def jobs_of(requested: Options) -> list[Job]:
    """Return one job per row and seed; raise UserError if a configuration is invalid."""
    return [
        jobs_lib.job(row, seed, requested.workdir, requested.data_of(row), requested.handed_on, requested.weights)
        for row in requested.rows
        for seed in range(requested.seeds)
    ]
