"""Learning curves of a run, from its metrics.jsonl."""

import pathlib

from patchnets import workdir
from patchnets.errors import UserError
from patchnets.plots import figures


def draw(path: pathlib.Path) -> pathlib.Path:
    """Writes plots/learning_curves.png of a work directory and returns its path.

    Raises:
      UserError: `path` is no work directory, or holds no figures yet.
    """
    plt = figures.pyplot()
    from matplotlib.ticker import MaxNLocator

    rows = [row for row in workdir.read_metrics(path) if "train_loss" in row]
    if not rows:
        raise UserError(f"{path} holds no figures to draw yet")
    test = next((row for row in workdir.read_metrics(path) if "test_loss" in row), None)
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    panels = [
        ("loss", "cross-entropy", 1),
        ("accuracy", "top-1 accuracy (%)", 100),
        ("top5_accuracy", "top-5 accuracy (%)", 100),
    ]
    for axis, (name, label, scale) in zip(axes, panels):
        for role, colour in (("train", "tab:blue"), ("val", "tab:orange")):
            found = [(row["epoch"], scale * row[f"{role}_{name}"]) for row in rows if f"{role}_{name}" in row]
            if found:
                marker = "o" if len(found) < 30 else None
                axis.plot(*zip(*found), color=colour, marker=marker, markersize=3, label=role)
        if test:
            value = scale * test[f"test_{name}"]
            axis.axhline(value, color="tab:green", linestyle="--", linewidth=1, label=f"test {value:.4g}")
        axis.set(xlabel="epoch", ylabel=label)
        axis.legend()
    axes[3].plot(
        [row["epoch"] for row in rows],
        [row["learning_rate"] for row in rows],
        color="tab:gray",
        marker="." if len(rows) < 30 else None,
    )
    axes[3].set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=rows[-1]["epoch"] >= 3))
    figure.suptitle(f"{path.absolute().name}: learning curves")
    return figures.save(figure, path / "plots" / "learning_curves.png")
