"""Run jobs and show their progress."""

import sys
from collections.abc import Sequence

from tqdm import tqdm

from experiments.benchmark import machine
from experiments.runner import jobs as jobs_lib
from experiments.runner import results
from experiments.runner.jobs import Interrupted, Job
from experiments.runner.run_spec import RunSpec
from patchnets.runtime.format import format_duration


class Lines:
    """Progress of each row: a status line per row on a terminal, else a printed line per event."""

    def __init__(self, rows: Sequence[RunSpec], jobs: Sequence[Job]):
        self._total = {row.id: sum(job.row.id == row.id for job in jobs) for row in rows}
        self._done = {row.id: sum(job.row.id == row.id and job.summary() is not None for job in jobs) for row in rows}
        self._width = max(map(len, self._total))
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
        self._reported: dict[Job, str] = {}
        self._plain = not sys.stderr.isatty()
        for name in self._bars:
            self._write(name, "finished" if self._done[name] == self._total[name] else "waiting")

    def _write(self, name: str, text: str) -> None:
        self._bars[name].set_description_str(f"{name:<{self._width}}  {self._done[name]}/{self._total[name]}  {text}")

    def show(self, job: Job, state: str, text: str) -> None:
        """Show the state of a job: "running" with its last line, "done", or "failed" with the error."""
        name = job.row.id
        if state == "running":
            status = f"seed {job.seed}: {text}"
        elif state == "failed":
            status = f"seed {job.seed} failed, {text}"
        else:
            summary = job.summary() or {}
            figures = results.measured([summary])
            metrics = ", ".join(f"{results.METRICS[m]} {f['mean']:.2%}" for m, f in figures.items())
            status = f"seed {job.seed}: test {metrics or 'none'}, {format_duration(summary.get('wall_seconds', 0.0))}"
            self._done[name] += 1
        self._write(name, status)
        if self._plain and self._reported.get(job) != state:
            print(f"{name} seed {job.seed}: started" if state == "running" else f"{name} {status}", flush=True)
        self._reported[job] = state

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()


def train(rows: Sequence[RunSpec], jobs: Sequence[Job], parallel: int | None) -> tuple[int, dict[Job, str]]:
    """Run the unfinished jobs, `parallel` at a time (default: one per GPU).

    Returns:
      (exit status: 0, or 128 + signal; {job: error}).
    """
    gpus = machine.gpu_slots()
    failures: dict[Job, str] = {}
    lines = Lines(rows, jobs)
    try:
        missing = [job for job in jobs if job.summary() is None]
        jobs_lib.run_jobs(missing, parallel or max(1, len(gpus)), gpus, lines.show, failures)
    except Interrupted as stop:
        return 128 + stop.number, failures
    finally:
        lines.close()
    return 0, failures
