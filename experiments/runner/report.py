"""Write report.md, report.html and report.json of a table."""

import base64
import html
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.runner import artifacts, learning_curves
from experiments.runner.results import METRICS, Result
from experiments.runner.run_spec import Budget
from experiments.tables.sizes import Size
from patchnets.errors import first_line
from patchnets.runtime.format import format_duration

HEADS = ("row", "data", "epochs", "", "published", "measured", "difference", "verdict", "wall time", "images/s")
SIZE_HEADS = ("network", "parameters published", "counted", "GMACs published", "counted", "verdict")
STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #cf222e; --other: #9a6700; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td.number, th.number { text-align: right; } img { max-width: 100%; background: white; }
.reproduced { color: var(--good); font-weight: 600; } .not-reproduced { color: var(--bad); font-weight: 600; }
.other-data, .other-recipe { color: var(--other); font-weight: 600; } .not-run { opacity: .65; }
pre { overflow-x: auto; padding: .6rem; border: 1px solid var(--line); } .note { opacity: .8; }
"""


def percent(value: float | None, signed: bool = False) -> str:
    """Format 0.1382 as "13.82" and None as "-"."""
    return "-" if value is None else f"{100 * value:+.2f}" if signed else f"{100 * value:.2f}"


def mean_of(figure: Mapping[str, Any] | None) -> str:
    """Format mean and standard deviation in per cent, "13.82 ± 0.31"; without ± for a single seed."""
    if figure is None:
        return "-"
    deviation = figure["deviation"]
    return percent(figure["mean"]) + ("" if deviation is None else f" ± {percent(deviation)}")


def cells(result: Result) -> list[list[str]]:
    """Return two table rows, one per metric; the first also has the columns common to both."""
    wall, rate, epochs = result["wall_seconds"], result["images_per_second"], result["epochs"]
    seeds = (
        "" if len(result["seeds"]) == result["seeds_asked"] else f" ({len(result['seeds'])}/{result['seeds_asked']})"
    )
    epochs = result["cost"]["epochs"] if epochs is None else epochs
    common = [result["id"], result["dataset"], "-" if epochs is None else f"{epochs:g}"]
    after = [result["verdict"] + seeds, format_duration(wall) if wall else "-", f"{rate:,.0f}" if rate else "-"]
    rows: list[list[str]] = []
    for metric, name in METRICS.items():
        difference = result["difference"].get(metric)
        figures = [name, percent(result["published"].get(metric)), mean_of(result["measured"].get(metric))]
        first = not rows
        rows.append(
            (common if first else [""] * 3) + figures + [percent(difference, True)] + (after if first else [""] * 3)
        )
    return rows


def peers(result: Result) -> list[str]:
    """Return a sentence on the results of the original program on the same images, if there are any."""
    if not result["peer"] or not result["own_data"]:
        return []
    runs = result["peer"]["runs"]
    figures = ", ".join(f"{METRICS[m]} {' and '.join(map(percent, values))} %" for m, values in runs.items())
    return [f"{result['peer']['name']} itself on the same images: {figures}"]


def details(result: Result) -> list[str]:
    """Return the notes on a row: source, original program, reasons of the verdict, budget, devices."""
    lines: list[str] = [
        result["source"],
        *peers(result),
        *([result["note"]] if result["note"] else []),
        *result["reasons"],
        *([f"needs {Budget(**result['cost'])}"] if result["verdict"] == "not run" else []),
    ]
    return lines + [f"on {device}" for device in result["devices"]]


def size_cells(size: Size) -> list[str]:
    gmacs = "-" if size.gmacs is None else f"{size.gmacs:.2f}"
    return [size.id, f"{size.params:,}", f"{size.counted_params:,}", gmacs, f"{size.counted_gmacs:.2f}", size.verdict]


def versions(results: Sequence[Result]) -> str:
    """Format the library versions of the first row that has run."""
    names: dict[str, str] = next((r["versions"] for r in results if r["versions"]), {})
    return ", ".join(f"{name} {version}" for name, version in names.items())


def markdown(table: str, command: str, results: Sequence[Result], sizes: Sequence[Size], drawn: bool) -> str:
    """Format the report as Markdown; `drawn`: whether it includes curves.png."""
    lines = [f"# {table}: published and measured", "", f"`{command}`", ""]
    if results:
        lines += ["Per cent of the test split; mean ± standard deviation over seeds. " + versions(results), ""]
        lines += ["|" + "|".join(HEADS) + "|", "|" + "-|" * len(HEADS)]
        lines += ["|" + "|".join(row) + "|" for result in results for row in cells(result)]
        lines += [""] + (["![learning curves](curves.png)", ""] if drawn else [])
        for result in results:
            lines += [f"**{result['id']}** {'. '.join(details(result))}.", "", "```sh", *result["commands"], "```", ""]
    if sizes:
        lines += ["|" + "|".join(SIZE_HEADS) + "|", "|" + "-|" * len(SIZE_HEADS)]
        lines += ["|" + "|".join(size_cells(size)) + "|" for size in sizes]
    return "\n".join(lines).rstrip() + "\n"


def page(table: str, command: str, results: Sequence[Result], sizes: Sequence[Size], curves: bytes | None) -> str:
    """Format the report as one HTML file, with the plot embedded."""
    parts = [f"<h1>{html.escape(table)}: published and measured</h1><pre>{html.escape(command)}</pre>"]
    if results:
        remark = "Per cent of the test split; mean ± standard deviation over seeds. "
        parts.append(f'<p class="note">{remark}{html.escape(versions(results))}</p>')
        parts.append(_table(HEADS, [(r["verdict"], row) for r in results for row in cells(r)], text=4))
        if curves:
            encoded = base64.b64encode(curves).decode()
            parts.append(f'<p><img alt="learning curves of all rows" src="data:image/png;base64,{encoded}"></p>')
        for result in results:
            items = "".join(f"<li>{html.escape(line)}</li>" for line in details(result))
            parts.append(f"<h2>{html.escape(result['id'])}</h2><ul>{items}</ul>")
            parts.append(f"<pre>{html.escape(chr(10).join(result['commands']))}</pre>")
    if sizes:
        parts.append(_table(SIZE_HEADS, [(size.verdict, size_cells(size)) for size in sizes], text=1))
    head = f'<meta charset="utf-8"><title>{html.escape(table)}</title><style>{STYLE}</style>'
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return f'<!doctype html>\n<html lang="en"><head>{head}{viewport}</head><body>{"".join(parts)}</body></html>\n'


def _table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], text: int) -> str:
    """Format rows of (verdict, cells) as HTML; the first `text` columns and the verdict are text, others numbers."""

    def line(tag: str, values: Sequence[str], verdict: str = "") -> str:
        columns = []
        for i, value in enumerate(values):
            words = i < text or value == "verdict" or (verdict and value.startswith(verdict))
            kind = "" if words else "number"
            kind = verdict.replace(" ", "-") if verdict and value.startswith(verdict) else kind
            columns.append(f'<{tag} class="{kind}">{html.escape(value)}</{tag}>')
        return f"<tr>{''.join(columns)}</tr>"

    body = "".join(line("td", row, verdict) for verdict, row in rows)
    return f'<div class="scroll"><table><thead>{line("th", heads)}</thead><tbody>{body}</tbody></table></div>'


def write(
    directory: pathlib.Path, table: str, command: str, results: Sequence[Result], sizes: Sequence[Size] = ()
) -> list[pathlib.Path]:
    """Write report.md, report.html, report.json and, if there are any curves, curves.png; return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        curves = learning_curves.curves(results)
    except Exception as error:  # the report is useful without the plot
        print(f"the learning curves could not be drawn: {first_line(error)}", file=sys.stderr)
        curves = None
    content = {"table": table, "command": command, "rows": list(results)}
    content |= {"sizes": [size._asdict() | {"verdict": size.verdict} for size in sizes]} if sizes else {}
    written: dict[str, bytes] = {
        "report.json": (json.dumps(content, indent=1) + "\n").encode(),
        "report.md": markdown(table, command, results, sizes, curves is not None).encode(),
        "report.html": page(table, command, results, sizes, curves).encode(),
    }
    if curves:
        written["curves.png"] = curves
    artifacts.write(directory, written)
    return [directory / name for name in written]
