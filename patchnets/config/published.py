"""Published figures that a configuration aims at, beside what its run measured."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

METRICS = {"accuracy": "top-1", "top5_accuracy": "top-5"}


@dataclasses.dataclass(frozen=True)
class Published:
    """Figures of the test split, where they are published, and how far below them a result still reproduces them.

    Attributes:
      incomparable: why a run is not held to them; None where it is.
    """

    accuracy: float | None = None
    top5_accuracy: float | None = None
    tolerance: float = 0.01
    source: str | None = None
    incomparable: str | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """{metric: published value} of those that are published."""
        return {name: value for name in METRICS if (value := getattr(self, name)) is not None}


def mark_incomparable(published: Published, changed: Sequence[str]) -> Published:
    """Return the figures as not comparable, where the command line `changed` keys of the recipe."""
    if not changed or not published.metrics:
        return published
    return dataclasses.replace(published, incomparable=f"config.{changed[0]} was changed")


def compare(published: Published, summary: Mapping[str, Any]) -> dict[str, Any]:
    """For the summary: published figures, the measured ones' distance to them, and a verdict; empty where none are
    named.

    "reproduced" is a test metric no lower than the published one less the tolerance.
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
        holds = all(comparison[name]["difference"] >= -published.tolerance for name in targets)
        comparison["verdict"] = "reproduced" if holds else "not reproduced"
    return {"published": comparison}


def describe(published: Published) -> str | None:
    """The published figures in one line, for the first screen; None where there are none."""
    targets = published.metrics
    if not targets:
        return None
    text = ", ".join(f"{METRICS[name]} {value:.2%}" for name, value in targets.items())
    source = f" ({published.source})" if published.source else ""
    return f"published: {text} of the test split{source}" + (
        f"; not compared, for {published.incomparable}" if published.incomparable else ""
    )


def describe_comparison(comparison: Mapping[str, Any]) -> str:
    """What `compare` found, in one line, for the last screen."""
    parts = []
    for name, label in METRICS.items():
        if name in comparison:
            text = f"{label} {comparison[name]['published']:.2%} published"
            if "difference" in comparison[name]:
                difference = 100 * comparison[name]["difference"]
                text += f", {comparison[name]['measured']:.2%} measured ({difference:+.2f} points)"
            parts.append(text)
    return f"{'; '.join(parts)}: {comparison['verdict']}"
