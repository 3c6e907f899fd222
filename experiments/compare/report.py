"""Write compare.md, compare.json and the plots of a comparison."""

import json
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence

from experiments.compare.costs import step_milliseconds
from experiments.compare.match_cost import Shape
from experiments.runner import artifacts, results
from experiments.runner.jobs import Job
from experiments.runner.report import percent, versions
from experiments.runner.results import METRICS, Result
from experiments.runner.run_spec import RunSpec
from patchnets.models.flops import ModelCost
from patchnets.plots import figures
from patchnets.runtime.format import format_duration

CONFIDENCE = 0.95
WITHIN = 0.05  # largest relative difference of two networks of a target
HEADS = (
    "network", "parameters", "MFLOPs an image", "epochs", "seeds", "top-1", "top-5", "training",
    "images/s",
)  # fmt: skip
# Horizontal axes: (label, cost of a network).
COSTS: tuple[tuple[str, Callable[[Result], float | None]], ...] = (
    ("parameters (thousands)", lambda r: r["params"] / 1e3),
    ("FLOPs of an image (millions)", lambda r: 2 * r["macs"] / 1e6),
    ("training time of a run (minutes)", lambda r: r["training_seconds"] and r["training_seconds"] / 60),
)


# --match: (name of the cost, cost of a network).
EQUAL: dict[str, tuple[str, Callable[[Result], float | None]]] = {
    "params": ("parameters", lambda r: r["params"]),
    "flops": ("FLOPs of an image", lambda r: 2 * r["macs"]),
    "time": ("milliseconds of a training step", lambda r: r["step_milliseconds"]),
}


def interval(values: Sequence[float]) -> float | None:
    """Return half the width of Student's confidence interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    from scipy import stats

    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(quantile * statistics.stdev(values) / math.sqrt(len(values)))


def compared(
    row: RunSpec,
    jobs: Sequence[Job],
    failures: Mapping[Job, str],
    shape: Shape,
    cost: ModelCost,
    targets: Sequence[float],
) -> Result:
    """Return `results.result` of a network's runs, with its cost, targets, and confidence intervals of means."""
    result = results.result(row, jobs, failures, None, dict.fromkeys(METRICS, 0.0))
    finished = [(job, summary) for job in jobs if (summary := job.summary()) is not None]
    timed = [(ms, summary) for job, summary in finished if (ms := step_milliseconds(job)) is not None]
    steps = [ms for ms, _ in timed]
    seconds = [ms * summary["steps"] / 1000 for ms, summary in timed]
    for figures_of in result["measured"].values():
        figures_of["interval"] = interval(figures_of["values"])
    names = ("id", "dataset", "measured", "curve", "verdict", "seeds", "seeds_asked", "epochs", "wall_seconds",
            "images_per_second", "devices", "versions", "commands", "reasons", "published_curve")  # fmt: skip
    return {name: result[name] for name in names} | {
        "family": shape.family,
        "width": shape.width,
        "depth": shape.depth,
        "targets": list(targets),
        "params": cost.params,
        "macs": cost.macs,
        "step_milliseconds": statistics.fmean(steps) if steps else None,
        "training_seconds": statistics.fmean(seconds) if seconds else None,
    }


def cells(network: Result) -> list[str]:
    def accuracy(metric: str) -> str:
        figure = network["measured"].get(metric)
        if figure is None:
            return "-"
        return percent(figure["mean"]) + ("" if figure["interval"] is None else f" ± {percent(figure['interval'])}")

    seeds = f"{len(network['seeds'])}" + ("" if final(network) else f" of {network['seeds_asked']}, not final")
    seconds, rate = network["training_seconds"], network["images_per_second"]
    return [
        network["id"],
        f"{network['params']:,}",
        f"{2 * network['macs'] / 1e6:,.1f}",
        f"{network['epochs']:.3g}" if network["epochs"] else "-",
        seeds,
        *map(accuracy, METRICS),
        format_duration(seconds) if seconds else "-",
        f"{rate:,.0f}" if rate else "-",
    ]


def final(network: Result) -> bool:
    return len(network["seeds"]) == network["seeds_asked"]


def apart(networks: Sequence[Result], match: str) -> dict[str, float]:
    """Return {sentence: relative difference} of the costs that should be equal, per target; times as in the runs."""
    name, cost = EQUAL[match]
    targets = list(dict.fromkeys(target for each in networks for target in each["targets"]))
    sentences = {}
    for target in targets:
        costs = [value for each in networks if target in each["targets"] and (value := cost(each))]
        if len(costs) > 1:
            share = max(costs) / min(costs) - 1
            at = f" at --target={_figure(target)}" if len(targets) > 1 else ""
            least, most = _figure(min(costs)), _figure(max(costs))
            beyond = f", at most {WITHIN:.0%} allowed" if share > WITHIN else ""
            sentences[f"{name}{at}: from {least} to {most}, {share:.1%} apart{beyond}"] = share
    return sentences


def unequal(networks: Sequence[Result], match: str) -> list[str]:
    """Return the sentences of `apart` with a difference above `WITHIN`."""
    return [sentence for sentence, share in apart(networks, match).items() if share > WITHIN]


def _figure(value: float) -> str:
    """Format 194604.0 as "194,604" and 3.14159 as "3.14"."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def screen(networks: Sequence[Result], match: str) -> list[str]:
    """Format the table for a terminal, followed by errors and cost differences."""
    lines = artifacts.table(HEADS, [cells(network) for network in networks])
    lines += [f"{network['id']}: {reason}" for network in networks for reason in network["reasons"]]
    return [*lines, *apart(networks, match)]


def markdown(command: str, match: str, networks: Sequence[Result], drawn: Sequence[str]) -> str:
    """Format the report as Markdown; `drawn` are the file names of its plots."""
    lines = [f"# {networks[0]['dataset']}: families at equal {EQUAL[match][0]}", "", f"`{command}`", ""]
    lines += [
        "A network's name is family-width-depth. Per cent of the test split, with the best checkpoint by validation; "
        f"mean ± half the width of its {CONFIDENCE:.0%} confidence interval over seeds (Student's). FLOPs are twice "
        "the multiply-accumulates of a forward pass; training time is without start-up and evaluation. "
        + "".join(f"{sentence[0].upper()}{sentence[1:]}. " for sentence in apart(networks, match))
        + versions(networks),
        "",
    ]
    lines += ["|" + "|".join(HEADS) + "|", "|" + "-|" * len(HEADS)]
    lines += ["|" + "|".join(cells(network)) + "|" for network in networks]
    lines += [""] + [f"![{name.removesuffix('.png')}]({name})\n" for name in drawn]
    for network in networks:
        notes = [*(f"on {device}" for device in network["devices"]), *network["reasons"]]
        lines += [f"**{network['id']}** {'. '.join(notes)}".rstrip(), "", "```sh", *network["commands"], "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def bars(intervals: Sequence[float | None]) -> list[float] | None:
    """Return the intervals in per cent for Matplotlib, NaN if missing; None if all are missing."""
    if all(interval is None for interval in intervals):
        return None
    return [math.nan if interval is None else 100 * interval for interval in intervals]


def draw(networks: Sequence[Result], path: pathlib.Path) -> bool:
    """Plot top-1 against each cost, with confidence intervals and a line per family; False without test results."""
    if not any("accuracy" in network["measured"] for network in networks):
        return False
    plt = figures.pyplot()
    figure, axes = plt.subplots(1, len(COSTS), figsize=(15, 4.6), layout="constrained", sharey=True)
    colors = plt.get_cmap("tab10")
    families = list(dict.fromkeys(network["family"] for network in networks))
    for axis, (label, cost) in zip(axes, COSTS):
        for i, family in enumerate(families):
            own = [network for network in networks if network["family"] == family and "accuracy" in network["measured"]]
            own = sorted((network for network in own if cost(network)), key=cost)  # type: ignore[arg-type]
            accuracies = [network["measured"]["accuracy"] for network in own]
            unfinished = not all(final(network) for network in networks if network["family"] == family)
            axis.errorbar(
                [cost(network) for network in own],
                [100 * each["mean"] for each in accuracies],
                yerr=bars([each["interval"] for each in accuracies]),
                color=colors(i % 10),
                marker="o",
                linestyle="-" if len(own) > 1 else "",
                capsize=4,
                label=family + (" (not final)" if unfinished else ""),
            )
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.set_xlim(0, 1.12 * max((value for network in networks if (value := cost(network))), default=1.0))
    axes[0].set_ylabel("test top-1 (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    dataset = networks[0]["dataset"]
    figure.suptitle(f"{dataset}: mean over seeds and its {CONFIDENCE:.0%} confidence interval", fontsize=12)
    figures.save(figure, path)
    return True


def write(directory: pathlib.Path, command: str, match: str, networks: Sequence[Result]) -> list[pathlib.Path]:
    """Write compare.json, compare.md and, if there are results to plot, compare.png and curves.png; return paths."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = artifacts.draw(directory, networks, {"compare.png": draw, "curves.png": artifacts.curves})
    content = {"command": command, "match": match, "confidence": CONFIDENCE, "apart": list(apart(networks, match))}
    content |= {"equal": not unequal(networks, match)}
    written: dict[str, bytes] = {
        "compare.json": (json.dumps(content | {"networks": list(networks)}, indent=1) + "\n").encode(),
        "compare.md": markdown(command, match, networks, drawn).encode(),
    }
    artifacts.write(directory, written)
    return [directory / name for name in [*written, *drawn]]
