"""Trains the variations of a configuration that a file names, and shows what each makes of it.

    python -m experiments.sweep --sweep=experiments/sweeps/mixer_digits_lr.py [--seeds=N] [--config.KEY=VALUE ...]

Finished runs are kept: the same command does what is missing, and goes on where a run was cut. Other keys, such as
--config.total_epochs=5, are handed to every run. python -m experiments.launch makes jobs of a sweep for clusters.

Writes sweep.md, sweep.json, sweep.png and curves.png into the folder, also when interrupted. Exit status: 0; 1 where a
run failed; 2 for a command that is not understood; 128 + N where signal N stopped it.
"""

import shlex
import sys

from experiments.runner import jobs as jobs_lib
from experiments.runner.progress import train
from experiments.sweep import report
from experiments.sweep.options import jobs_of, parse_args
from patchnets.errors import UserError
from patchnets.runtime.cli import run_cli


def execute(arguments: list[str]) -> int:
    """Trains and reports; returns the exit status."""
    options = parse_args(arguments, __doc__)
    if options.listing:
        for i, row in enumerate(options.rows):
            print(f"{i:>3}  {row.id:<20}  " + ", ".join(f"{key}={value}" for key, value in row.changes.items()))
        return 0
    jobs_lib.check_workdir(options.workdir)
    jobs = jobs_of(options)
    jobs_lib.check_unmixed(jobs)
    if options.report_only and not any(job.summary() for job in jobs):
        raise UserError(f"--workdir={options.workdir}: none of these runs has finished there; leave out --report")
    rows = [options.only] if options.only else options.rows
    status, failures = (0, {}) if options.report_only else train(rows, jobs, options.parallel)
    if options.only:
        for job, reason in failures.items():
            print(f"{job.row.id}: seed {job.seed} failed, {reason}", file=sys.stderr)
    else:
        results = [report.result(row, [job for job in jobs if job.row is row], failures) for row in options.rows]
        command = shlex.join(["python", "-m", "experiments.sweep", *jobs_lib.without_paths(arguments)])
        written = report.write(options.workdir, command, results)
        print("\n".join(report.screen(results)))
        print(f"written: {', '.join(map(str, written))}")
    if status:
        print("patchnets: stopped; the same command goes on from what was saved", file=sys.stderr)
    return status or int(bool(failures))


def main(argv: list[str]) -> int:
    """Carries out a command line and returns the exit status."""
    return run_cli(argv, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
