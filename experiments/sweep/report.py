"""sweep.md, sweep.json and the pictures of a sweep."""

import json
import pathlib
from collections.abc import Mapping, Sequence

from experiments.runner import artifacts, results
from experiments.runner.jobs import Job
from experiments.runner.report import mean_of, versions
from experiments.runner.results import METRICS, Result
from experiments.runner.run_spec import RunSpec
from patchnets.format import format_duration
from patchnets.plots import figures

FILES = ("sweep.json", "sweep.md", "sweep.png", "curves.png")  # beside the folders of the entries
SPLITS = {"val": "validation", "test": "test"}
HEADS = ("entry", "changes", "epochs", "seeds", "val top-1", "val top-5", "test top-1", "test top-5", "wall time")


def result(row: RunSpec, jobs: Sequence[Job], failures: Mapping[Job, str]) -> Result:
    """What is known of an entry: `results.result` of its runs, with what was measured by split."""
    found = results.result(row, jobs, failures, None, dict.fromkeys(METRICS, 0.0))
    summaries = [summary for job in jobs if (summary := job.summary()) is not None]
    told = ("id", "dataset", "curve", "verdict", "seeds", "seeds_asked", "epochs", "params", "wall_seconds",
            "images_per_second", "devices", "versions", "commands", "reasons", "published_curve")  # fmt: skip
    return {name: found[name] for name in told} | {
        "changes": dict(row.changes),
        "measured": {split: results.measured(summaries, split) for split in SPLITS},
    }


def cells(found: Result) -> list[str]:
    done, asked = len(found["seeds"]), found["seeds_asked"]
    return [
        found["id"],
        ", ".join(f"{key}={value}" for key, value in found["changes"].items()) or "-",
        f"{found['epochs']:.3g}" if found["epochs"] else "-",
        f"{done}" if done == asked else f"{done} of {asked}, not final",
        *(mean_of(found["measured"][split].get(metric)) for split in SPLITS for metric in METRICS),
        format_duration(found["wall_seconds"]) if found["wall_seconds"] else "-",
    ]


def screen(entries: Sequence[Result]) -> list[str]:
    """The table for a terminal, and what went wrong."""
    lines = artifacts.table(HEADS, [cells(found) for found in entries])
    return lines + [f"{found['id']}: {reason}" for found in entries for reason in found["reasons"]]


def markdown(command: str, entries: Sequence[Result], drawn: Sequence[str]) -> str:
    """The report as a document; `drawn` are the pictures that lie beside it."""
    lines = [f"# {entries[0]['dataset']}: a sweep of {len(entries)}", "", f"`{command}`", ""]
    lines += [
        "Per cent, at the checkpoint that validated best; mean ± standard deviation over seeds. What is chosen by "
        f"the test split is no longer measured by it: choose by validation. {versions(entries)}".rstrip(),
        "",
    ]
    lines += ["|" + "|".join(HEADS) + "|", "|" + "-|" * len(HEADS)]
    lines += ["|" + "|".join(cells(found)) + "|" for found in entries]
    lines += [""] + [f"![{name.removesuffix('.png')}]({name})\n" for name in drawn]
    for found in entries:
        told = [*(f"on {device}" for device in found["devices"]), *found["reasons"]]
        lines += [f"**{found['id']}** {'. '.join(told)}".rstrip(), "", "```sh", *found["commands"], "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def axis_of(entries: Sequence[Result]) -> str | None:
    """The one key in which all entries differ, if its values are different numbers."""
    keys = {key for found in entries for key in found["changes"]}
    if len(keys) != 1 or len(entries) < 2:
        return None
    (key,) = keys
    values = [found["changes"].get(key) for found in entries]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return key if numeric and len(set(values)) == len(values) else None


def draw(entries: Sequence[Result], path: pathlib.Path) -> bool:
    """Top-1 of validation and test, a line against the value where that is one number, else a mark for each entry;
    bars from the least to the most of the seeds. False where nothing was measured."""
    if not any("accuracy" in found["measured"][split] for found in entries for split in SPLITS):
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
        values = [found["changes"][key] for found in entries]
        if min(values) > 0 and max(values) / min(values) >= 8:
            axis.set_xscale("log")
        axis.set_xlabel(key)
    else:
        axis.set_xticks(range(len(entries)), [e["id"] for e in entries], rotation=30, ha="right")
    unfinished = any(len(found["seeds"]) < found["seeds_asked"] for found in entries)
    over = "mean, least and most over seeds" if any(found["seeds_asked"] > 1 for found in entries) else "one seed"
    axis.set(ylabel="top-1 (%)", title=over + (", not final" if unfinished else ""))
    axis.grid(alpha=0.3)
    axis.legend()
    figures.save(figure, path)
    return True


def write(place: pathlib.Path, command: str, entries: Sequence[Result]) -> list[pathlib.Path]:
    """Writes sweep.json, sweep.md and, where there is something to draw, sweep.png and curves.png; returns them."""
    place.mkdir(parents=True, exist_ok=True)
    drawn = artifacts.draw(place, entries, {"sweep.png": draw, "curves.png": artifacts.curves})
    written: dict[str, bytes] = {
        "sweep.json": (json.dumps({"command": command, "entries": list(entries)}, indent=1) + "\n").encode(),
        "sweep.md": markdown(command, entries, drawn).encode(),
    }
    artifacts.write(place, written)
    return [place / name for name in [*written, *drawn]]
