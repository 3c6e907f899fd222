"""Format results as a table for the terminal, as Markdown, and as a plot."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
WORDS = {
    "train": "training",
    "eval": "evaluation",
    "input": "augmentation alone",
    "devices": "training on simulated devices",
}
COLORS = {
    "patchnets": "tab:blue",
    "keras-jax": "tab:red",
    "keras-tensorflow": "tab:orange",
    "timm": "tab:green",
    "timm-channels-last": "tab:olive",
    "timm-compiled": "tab:gray",
}
OTHER = "tab:purple"


def rate(value: float) -> str:
    """Format with 3 digits or as an integer: 0.0123, 4.56, 123, 12,345."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# {heading: cell of an entry}; empty columns are left out
COLUMNS: dict[str, Callable[[Result], str | None]] = {
    "images/s": lambda e: rate(e["images_per_second"]),
    "quartiles": lambda e: "-".join(map(rate, e["quartiles"])),
    "ratio": lambda e: f"{e['ratio']:.2f}x" if e["ratio"] else None,
    "first step s": lambda e: f"{e['first_step_seconds']:.1f}",
    "memory MiB": lambda e: f"{e['peak_memory_mib']:,.0f}" if e["peak_memory_mib"] else None,
    "MFLOP/image": lambda e: f"{e['flops_per_image'] / 1e6:,.1f}" if e["flops_per_image"] else None,
    "GFLOP/s": lambda e: f"{e['flops_per_second'] / 1e9:,.0f}" if e["flops_per_second"] else None,
    "of matmul": lambda e: f"{e['share_of_matmul']:.0%}" if e["share_of_matmul"] else None,
    "MFU": lambda e: f"{e['mfu']:.1%}" if e["mfu"] else None,
    "epoch s": lambda e: f"{e['epoch_seconds']:,.2f}" if e["epoch_seconds"] else None,
}


def cells(result: Result) -> list[list[str]]:
    """Return headings, then a row per program, with a dash for missing values."""
    entries = result["entries"]
    columns = {name: [read(e) for e in entries.values()] for name, read in COLUMNS.items()}
    columns = {name: column for name, column in columns.items() if any(column)}
    rows = [[name, *(column[i] or "-" for column in columns.values())] for i, name in enumerate(entries)]
    return [["", *columns], *rows]


def heading(result: Result) -> str:
    """Describe the comparison in one line."""
    return (
        f"{result['model']}, {WORDS[result['work']]}: {result['image_size']} px, batch {result['batch']}, "
        f"{result['dtype']}, {result['device']}"
    )


def remarks(result: Result) -> list[str]:
    """Return the lines below a table: matrix product, note, errors."""
    limit = result["matmul_flops_per_second"]
    lines = [f"matrix product: {limit / 1e9:,.0f} GFLOP/s"] if limit else []
    lines += [result["note"]] if result["note"] else []
    return lines + [f"{name}: not measured: {why}" for name, why in result["failures"].items()]


def table(result: Result) -> str:
    """Format a comparison for the terminal."""
    rows = cells(result)
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [heading(result)]
    for row in rows if len(rows) > 1 else []:
        aligned = [f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:]))]
        lines.append("  " + "  ".join(aligned))
    return "\n".join(lines + [f"  {line}" for line in remarks(result)])


def markdown(results: Mapping[str, Any]) -> str:
    """Format all results as Markdown."""
    machine = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    used: dict[str, str] = {}
    for result in results["results"]:
        for entry in result["entries"].values():
            used |= entry["versions"]
    versions = ", ".join(f"{name} {version}" for name, version in used.items())
    lines = [f"`{results['command']}`", "", f"Machine: {machine}.", "", f"Versions: {versions}."]
    for result in results["results"]:
        rows = cells(result)
        lines += ["", f"**{heading(result)}**", ""]
        if len(rows) > 1:
            lines += [row_of(rows[0]), row_of(["-"] * len(rows[0])), *map(row_of, rows[1:])]
        lines += [line for remark in remarks(result) for line in ("", f"{remark}.")]
    return "\n".join(lines) + "\n"


def row_of(values: Sequence[str]) -> str:
    return "|" + "|".join(values) + "|"


def draw(results: Sequence[Result], path: pathlib.Path) -> None:
    """Plot a bar per program of every comparison: its speed relative to the first one, labeled with images/s.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    results = [result for result in results if result["entries"]]
    count = sum(len(result["entries"]) for result in results)
    figure, axis = plt.subplots(figsize=(9, 0.8 + 0.26 * (count + len(results))), layout="constrained")
    at, ticks, labels = 0.0, [], []
    longest = 0.0
    for result in results:
        began = at
        best = next(iter(result["entries"].values()))["images_per_second"]
        for name, entry in result["entries"].items():
            share = entry["images_per_second"] / best
            longest = max(longest, share)
            axis.barh(at, share, height=0.9, color=COLORS.get(name, OTHER))
            axis.text(share, at, f" {rate(entry['images_per_second'])}  {name}", va="center", fontsize=8)
            at += 1
        ticks.append((began + at - 1) / 2)
        labels.append(f"{result['model']}\n{WORDS[result['work']]}" if result["work"] != "train" else result["model"])
        at += 1
    axis.axvline(1, color="black", linewidth=0.6, linestyle=":")
    axis.set_yticks(ticks, labels, fontsize=9)
    axis.set(
        xlabel="speed relative to the first of each group; the figures are images/s",
        xlim=(0, longest * 1.3),
        ylim=(at - 1, -1),
    )
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=150)
    plt.close(figure)
