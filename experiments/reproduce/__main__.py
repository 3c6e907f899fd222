"""Trains the rows of a published table, and writes what came out beside what was published.

    python -m experiments.reproduce --table=NAME [--rows=ID,ID...] [--workdir=DIR] [--seeds=N] [--config.KEY=VALUE ...]

--table     keras_examples, cifar, imagenet; sizes, which needs no training
--rows      ids of the table's rows (default: all); --list prints them with what each takes
--workdir   a folder for runs and report (default: runs/TABLE)
--seeds     runs of each row, with seeds 0 to N - 1 (default: 1)
--data      in place of the rows' own data sets: folder:PATH, or the name of another; no verdict then
--parallel  runs at the same time (default: one for each GPU; 1 on a CPU)
--report    writes the report of what is there, and trains nothing

Finished runs are kept: the same command does what is missing, and goes on where a run was cut. Other keys, such as
--config.dataset.data_dir=PATH, are handed to every run; keys that change the recipe leave its rows without a verdict.

Writes report.md, report.html, report.json and curves.png into the folder, also when interrupted: of the rows that were
asked for, and of the table's others of which there are runs in the folder. Exit status: 0; 1 where a run failed; 2 for
a command that is not understood; 128 + N where signal N stopped it, after runs were given two minutes to save.
"""

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence

from experiments.runner import artifacts, report, results
from experiments.runner import dataset_arg as data_lib
from experiments.runner import jobs as jobs_lib
from experiments.runner.cli import count, home, run_cli, split_options
from experiments.runner.jobs import Job
from experiments.runner.previous_runs import mismatched_runs, previous_jobs
from experiments.runner.progress import train
from experiments.runner.run_spec import RunSpec
from experiments.tables import SIZES, TABLES
from patchnets.errors import UserError

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

    def data_of(self, row: RunSpec) -> str | None:
        """What takes the place of a row's own data set; None where that is what it is run on."""
        return None if self.data == row.dataset else self.data


def parse_args(arguments: Sequence[str]) -> Options:
    """Raises UserError for what is not understood."""
    options = ("table", "rows", "workdir", "seeds", "data", "parallel")
    given, handed_on = split_options(arguments, options, switches=("list", "report"))
    known = ", ".join([*TABLES, SIZES])
    if "table" not in given:
        raise UserError(f"--table is not given; known: {known}")
    table = given["table"]
    if table not in (*TABLES, SIZES):
        raise UserError(f"--table={table} is unknown; known: {known}")
    rows = {row.id: row for row in TABLES.get(table, ())}
    wanted = given["rows"].split(",") if "rows" in given else list(rows)
    if unknown := [name for name in wanted if name not in rows]:
        raise UserError(f"--rows: {table} has no row {unknown[0]!r}; known: {', '.join(rows) or 'none'}")
    if told := [a for a in handed_on if a.removeprefix("--config.").partition("=")[0] in DATA]:
        raise UserError(f"{told[0]}: give --data=NAME or --data=folder:PATH, from which it follows")
    return Options(
        table,
        tuple(rows[name] for name in dict.fromkeys(wanted)),
        home(given.get("workdir", f"runs/{table}")),
        count("seeds", given) or 1,
        data_lib.checked(given["data"]) if "data" in given else None,
        count("parallel", given),
        "list" in given,
        "report" in given,
        handed_on,
    )


def listed(asked: Options) -> str:
    """The rows of a table, a line each: what was published, and what it takes."""
    lines = []
    for row in asked.rows:
        told = ", ".join(f"{results.METRICS[m]} {value:.2%}" for m, value in row.published.items())
        lines.append(f"{row.id:<18} {row.dataset:<12} {told or 'no test figure':<30} {row.cost}; {row.source}")
    return "\n".join(lines)


def jobs_of(asked: Options) -> list[Job]:
    """A run for each row and seed. Raises UserError where the configuration cannot be had so."""
    return [
        jobs_lib.job(row, seed, asked.workdir, asked.data_of(row), asked.handed_on)
        for row in asked.rows
        for seed in range(asked.seeds)
    ]


def execute(arguments: list[str]) -> int:
    """Trains and reports; returns the exit status."""
    asked = parse_args(arguments)
    if asked.listing:
        print(listed(asked) or "every network of which something was published: python -m patchnets.models")
        return 0
    jobs_lib.check_workdir(asked.workdir)
    command = shlex.join(["python", "-m", "experiments.reproduce", *jobs_lib.without_paths(arguments)])
    if asked.table == SIZES:
        from experiments.tables import sizes

        found = sizes.counted()
        written = report.write(asked.workdir, SIZES, command, [], found)
        wrong = [size.id for size in found if size.verdict != "reproduced"]
        print(f"{len(found) - len(wrong)} of {len(found)} networks have their published size; {written[1]}")
        return int(bool(wrong))
    jobs = jobs_of(asked)
    status, failures = (0, {}) if asked.report_only else train(asked.rows, jobs, asked.parallel)
    found_rows = reported(asked, jobs, failures)
    written = report.write(asked.workdir, asked.table, command, found_rows)
    print("\n".join(_screen(found_rows)))
    print(f"written: {', '.join(map(str, written))}")
    if status:
        print("patchnets: stopped; the same command goes on from what was saved", file=sys.stderr)
    return status or int(bool(failures))


def reported(asked: Options, jobs: Sequence[Job], failures: Mapping[Job, str]) -> list[results.Result]:
    """The rows that were asked for, with their jobs, and after them those of earlier commands in the folder."""
    table = TABLES[asked.table]
    noise = {metric: results.seed_noise(table, metric) for metric in results.METRICS}
    runs = [[job for job in jobs if job.row is row] for row in asked.rows]
    others = [row for row in table if row.id not in {row.id for row in asked.rows}]
    runs += [previous_jobs(row, asked.workdir, asked.data_of(row), asked.handed_on) for row in others]
    found = []
    for own in filter(None, runs):
        result = results.result(own[0].row, own, failures, own[0].data, noise)
        result["reasons"] += mismatched_runs([job for job in own if job not in failures])
        found.append(result)
    return found


def _screen(found: Sequence[results.Result]) -> list[str]:
    """The table of the report, for a terminal."""
    lines = artifacts.table(report.HEADS, [row for result in found for row in report.cells(result)])
    return lines + [f"{result['id']}: {reason}" for result in found for reason in result["reasons"]]


def main(argv: list[str]) -> int:
    """Carries out a command line and returns the exit status."""
    return run_cli(argv, __doc__, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
