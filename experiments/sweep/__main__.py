"""Trains the variations of a configuration that a file names, and shows what each makes of it.

    python -m experiments.sweep --sweep=experiments/sweeps/mixer_digits_lr.py [--seeds=N] [--config.KEY=VALUE ...]

--sweep     a file whose get_sweep() yields (name, {"optimizer.learning_rate": 3e-4, ...})
--config    what they change, FILE[:ARGUMENT] (default: what CONFIG in the file names, or get_config() in the file)
--workdir   a folder for runs and report (default: runs/sweep-NAME)
--seeds     runs of each entry, with seeds 0 to N - 1 (default: 1)
--parallel  runs at the same time (default: one for each GPU; 1 on a CPU)
--only      one entry, by its name or its number from 0 on, as in an array job; writes no report
--report    writes the report of what is there, and trains nothing
--list      prints the entries, and trains none of them

Finished runs are kept: the same command does what is missing, and goes on where a run was cut. Other keys, such as
--config.total_epochs=5, are handed to every run. python -m experiments.launch makes jobs of a sweep for clusters.

Writes sweep.md, sweep.json, sweep.png and curves.png into the folder, also when interrupted. Exit status: 0; 1 where a
run failed; 2 for a command that is not understood; 128 + N where signal N stopped it.
"""

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Sequence

from experiments.runner import jobs as jobs_lib
from experiments.runner.cli import count, home, run_cli, split_options
from experiments.runner.jobs import Job
from experiments.runner.progress import train
from experiments.runner.run_spec import RunSpec
from experiments.sweep import load_sweep, report
from patchnets.errors import UserError


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


def parse_args(arguments: Sequence[str]) -> Options:
    """Raises UserError for what is not understood."""
    options = ("sweep", "config", "workdir", "seeds", "parallel", "only")
    given, handed_on = split_options(arguments, options, switches=("list", "report"))
    if "sweep" not in given:
        raise UserError("--sweep is not given; for example --sweep=experiments/sweeps/mixer_digits_lr.py")
    if "only" in given and "report" in given:
        raise UserError(f"--only={given['only']} and --report are both given; a report is that of all entries")
    rows = load_sweep.rows(given["sweep"], given.get("config"), handed_on)
    return Options(
        given["sweep"],
        rows,
        chosen(rows, given["only"]) if "only" in given else None,
        home(given.get("workdir", f"runs/sweep-{pathlib.Path(given['sweep']).stem}")),
        count("seeds", given) or 1,
        count("parallel", given),
        "list" in given,
        "report" in given,
        handed_on,
    )


def chosen(rows: Sequence[RunSpec], told: str) -> RunSpec:
    """The row of that name, or of that number. Raises UserError where there is none."""
    numbered = {str(i): row for i, row in enumerate(rows)}
    found = numbered | {row.id: row for row in rows}
    if told not in found:
        names = ", ".join(row.id for row in rows[:20])
        raise UserError(f"--only={told} is no entry; there are 0 to {len(rows) - 1}: {names}")
    return found[told]


def jobs_of(asked: Options) -> list[Job]:
    """Seed after seed, so that what is there early is there for all entries."""
    rows = [asked.only] if asked.only else asked.rows
    return [
        jobs_lib.job(row, seed, asked.workdir, None, asked.handed_on) for seed in range(asked.seeds) for row in rows
    ]


def execute(arguments: list[str]) -> int:
    """Trains and reports; returns the exit status."""
    asked = parse_args(arguments)
    if asked.listing:
        for i, row in enumerate(asked.rows):
            print(f"{i:>3}  {row.id:<20}  " + ", ".join(f"{key}={value}" for key, value in row.changes.items()))
        return 0
    jobs_lib.check_workdir(asked.workdir)
    jobs = jobs_of(asked)
    jobs_lib.check_unmixed(jobs)
    if asked.report_only and not any(job.summary() for job in jobs):
        raise UserError(f"--workdir={asked.workdir}: none of these runs has finished there; leave out --report")
    rows = [asked.only] if asked.only else asked.rows
    status, failures = (0, {}) if asked.report_only else train(rows, jobs, asked.parallel)
    if asked.only:
        for job, said in failures.items():
            print(f"{job.row.id}: seed {job.seed} failed, {said}", file=sys.stderr)
    else:
        found = [report.result(row, [job for job in jobs if job.row is row], failures) for row in asked.rows]
        command = shlex.join(["python", "-m", "experiments.sweep", *jobs_lib.without_paths(arguments)])
        written = report.write(asked.workdir, command, found)
        print("\n".join(report.screen(found)))
        print(f"written: {', '.join(map(str, written))}")
    if status:
        print("patchnets: stopped; the same command goes on from what was saved", file=sys.stderr)
    return status or int(bool(failures))


def main(argv: list[str]) -> int:
    """Carries out a command line and returns the exit status."""
    return run_cli(argv, __doc__, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
