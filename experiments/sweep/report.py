"""Write sweep.md, sweep.json and the plots of a sweep."""

import json
import pathlib
from collections.abc import Mapping, Sequence

from experiments.runner import artifacts, results
from experiments.runner.jobs import Job
from experiments.runner.report import mean_of, versions
from experiments.runner.results import METRICS, Result
from experiments.runner.run_spec import RunSpec
from patchnets.plots import figures
from patchnets.runtime.format import format_duration

FILES = ("sweep.json", "sweep.md", "sweep.png", "curves.png")  # next to the folders of the entries
SPLITS = {"val": "validation", "test": "test"}
HEADS = ("entry", "changes", "epochs", "seeds", "val top-1", "val top-5", "test top-1", "test top-5", "wall time")


def result(row: RunSpec, jobs: Sequence[Job], failures: Mapping[Job, str]) -> Result:
    """Return `results.result` of an entry, with validation and test metrics."""
    entry = results.result(row, jobs, failures, None, dict.fromkeys(METRICS, 0.0))
    summaries = [summary for job in jobs if (summary := job.summary()) is not None]
    names = ("id", "dataset", "curve", "verdict", "seeds", "seeds_asked", "epochs", "params", "wall_seconds",
            "images_per_second", "devices", "versions", "commands", "reasons", "published_curve")  # fmt: skip
    return {name: entry[name] for name in names} | {
        "changes": dict(row.changes),
        "measured": {split: results.measured(summaries, split) for split in SPLITS},
    }


def cells(entry: Result) -> list[str]:
    done, total = len(entry["seeds"]), entry["seeds_asked"]
    return [
        entry["id"],
        ", ".join(f"{key}={value}" for key, value in entry["changes"].items()) or "-",
        f"{entry['epochs']:.3g}" if entry["epochs"] else "-",
        f"{done}" if done == total else f"{done} of {total}, not final",
        *(mean_of(entry["measured"][split].get(metric)) for split in SPLITS for metric in METRICS),
        format_duration(entry["wall_seconds"]) if entry["wall_seconds"] else "-",
    ]


def screen(entries: Sequence[Result]) -> list[str]:
    """Format the table for a terminal, followed by errors."""
    lines = artifacts.table(HEADS, [cells(entry) for entry in entries])
    return lines + [f"{entry['id']}: {reason}" for entry in entries for reason in entry["reasons"]]


def markdown(command: str, entries: Sequence[Result], drawn: Sequence[str]) -> str:
    """Format the report as Markdown; `drawn` are the file names of its plots."""
    lines = [f"# {entries[0]['dataset']}: a sweep of {len(entries)}", "", f"`{command}`", ""]
    lines += [
        "Per cent, with the best checkpoint by validation; mean ± standard deviation over seeds. Select by "
        f"validation: test results of an entry selected by them are biased. {versions(entries)}".rstrip(),
        "",
    ]
    lines += ["|" + "|".join(HEADS) + "|", "|" + "-|" * len(HEADS)]
    lines += ["|" + "|".join(cells(entry)) + "|" for entry in entries]
    lines += [""] + [f"![{name.removesuffix('.png')}]({name})\n" for name in drawn]
    for entry in entries:
        notes = [*(f"on {device}" for device in entry["devices"]), *entry["reasons"]]
        lines += [f"**{entry['id']}** {'. '.join(notes)}".rstrip(), "", "```sh", *entry["commands"], "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def axis_of(entries: Sequence[Result]) -> str | None:
    """Return the key that the entries vary, if it is a single one with distinct numbers as values."""
    keys = {key for entry in entries for key in entry["changes"]}
    if len(keys) != 1 or len(entries) < 2:
        return None
    (key,) = keys
    values = [entry["changes"].get(key) for entry in entries]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return key if numeric and len(set(values)) == len(values) else None


def draw(entries: Sequence[Result], path: pathlib.Path) -> bool:
    """Plot validation and test top-1, with bars from minimum to maximum over seeds; return False without results.

    A line against the value if one numeric key varies, else one mark per entry.
    """
    if not any("accuracy" in entry["measured"][split] for entry in entries for split in SPLITS):
        return False
    plt = figures.pyplot()
    figure, axis = plt.subplots(figsize=(max(6.0, 0.5 * len(entries)), 4.4), layout="constrained")
    key = axis_of(entries)
    for shift, (split, label) in zip((-0.08, 0.08), SPLITS.items()):
        own = [(i, e, e["measured"][split]["accuracy"]) for i, e in enumerate(entries) if e["measured"][split]]
        if key:
            own.sort(key=lambda each: each[1]["changes"][key])
        if own:
            means = [100 * figure["mean"] for *_, figure in own]
            spread = [(m - 100 * min(f["values"]), 100 * max(f["values"]) - m) for m, (*_, f) in zip(means, own)]
            at = [e["changes"][key] if key else i + shift for i, e, _ in own]
            style = "-" if key else ""
            axis.errorbar(at, means, yerr=list(zip(*spread)), marker="o", linestyle=style, capsize=4, label=label)
    if key:
        values = [entry["changes"][key] for entry in entries]
        if min(values) > 0 and max(values) / min(values) >= 8:
            axis.set_xscale("log")
        axis.set_xlabel(key)
    else:
        axis.set_xticks(range(len(entries)), [e["id"] for e in entries], rotation=30, ha="right")
    unfinished = any(len(entry["seeds"]) < entry["seeds_asked"] for entry in entries)
    over = "mean, minimum and maximum over seeds" if any(entry["seeds_asked"] > 1 for entry in entries) else "one seed"
    axis.set(ylabel="top-1 (%)", title=over + (", not final" if unfinished else ""))
    axis.grid(alpha=0.3)
    axis.legend()
    figures.save(figure, path)
    return True


def write(directory: pathlib.Path, command: str, entries: Sequence[Result]) -> list[pathlib.Path]:
    """Write sweep.json, sweep.md and, if there are results to plot, sweep.png and curves.png; return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = artifacts.draw(directory, entries, {"sweep.png": draw, "curves.png": artifacts.curves})
    written: dict[str, bytes] = {
        "sweep.json": (json.dumps({"command": command, "entries": list(entries)}, indent=1) + "\n").encode(),
        "sweep.md": markdown(command, entries, drawn).encode(),
    }
    artifacts.write(directory, written)
    return [directory / name for name in [*written, *drawn]]
