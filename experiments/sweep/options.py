"""The command line of `python -m experiments.sweep`, and the runs that it selects."""

import dataclasses
import pathlib
from collections.abc import Sequence

from experiments.runner import jobs as jobs_lib
from experiments.runner.cli import add_run_options
from experiments.runner.jobs import Job
from experiments.runner.run_spec import RunSpec
from experiments.sweep import load_sweep
from patchnets.errors import UserError
from patchnets.runtime.cli import ArgumentParser


@dataclasses.dataclass(frozen=True)
class Options:
    sweep: str
    rows: tuple[RunSpec, ...]
    only: RunSpec | None
    workdir: pathlib.Path
    seeds: int
    parallel: int | None
    listing: bool
    report_only: bool
    handed_on: tuple[str, ...]


def parse_args(arguments: Sequence[str], description: str | None = None) -> Options:
    """Parse the command line; raise UserError if it is invalid."""
    parser = ArgumentParser("python -m experiments.sweep", description=description)
    parser.add_argument(
        "--sweep",
        required=True,
        metavar="FILE",
        help="Python file whose get_sweep() yields (name, {key: value}), such as experiments/sweeps/mixer_digits_lr.py",
    )
    parser.add_argument(
        "--config",
        metavar="FILE[:ARGUMENT]",
        help="the configuration to vary (default: CONFIG of the file, or its get_config())",
    )
    parser.add_argument(
        "--only",
        metavar="ENTRY",
        help="one entry, by name or index from 0, as in an array job; writes no report",
    )
    add_run_options(parser, 1, "entry", "runs/sweep-NAME")
    settings, overrides = parser.parse_with_overrides(arguments)
    if settings.only and settings.report:
        raise UserError(f"--only={settings.only} and --report are both given; a report covers all entries")
    rows = load_sweep.rows(settings.sweep, settings.config, overrides)
    return Options(
        settings.sweep,
        rows,
        chosen(rows, settings.only) if settings.only else None,
        settings.workdir or pathlib.Path("runs", f"sweep-{pathlib.Path(settings.sweep).stem}"),
        settings.seeds,
        settings.parallel,
        settings.list,
        settings.report,
        overrides,
    )


def chosen(rows: Sequence[RunSpec], name: str) -> RunSpec:
    """Return the row with this name or index; raise UserError if there is none."""
    numbered = {str(i): row for i, row in enumerate(rows)}
    entries = numbered | {row.id: row for row in rows}
    if name not in entries:
        names = ", ".join(row.id for row in rows[:20])
        raise UserError(f"--only={name} is not an entry; known: 0 to {len(rows) - 1}: {names}")
    return entries[name]


def jobs_of(requested: Options) -> list[Job]:
    """Return the jobs seed by seed, so that early results cover all entries."""
    rows = [requested.only] if requested.only else requested.rows
    return [
        jobs_lib.job(row, seed, requested.workdir, None, requested.handed_on)
        for seed in range(requested.seeds)
        for row in rows
    ]
