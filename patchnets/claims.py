"""What a configuration claims, a published figure, beside what its run measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

METRICS = {"accuracy": "top-1", "top5_accuracy": "top-5"}


def void_if_changed(config: ml_collections.ConfigDict, changed: Sequence[str]) -> None:
    """Marks the claims as not to be compared, where the command line `changed` keys of the recipe."""
    if changed and published(config):
        config.claims.void = f"config.{changed[0]} was changed"


def published(config: ml_collections.ConfigDict) -> dict[str, float]:
    """{metric: published value} of those that `config` claims."""
    return {name: config.claims[name] for name in METRICS if config.claims[name] is not None}


def compared(config: ml_collections.ConfigDict, summary: Mapping[str, Any]) -> dict[str, Any]:
    """For the summary: published figures, the measured ones' distance to them, and a verdict; empty without claims.

    "reproduced" is a test metric no lower than the published one less the tolerance.
    """
    claims = published(config)
    if not claims:
        return {}
    found: dict[str, Any] = {"source": config.claims.source, "tolerance": config.claims.tolerance}
    for name, value in claims.items():
        measured = summary.get(f"test_{name}")
        found[name] = {"published": value, "measured": measured}
        if measured is not None:
            found[name]["difference"] = round(measured - value, 6)
    if config.claims.void:
        found["verdict"] = f"not compared: {config.claims.void}"
    elif any("difference" not in found[name] for name in claims):
        found["verdict"] = "not compared: there is no test split"
    else:
        holds = all(found[name]["difference"] >= -config.claims.tolerance for name in claims)
        found["verdict"] = "reproduced" if holds else "not reproduced"
    return {"claims": found}


def stated(config: ml_collections.ConfigDict) -> str | None:
    """The claims in one line, for the first screen; None where there are none."""
    claims = published(config)
    if not claims:
        return None
    text = ", ".join(f"{METRICS[name]} {value:.2%}" for name, value in claims.items())
    where = f" ({config.claims.source})" if config.claims.source else ""
    return f"published: {text} of the test split{where}" + (
        f"; not compared, for {config.claims.void}" if config.claims.void else ""
    )


def concluded(found: Mapping[str, Any]) -> str:
    """What `compared` found, in one line, for the last screen."""
    parts = []
    for name, label in METRICS.items():
        if name in found:
            text = f"{label} {found[name]['published']:.2%} published"
            if "difference" in found[name]:
                difference = 100 * found[name]["difference"]
                text += f", {found[name]['measured']:.2%} measured ({difference:+.2f} points)"
            parts.append(text)
    return f"{'; '.join(parts)}: {found['verdict']}"
