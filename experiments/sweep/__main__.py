"""Train the variations of a configuration that a file lists, and compare their results.

    python -m experiments.sweep --sweep=experiments/sweeps/mixer_digits_lr.py [--seeds=N] [--config.KEY=VALUE ...]

Finished runs are kept: the same command trains what is missing and resumes interrupted runs. Other keys, such as
--config.total_epochs=5, are passed to every run. python -m experiments.launch writes cluster jobs for a sweep.

Writes sweep.md, sweep.json, sweep.png and curves.png into the folder, also when interrupted. Exit status: 0; 1 if a run
failed; 2 for an invalid command line; 128 + N if signal N stopped it.
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
    """Train and report; return the exit status."""
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
        print("patchnets: stopped; run the same command to resume", file=sys.stderr)
    return status or int(bool(failures))


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status."""
    return run_cli(argv, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
