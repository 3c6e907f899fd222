"""Trains the rows of a published table, and writes what came out beside what was published.

    python -m experiments.reproduce --table=NAME [--rows=ID,ID...] [--workdir=DIR] [--seeds=N] [--config.KEY=VALUE ...]

--table     keras_examples, cifar, imagenet; sizes, which needs no training
--rows      ids of the table's rows (default: all); --list prints them with what each takes
--workdir   a folder for runs and report (default: runs/TABLE)
--seeds     runs of each row, with seeds 0 to N - 1 (default: 1)
--data      in place of the table's own data set: folder:PATH, or the name of another; no verdict then
--parallel  runs at the same time (default: one for each GPU; 1 on a CPU)
--report    writes the report of what is there, and trains nothing

Finished runs are kept: the same command does what is missing, and goes on where a run was cut. Other keys, such as
--config.dataset.data_dir=PATH, are handed to every run; keys that change the recipe leave its rows without a verdict.

Writes report.md, report.html, report.json and curves.png into the folder, also when interrupted. Exit status: 0; 1
where a run failed; 2 for a command that is not understood; 128 + N where signal N stopped it, after runs were given two
minutes to save.
"""

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Sequence

from tqdm import tqdm

from experiments.benchmark import machine
from experiments.command import carry_out
from experiments.reproduce import jobs as jobs_lib
from experiments.reproduce import report, results
from experiments.reproduce.jobs import Job, Stopping
from experiments.tables import SIZES, TABLES
from experiments.tables.row import Row
from patchnets.console import duration
from patchnets.errors import UserError


@dataclasses.dataclass(frozen=True)
class Asked:
    table: str
    rows: tuple[Row, ...]
    workdir: pathlib.Path
    seeds: int
    data: str | None
    parallel: int | None
    listing: bool
    report_only: bool
    handed_on: tuple[str, ...]


def parse(arguments: Sequence[str]) -> Asked:
    """Raises UserError for what is not understood."""
    given: dict[str, str] = {}
    handed_on = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        name = option.removeprefix("--")
        if name.startswith("config.") and option.startswith("--"):
            handed_on.append(argument)
        elif option.startswith("--") and name in ("list", "report") and not equals:
            given[name] = "yes"
        elif option.startswith("--") and name in ("table", "rows", "workdir", "seeds", "data", "parallel") and value:
            given[name] = value
        else:
            raise UserError(
                f"{argument!r} is not understood; options have the form --NAME=VALUE, and --help lists them"
            )
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
    for name in ("seeds", "parallel"):
        if name in given and not (given[name].isascii() and given[name].isdigit() and int(given[name])):
            raise UserError(f"--{name}={given[name]}: expected a whole number above 0")
    return Asked(
        table,
        tuple(rows[name] for name in dict.fromkeys(wanted)),
        _home(given.get("workdir", f"runs/{table}")),
        int(given.get("seeds", 1)),
        _data(given.get("data")),
        int(given["parallel"]) if "parallel" in given else None,
        "list" in given,
        "report" in given,
        tuple(handed_on),
    )


def _home(path: str) -> pathlib.Path:
    """A path with its ~ resolved. Raises UserError where it names no user."""
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}") from error


def _data(told: str | None) -> str | None:
    """--data with a whole path. Raises UserError where it names no folder."""
    name, _, path = (told or "").partition(":")
    if name != "folder":
        return told
    place = _home(path)
    if not path or not place.is_dir():
        raise UserError(f"--data={told}: expected folder:PATH, where PATH is a folder with train/CLASS/ in it")
    return f"folder:{place.absolute()}"


class Lines:
    """One line of progress for each row: a bar on a terminal; elsewhere a line when something happens."""

    def __init__(self, rows: Sequence[Row], jobs: Sequence[Job]):
        self._total = {row.id: sum(job.row.id == row.id for job in jobs) for row in rows}
        self._done = {row.id: sum(job.row.id == row.id and job.summary() is not None for job in jobs) for row in rows}
        wide = max(map(len, self._total))
        self._bars = {
            name: tqdm(
                total=total,
                initial=self._done[name],
                position=i,
                bar_format="{desc}",
                disable=None,
                leave=True,
                dynamic_ncols=True,
            )
            for i, (name, total) in enumerate(self._total.items())
        }
        self._told: dict[Job, str] = {}
        self._plain = not sys.stderr.isatty()
        self._wide = wide
        for name in self._bars:
            self._say(name, "finished" if self._done[name] == self._total[name] else "waiting")

    def _say(self, name: str, words: str) -> None:
        self._bars[name].set_description_str(f"{name:<{self._wide}}  {self._done[name]}/{self._total[name]}  {words}")

    def show(self, job: Job, state: str, words: str) -> None:
        name = job.row.id
        if state == "running":
            said = f"seed {job.seed}: {words}"
        elif state == "failed":
            said = f"seed {job.seed} failed, {words}"
        else:
            summary = job.summary() or {}
            figures = results.measured([summary])
            text = ", ".join(f"{results.METRICS[m]} {f['mean']:.2%}" for m, f in figures.items())
            said = f"seed {job.seed}: test {text or 'none'}, {duration(summary.get('wall_seconds', 0.0))}"
            self._done[name] += 1
        self._say(name, said)
        if self._plain and self._told.get(job) != state:
            print(f"{name} seed {job.seed}: started" if state == "running" else f"{name} {said}", flush=True)
        self._told[job] = state

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()


def listed(asked: Asked) -> str:
    """The rows of a table, a line each: what was published, and what it takes."""
    lines = []
    for row in asked.rows:
        told = ", ".join(f"{results.METRICS[m]} {value:.2%}" for m, value in row.published.items())
        minutes = "" if row.cost.minutes is None else f", about {row.cost.minutes:g} min a seed"
        lines.append(
            f"{row.id:<18} {row.dataset:<12} {told or 'no test figure':<30} {row.cost.epochs:g} epochs on "
            f"{row.cost.device}{minutes}; {row.source}"
        )
    return "\n".join(lines)


def work(arguments: list[str]) -> int:
    """Trains and reports; returns the exit status."""
    asked = parse(arguments)
    if asked.listing:
        print(listed(asked) or "every network of which something was published: python -m patchnets.models")
        return 0
    jobs_lib.check_place(asked.workdir)
    command = shlex.join(["python", "-m", "experiments.reproduce", *jobs_lib.without_places(arguments)])
    if asked.table == SIZES:
        from experiments.tables import sizes

        found = sizes.counted()
        files = report.write(asked.workdir, SIZES, command, [], found)
        wrong = [size.id for size in found if size.verdict != "reproduced"]
        print(f"{len(found) - len(wrong)} of {len(found)} networks have their published size; {files[1]}")
        return int(bool(wrong))
    jobs = [
        jobs_lib.job(row, seed, asked.workdir, asked.data, asked.handed_on)
        for row in asked.rows
        for seed in range(asked.seeds)
    ]
    gpus = machine.gpu_slots()
    missing = [] if asked.report_only else [job for job in jobs if job.summary() is None]
    failures: dict[Job, str] = {}
    status = 0
    lines = Lines(asked.rows, jobs)
    try:
        jobs_lib.carry_out(missing, asked.parallel or max(1, len(gpus)), gpus, lines.show, failures)
    except Stopping as stop:
        status = 128 + stop.number
    finally:
        lines.close()
    table = TABLES[asked.table]
    noise = {metric: results.seed_noise(table, metric) for metric in results.METRICS}
    found_rows = [
        results.result(row, [job for job in jobs if job.row.id == row.id], failures, asked.data, noise)
        for row in asked.rows
    ]
    files = report.write(asked.workdir, asked.table, command, found_rows)
    print("\n".join(_screen(found_rows)))
    print(f"written: {', '.join(map(str, files))}")
    if status:
        print("patchnets: stopped; the same command goes on from what was saved", file=sys.stderr)
    return status or int(bool(failures))


def _screen(found: Sequence[results.Result]) -> list[str]:
    """The table of the report, for a terminal."""
    rows = [list(report.HEADS), *(row for result in found for row in report.cells(result))]
    wide = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, wide)).rstrip() for row in rows]
    return lines + [f"{result['id']}: {reason}" for result in found for reason in result["reasons"]]


def run(argv: list[str]) -> int:
    """Carries out a command line and returns the exit status."""
    return carry_out(argv, __doc__, work)


if __name__ == "__main__":
    sys.exit(run(sys.argv))
