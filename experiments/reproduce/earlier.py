"""What earlier commands left in a folder of runs, for a report of all that is there."""

import pathlib
from collections.abc import Sequence

from experiments.reproduce import jobs as jobs_lib
from experiments.reproduce.jobs import Job
from experiments.tables.row import Row
from patchnets.errors import UserError


def earlier(row: Row, folder: pathlib.Path, data: str | None, handed_on: Sequence[str]) -> list[Job]:
    """The runs of a row that was not asked for, one for each seed that was begun; none where there are none.

    They are taken to be runs on `data` that were handed the same keys; where they are not, on the row's own data; and
    where they are not those either, runs of the row as the table has it.
    """
    found: list[Job] = []
    for where, told in ((data, handed_on), (None, handed_on), (None, ())):
        try:
            seeds = jobs_lib.seeds_begun(row, folder, where)
            jobs = [jobs_lib.job(row, seed, folder, where, told) for seed in seeds]
        except UserError:  # keys that this row cannot have
            continue
        if any(job.summary() is not None or _digest_there(job) == job.digest for job in jobs):
            return jobs
        found = found or jobs
    return found


def strangers(jobs: Sequence[Job]) -> list[str]:
    """A line for each job in whose place there is a run of another configuration."""
    there = {job: _digest_there(job) for job in jobs}
    return [
        f"seed {job.seed} was run in {job.name} with another configuration, which is not shown"
        for job in jobs
        if there[job] not in (None, job.digest)
    ]


def _digest_there(job: Job) -> str | None:
    """As `jobs.digest_there`; "" where that cannot be read."""
    try:
        return jobs_lib.digest_there(job)
    except UserError:
        return ""
