"""Compare measured with published results: means over seeds, differences, verdicts."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.runner import dataset_arg as data_lib
from experiments.runner.jobs import Job
from experiments.runner.run_spec import RunSpec
from experiments.runner.workdirs import METRICS, is_number
from patchnets.errors import UserError
from patchnets.run import workdir

Result = dict[str, Any]


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation of a sample; None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def seed_noise(rows: Iterable[RunSpec], metric: str) -> float:
    """Return the standard deviation between runs of the original program, pooled over the rows of a table.

    Pooled because each row has only about two such runs. 0 if no row has two.
    """
    deviations = [spread(row.peer.runs[metric]) for row in rows if row.peer and metric in row.peer.runs]
    squares = [d * d for d in deviations if d is not None]
    return math.sqrt(statistics.fmean(squares)) if squares else 0.0


def measured(summaries: Sequence[Mapping[str, Any]], split: str = "test") -> dict[str, dict[str, Any]]:
    """Return {metric: {"values", "mean", "deviation"}} of the "test" or "val" split, over the runs that have it."""
    figures = {}
    for metric in METRICS:
        values = [s[f"{split}_{metric}"] for s in summaries if f"{split}_{metric}" in s]
        if values:
            figures[metric] = {"values": values, "mean": statistics.fmean(values), "deviation": spread(values)}
    return figures


def curve(jobs: Sequence[Job]) -> dict[str, list[list[float]]]:
    """Return {column of metrics.jsonl: [(epoch, mean over runs, min, max)]} at the epochs that all runs have."""
    runs = []
    for job in jobs:
        try:
            rows = [row for row in workdir.read_metrics(job.workdir) if isinstance(row, dict)]
        except UserError:
            continue
        runs.append([row for row in rows if is_number(row.get("epoch"))])
    columns_of = {}
    for name in ("val_accuracy", "val_top5_accuracy", "val_loss", "train_loss", "train_accuracy"):
        columns = [{row["epoch"]: row[name] for row in run if is_number(row.get(name))} for run in runs]
        shared = sorted(set.intersection(*map(set, columns))) if columns else []
        values = [[column[epoch] for column in columns] for epoch in shared]
        columns_of[name] = [[e, statistics.fmean(v), min(v), max(v)] for e, v in zip(shared, values)]
    return columns_of


def shortfalls(row: RunSpec, figures: Mapping[str, Mapping[str, Any]], curves: Result, noise: Mapping[str, float]):
    """Compare a row with all its references: return (number of comparisons, one line per failed comparison)."""
    bars: list[tuple[str, float | None, float, str]] = []  # metric, measured, minimum, text
    for metric, value in row.published.items():
        mean = figures[metric]["mean"] if metric in figures else None
        bars.append((METRICS[metric], mean, value - row.tolerance, f"{value:.2%} published minus {row.tolerance:.1%}"))
    if row.peer:
        for metric, values in row.peer.runs.items():
            mean, theirs = (figures[metric]["mean"] if metric in figures else None), statistics.fmean(values)
            text = f"{row.peer.name}'s own mean of {theirs:.2%} minus its seed noise of {noise[metric]:.2%}"
            bars.append((METRICS[metric], mean, theirs - noise[metric], text))
    reached = {round(epoch, 3): mean for epoch, mean, *_ in curves["val_accuracy"]}
    for epoch, value in row.curve.items():
        text = f"{value:.1%} published minus {row.tolerance:.1%}"
        bars.append((f"validation top-1 after epoch {epoch:g}", reached.get(epoch), value - row.tolerance, text))
    short = []
    for name, mean, minimum, text in bars:
        if mean is None:
            short.append(f"{name}: not measured; required: {text}")
        elif mean < minimum:
            short.append(f"{name}: {mean:.2%} is below {text}")
    return len(bars), short


def result(
    row: RunSpec,
    jobs: Sequence[Job],
    failures: Mapping[Job, str],
    data: str | None,
    noise: Mapping[str, float],
) -> Result:
    """Return the results of a row, as written to report.json.

    Args:
      row: the row.
      jobs: its jobs.
      failures: {job: error}, of all rows.
      data: the data set used instead of the row's own, or None.
      noise: {metric: `seed_noise`} of the table.
    """
    finished = [(job, summary) for job in jobs if (summary := job.summary()) is not None]
    summaries = [summary for _, summary in finished]
    figures, curves = measured(summaries), curve([job for job, _ in finished])
    comparisons, short = shortfalls(row, figures, curves, noise)
    changed = jobs[0].changed if jobs else ()
    if len(finished) < len(jobs) or not finished:
        verdict = "not run"
    elif data is not None:
        verdict = "other data"
    elif changed:
        verdict = "other recipe"
    elif not comparisons:
        verdict = "nothing to compare with"
    else:
        verdict = "not reproduced" if short else "reproduced"
    reasons = short if verdict == "not reproduced" else []
    if changed:
        reasons.append(f"changed: {', '.join(changed)}")
    reasons += [f"seed {job.seed} failed, {text}" for job, text in failures.items() if job.row.id == row.id]
    if 0 < len(finished) < len(jobs):
        reasons.append(f"{len(finished)} of {len(jobs)} seeds finished: figures are not final")
    if data is not None:
        reasons.append(f"on {data_lib.name_of(data)} instead of the table's {row.dataset}")

    def mean(name: str) -> float | None:
        values = [s[name] for s in summaries if s.get(name)]
        return statistics.fmean(values) if values else None

    return {
        "id": row.id,
        "source": row.source,
        "dataset": row.dataset if data is None else data_lib.name_of(data),
        "own_data": data is None,
        "published": dict(row.published),
        "tolerance": row.tolerance,
        "peer": {"name": row.peer.name, "runs": dict(row.peer.runs)} if row.peer else None,
        "measured": figures,
        "difference": {m: figures[m]["mean"] - value for m, value in row.published.items() if m in figures},
        "published_curve": {f"{epoch:g}": value for epoch, value in row.curve.items()},
        "curve": curves,
        "verdict": verdict,
        "reasons": reasons,
        "note": row.note,
        "cost": row.cost._asdict(),
        "seeds": [job.seed for job, _ in finished],
        "seeds_asked": len(jobs),
        "epochs": mean("epochs"),
        "params": summaries[0]["params"] if summaries else None,
        "wall_seconds": mean("wall_seconds"),
        "images_per_second": mean("images_per_second"),
        "devices": sorted({s["device"] for s in summaries}),
        "versions": summaries[0]["versions"] if summaries else {},
        "commands": [job.command for job in jobs],
    }
