"""Find the runs of earlier commands in a folder, so that a report covers all of them."""

import pathlib
from collections.abc import Sequence

from experiments.runner import jobs as jobs_lib
from experiments.runner.jobs import Job
from experiments.runner.run_spec import RunSpec
from patchnets.errors import UserError


def previous_jobs(
    row: RunSpec,
    folder: pathlib.Path,
    data: str | None,
    handed_on: Sequence[str],
    weights: pathlib.Path = jobs_lib.WEIGHTS,
) -> list[Job]:
    """Return the runs of a row that was not selected, one for each seed that was started.

    Tried in turn: runs on `data` with the overrides `handed_on`, on the row's own data with these overrides, and of the
    row without overrides.
    """
    candidates: list[Job] = []
    for dataset, overrides in ((data, handed_on), (None, handed_on), (None, ())):
        try:
            seeds = jobs_lib.started_seeds(row, folder, dataset)
            jobs = [jobs_lib.job(row, seed, folder, dataset, overrides, weights) for seed in seeds]
        except UserError:  # overrides that this row does not accept
            continue
        if any(job.summary() is not None or _stored_hash(job) == job.config_hash for job in jobs):
            return jobs
        candidates = candidates or jobs
    return candidates


def mismatched_runs(jobs: Sequence[Job]) -> list[str]:
    """Return one line per job whose work directory contains a run of another configuration."""
    stored = {job: _stored_hash(job) for job in jobs}
    return [
        f"seed {job.seed} was run in {job.name} with another configuration, which is not shown"
        for job in jobs
        if stored[job] not in (None, job.config_hash)
    ]


def _stored_hash(job: Job) -> str | None:
    """Return `jobs.stored_hash`, or "" if it cannot be read."""
    try:
        return jobs_lib.stored_hash(job)
    except UserError:
        return ""
