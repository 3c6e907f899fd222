"""What earlier commands left in a folder of runs, for a report of all that is there."""

import pathlib
from collections.abc import Sequence

from experiments.runner import jobs as jobs_lib
from experiments.runner.jobs import Job
from experiments.runner.run_spec import RunSpec
from patchnets.errors import UserError


def previous_jobs(row: RunSpec, folder: pathlib.Path, data: str | None, handed_on: Sequence[str]) -> list[Job]:
    """The runs of a row that was not asked for, one for each seed that was begun; none where there are none.

    They are taken to be runs on `data` that were handed the same keys; where they are not, on the row's own data; and
    where they are not those either, runs of the row as the table has it.
    """
    candidates: list[Job] = []
    for dataset, overrides in ((data, handed_on), (None, handed_on), (None, ())):
        try:
            seeds = jobs_lib.started_seeds(row, folder, dataset)
            jobs = [jobs_lib.job(row, seed, folder, dataset, overrides) for seed in seeds]
        except UserError:  # keys that this row cannot have
            continue
        if any(job.summary() is not None or _stored_hash(job) == job.config_hash for job in jobs):
            return jobs
        candidates = candidates or jobs
    return candidates


def mismatched_runs(jobs: Sequence[Job]) -> list[str]:
    """A line for each job in whose place there is a run of another configuration."""
    there = {job: _stored_hash(job) for job in jobs}
    return [
        f"seed {job.seed} was run in {job.name} with another configuration, which is not shown"
        for job in jobs
        if there[job] not in (None, job.config_hash)
    ]


def _stored_hash(job: Job) -> str | None:
    """As `jobs.stored_hash`; "" where that cannot be read."""
    try:
        return jobs_lib.stored_hash(job)
    except UserError:
        return ""
