"""Plot the learning curves of a run from its metrics.jsonl."""

import json
import pathlib
from typing import Any

from patchnets.errors import UserError
from patchnets.plots import figures
from patchnets.run import workdir

TICKS = 5  # intervals between labels of an axis, at most


def figures_of(path: pathlib.Path) -> list[dict[str, float]]:
    """Return the rows of a work directory's metrics.jsonl, numbers only. Raises UserError if there is none."""

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    rows = [row for row in workdir.read_metrics(path) if isinstance(row, dict)]
    return [{name: value for name, value in row.items() if is_number(value)} for row in rows]


def title(path: pathlib.Path) -> str:
    """Return "mlp_mixer S/16 on cifar100 (seed-0)", or only the folder's name if there is no config.json."""
    folder = path.absolute().name
    try:
        config = json.loads((path / "config.json").read_text())
        model, data = config["model"], config["dataset"]
        network = " ".join(filter(None, (model["name"], model.get("variant"))))
        below = f":{pathlib.Path(data['path']).name}" if data.get("path") else ""
        return f"{network} on {data['name']}{below} ({folder})"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return folder


def draw(path: pathlib.Path) -> pathlib.Path:
    """Write plots/learning_curves.png of a work directory and return its path.

    Raises:
      UserError: `path` is not a work directory, or has no metrics yet.
    """
    plt = figures.pyplot()
    from matplotlib.ticker import MaxNLocator

    all_rows = figures_of(path)
    rows = [row for row in all_rows if {"epoch", "train_loss"} <= row.keys()]
    if not rows:
        raise UserError(f"{path} has no metrics to plot yet")
    test = next((row for row in all_rows if "test_loss" in row), {})
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    panels = [
        ("loss", "cross-entropy", 1),
        ("accuracy", "top-1 accuracy (%)", 100),
        ("top5_accuracy", "top-5 accuracy (%)", 100),
    ]
    for axis, (name, label, scale) in zip(axes, panels):
        for role, color in (("train", "tab:blue"), ("val", "tab:orange")):
            points = [(row["epoch"], scale * row[f"{role}_{name}"]) for row in rows if f"{role}_{name}" in row]
            if points:
                marker = "o" if len(points) < 30 else None
                axis.plot(*zip(*points), color=color, marker=marker, markersize=3, label=role)
        if f"test_{name}" in test:
            value = scale * test[f"test_{name}"]
            axis.axhline(value, color="tab:green", linestyle="--", linewidth=1, label=f"test {value:.4g}")
        axis.set(xlabel="epoch", ylabel=label)
        axis.legend()
    learning_rates = [(row["epoch"], row["learning_rate"]) for row in rows if "learning_rate" in row]
    if learning_rates:
        axes[3].plot(*zip(*learning_rates), color="tab:gray", marker="." if len(learning_rates) < 30 else None)
    axes[3].set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    last = max(row["epoch"] for row in rows)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_xlim(0, 1.04 * last or 1)
        axis.xaxis.set_major_locator(MaxNLocator(TICKS, integer=last >= TICKS))
    figure.suptitle(f"{title(path)}: learning curves")
    return figures.save(figure, path / "plots" / "learning_curves.png")
