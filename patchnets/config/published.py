"""Published test metrics of a configuration, and their comparison with the measured ones."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

METRICS = {"accuracy": "top-1", "top5_accuracy": "top-5"}


@dataclasses.dataclass(frozen=True)
class Published:
    """Published metrics of the test split.

    Attributes:
      tolerance: how far below a published metric a measured one still counts as reproduced.
      source: where the metrics are published.
      incomparable: why a run is not compared with them; None if it is.
    """

    accuracy: float | None = None
    top5_accuracy: float | None = None
    tolerance: float = 0.01
    source: str | None = None
    incomparable: str | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Return {metric: published value}, without unpublished ones."""
        return {name: value for name in METRICS if (value := getattr(self, name)) is not None}


def mark_incomparable(published: Published, changed: Sequence[str]) -> Published:
    """Return `published` marked as incomparable if the command line `changed` keys of the recipe."""
    if not changed or not published.metrics:
        return published
    return dataclasses.replace(published, incomparable=f"config.{changed[0]} was changed")


def compare(published: Published, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return published and measured metrics, their differences and a verdict for summary.json; {} if none is published.

    The verdict is "reproduced" if every test metric is at least the published one minus the tolerance.
    """
    targets = published.metrics
    if not targets:
        return {}
    comparison: dict[str, Any] = {"source": published.source, "tolerance": published.tolerance}
    for name, value in targets.items():
        measured = summary.get(f"test_{name}")
        comparison[name] = {"published": value, "measured": measured}
        if measured is not None:
            comparison[name]["difference"] = round(measured - value, 6)
    if published.incomparable:
        comparison["verdict"] = f"not compared: {published.incomparable}"
    elif any("difference" not in comparison[name] for name in targets):
        comparison["verdict"] = "not compared: there is no test split"
    else:
        reproduced = all(comparison[name]["difference"] >= -published.tolerance for name in targets)
        comparison["verdict"] = "reproduced" if reproduced else "not reproduced"
    return {"published": comparison}


def describe(published: Published) -> str | None:
    """Format the published metrics in one line for the start of a run; None if there are none."""
    targets = published.metrics
    if not targets:
        return None
    text = ", ".join(f"{METRICS[name]} {value:.2%}" for name, value in targets.items())
    source = f" ({published.source})" if published.source else ""
    return f"published: {text} of the test split{source}" + (
        f"; not compared: {published.incomparable}" if published.incomparable else ""
    )


def describe_comparison(comparison: Mapping[str, Any]) -> str:
    """Format the result of `compare` in one line for the end of a run."""
    parts = []
    for name, label in METRICS.items():
        if name in comparison:
            text = f"{label} {comparison[name]['published']:.2%} published"
            if "difference" in comparison[name]:
                difference = 100 * comparison[name]["difference"]
                text += f", {comparison[name]['measured']:.2%} measured ({difference:+.2f} points)"
            parts.append(text)
    return f"{'; '.join(parts)}: {comparison['verdict']}"
