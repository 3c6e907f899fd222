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
    found: dict[str, Any] = {"source": published.source, "tolerance": published.tolerance}
    for name, value in targets.items():
        measured = summary.get(f"test_{name}")
        found[name] = {"published": value, "measured": measured}
        if measured is not None:
            found[name]["difference"] = round(measured - value, 6)
    if published.incomparable:
        found["verdict"] = f"not compared: {published.incomparable}"
    elif any("difference" not in found[name] for name in targets):
        found["verdict"] = "not compared: there is no test split"
    else:
        holds = all(found[name]["difference"] >= -published.tolerance for name in targets)
        found["verdict"] = "reproduced" if holds else "not reproduced"
    return {"published": found}


def describe(published: Published) -> str | None:
    """The published figures in one line, for the first screen; None where there are none."""
    targets = published.metrics
    if not targets:
        return None
    text = ", ".join(f"{METRICS[name]} {value:.2%}" for name, value in targets.items())
    where = f" ({published.source})" if published.source else ""
    return f"published: {text} of the test split{where}" + (
        f"; not compared, for {published.incomparable}" if published.incomparable else ""
    )


def describe_comparison(found: Mapping[str, Any]) -> str:
    """What `compare` found, in one line, for the last screen."""
    parts = []
    for name, label in METRICS.items():
        if name in found:
            text = f"{label} {found[name]['published']:.2%} published"
            if "difference" in found[name]:
                difference = 100 * found[name]["difference"]
                text += f", {found[name]['measured']:.2%} measured ({difference:+.2f} points)"
            parts.append(text)
    return f"{'; '.join(parts)}: {found['verdict']}"
