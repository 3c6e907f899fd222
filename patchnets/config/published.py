"""Published figures that a configuration aims at, beside what its run measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

METRICS = {"accuracy": "top-1", "top5_accuracy": "top-5"}


def mark_incomparable(config: ml_collections.ConfigDict, changed: Sequence[str]) -> None:
    """Mark the published figures as not comparable, where the command line `changed` keys of the recipe."""
    if changed and published_metrics(config):
        config.published.incomparable = f"config.{changed[0]} was changed"


def published_metrics(config: ml_collections.ConfigDict) -> dict[str, float]:
    """{metric: published value} of those that `config` names."""
    return {name: config.published[name] for name in METRICS if config.published[name] is not None}


def compare(config: ml_collections.ConfigDict, summary: Mapping[str, Any]) -> dict[str, Any]:
    """For the summary: published figures, the measured ones' distance to them, and a verdict; empty where none are
    named.

    "reproduced" is a test metric no lower than the published one less the tolerance.
    """
    targets = published_metrics(config)
    if not targets:
        return {}
    found: dict[str, Any] = {"source": config.published.source, "tolerance": config.published.tolerance}
    for name, value in targets.items():
        measured = summary.get(f"test_{name}")
        found[name] = {"published": value, "measured": measured}
        if measured is not None:
            found[name]["difference"] = round(measured - value, 6)
    if config.published.incomparable:
        found["verdict"] = f"not compared: {config.published.incomparable}"
    elif any("difference" not in found[name] for name in targets):
        found["verdict"] = "not compared: there is no test split"
    else:
        holds = all(found[name]["difference"] >= -config.published.tolerance for name in targets)
        found["verdict"] = "reproduced" if holds else "not reproduced"
    return {"published": found}


def describe(config: ml_collections.ConfigDict) -> str | None:
    """The published figures in one line, for the first screen; None where there are none."""
    targets = published_metrics(config)
    if not targets:
        return None
    text = ", ".join(f"{METRICS[name]} {value:.2%}" for name, value in targets.items())
    where = f" ({config.published.source})" if config.published.source else ""
    return f"published: {text} of the test split{where}" + (
        f"; not compared, for {config.published.incomparable}" if config.published.incomparable else ""
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
