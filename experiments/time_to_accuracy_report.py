"""Results of experiments.time_to_accuracy as a Markdown table and as JSON lines."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments.benchmark import machine

REMARK = (
    "Seconds are wall time of the process, including imports, images, test and summary. Compiling: how much later the "
    "first step of the first pilot ended, with an empty compilation cache and perhaps no decoded images."
)
Row = dict[str, Any]


def markdown(rows: Sequence[Row]) -> str:
    """Format the results as a table, with machine and versions."""
    headings = ("limit s", "took s", "epochs", "images/s", "first step s", "compiling s", "test top-1")
    lines = ["|" + "|".join(headings) + "|", "|" + "-|" * len(headings)]
    done = [row for row in rows if "failure" not in row]
    for row in rows:
        if "failure" in row:
            lines.append(f"|{row['limit']:g}|{row['failure'].replace('|', '/')}|" + "|" * (len(headings) - 2))
            continue
        taken = f"{row['seconds']:.1f}" + (", over the limit" if row["over"] else "")
        test = "no test split" if row["test_accuracy"] is None else f"{row['test_accuracy']:.2%}"
        first, cold = row["first_step_seconds"], row["cold_first_step_seconds"]
        cells = (f"{row['limit']:g}", taken, f"{row['epochs']:.1f}", f"{row['images_per_second']:,.0f}", f"{first:.1f}")
        lines.append("|" + "|".join((*cells, f"{cold - first:+.1f}", test)) + "|")
    if done:
        facts = ", ".join(f"{name} {value}" for name, value in {**machine.described(), **done[0]["versions"]}.items())
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(row["config"] for row in done))
        changed = "".join(f" `{each}`" for each in done[0]["changed"])
        lines += ["", f"{names}{changed}, on {done[0]['device']}; {facts}.", "", REMARK]
    return "\n".join(lines) + "\n"


def write(rows: Sequence[Row], out: pathlib.Path) -> None:
    """Write sprint.jsonl and sprint.md; called after every limit, so that an interrupted program leaves its results."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "sprint.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "sprint.md").write_text(markdown(rows))
