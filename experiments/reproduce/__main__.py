"""Train the rows of a published table, and report measured next to published results.

    python -m experiments.reproduce --table=NAME [--rows=ID,ID...] [--workdir=DIR] [--seeds=N] [--config.KEY=VALUE ...]

Rows that start from weights look for their file in the folder `weights`, or in that of --weights=DIR; rows without it
are named and skipped.

Finished runs are kept: the same command trains what is missing and resumes interrupted runs. Other keys, such as
--config.dataset.data_dir=PATH, are passed to every run; rows whose recipe is changed get no verdict.

Writes report.md, report.html, report.json and curves.png into the folder, also when interrupted: the selected rows, and
other rows of the table that have runs in the folder. Exit status: 0; 1 if a run failed; 2 for an invalid command line;
128 + N if signal N stopped it, after runs had two minutes to save.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence

from experiments.reproduce.options import Options, jobs_of, parse_args
from experiments.runner import artifacts, report, results
from experiments.runner import jobs as jobs_lib
from experiments.runner.jobs import Job
from experiments.runner.previous_runs import mismatched_runs, previous_jobs
from experiments.runner.progress import train
from experiments.tables import SIZES, TABLES
from patchnets.runtime.cli import run_cli


def listed(options: Options) -> str:
    """Format the rows of a table, one per line: published metrics, budget and source."""
    lines = []
    for row in options.rows:
        published = ", ".join(f"{results.METRICS[m]} {value:.2%}" for m, value in row.published.items())
        needs = options.missing_weights(row)
        lines.append(
            f"{row.id:<18} {row.dataset:<12} {published or 'no test figure':<30} {row.cost}; {row.source}"
            + (f"; {needs}" if needs else "")
        )
    return "\n".join(lines)


def execute(arguments: list[str]) -> int:
    """Train and report; return the exit status."""
    options = parse_args(arguments, __doc__)
    if options.listing:
        print(listed(options) or "all networks with published sizes: python -m patchnets.models")
        return 0
    jobs_lib.check_workdir(options.workdir)
    command = shlex.join(["python", "-m", "experiments.reproduce", *jobs_lib.without_paths(arguments)])
    if options.table == SIZES:
        from experiments.tables import sizes

        counted = sizes.counted()
        written = report.write(options.workdir, SIZES, command, [], counted)
        wrong = [size.id for size in counted if size.verdict != "reproduced"]
        print(f"{len(counted) - len(wrong)} of {len(counted)} networks have their published size; {written[1]}")
        return int(bool(wrong))
    jobs = jobs_of(options)
    status = 0
    failures: dict[Job, str] = {}
    if not options.report_only:
        skipped = {row.id: why for row in options.rows if (why := options.missing_weights(row))}
        for name, why in skipped.items():
            print(f"{name}: skipped, {why}", flush=True)
        rows = [row for row in options.rows if row.id not in skipped]
        if rows:
            status, failures = train(rows, [job for job in jobs if job.row in rows], options.parallel)
    row_results = reported(options, jobs, failures)
    written = report.write(options.workdir, options.table, command, row_results)
    print("\n".join(_screen(row_results)))
    print(f"written: {', '.join(map(str, written))}")
    if status:
        print("patchnets: stopped; run the same command to resume", file=sys.stderr)
    return status or int(bool(failures))


def reported(options: Options, jobs: Sequence[Job], failures: Mapping[Job, str]) -> list[results.Result]:
    """Return the results of the selected rows, followed by rows that earlier commands trained in the folder."""
    table = TABLES[options.table]
    noise = {metric: results.seed_noise(table, metric) for metric in results.METRICS}
    runs = [[job for job in jobs if job.row is row] for row in options.rows]
    others = [row for row in table if row.id not in {row.id for row in options.rows}]
    runs += [
        previous_jobs(row, options.workdir, options.data_of(row), options.handed_on, options.weights) for row in others
    ]
    row_results = []
    for own in filter(None, runs):
        result = results.result(own[0].row, own, failures, own[0].data, noise)
        if result["verdict"] == "not run" and (needs := options.missing_weights(own[0].row)):
            result["reasons"].append(needs)
        result["reasons"] += mismatched_runs([job for job in own if job not in failures])
        row_results.append(result)
    return row_results


def _screen(row_results: Sequence[results.Result]) -> list[str]:
    """Format the report for a terminal."""
    lines = artifacts.table(report.HEADS, [row for result in row_results for row in report.cells(result)])
    return lines + [f"{result['id']}: {reason}" for result in row_results for reason in result["reasons"]]


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status."""
    return run_cli(argv, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
