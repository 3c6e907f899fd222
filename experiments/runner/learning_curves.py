"""Plot the learning curves of all rows in one figure."""

import io
from collections.abc import Sequence
from typing import Any

PANELS = (
    ("val_accuracy", "validation top-1 (%)", 100.0),
    ("val_top5_accuracy", "validation top-5 (%)", 100.0),
    ("train_loss", "training loss", 1.0),
)


def curves(results: Sequence[dict[str, Any]]) -> bytes | None:
    """Return a PNG with a line per row, the mean over seeds, and a band from minimum to maximum; None without runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn = [r for r in results if any(r["curve"][name] for name, *_ in PANELS)]
    if not drawn:
        return None
    figure, axes = plt.subplots(1, len(PANELS), figsize=(15, 4.2), layout="constrained")
    colors = plt.get_cmap("tab10" if len(drawn) <= 10 else "tab20")
    for axis, (name, label, scale) in zip(axes, PANELS):
        for i, result in enumerate(drawn):
            points = result["curve"][name]
            if not points:
                continue
            epochs = [e for e, *_ in points]
            mean, least, most = ([scale * point[k] for point in points] for k in (1, 2, 3))
            unfinished = result["verdict"] == "not run"
            style = dict(color=colors(i), linestyle=":" if unfinished else "-")
            seeds = f"{len(result['seeds'])} seed" + ("s" if len(result["seeds"]) > 1 else "")
            text = f"{result['id']}, {seeds}" + (", not final" if unfinished else "")
            axis.plot(epochs, mean, marker="o" if len(points) < 30 else None, markersize=4, label=text, **style)
            axis.vlines(epochs, least, most, color=colors(i), linewidth=2) if len(points) < 30 else None
            axis.fill_between(epochs, least, most, color=colors(i), alpha=0.15, linewidth=0)
            if name == "val_accuracy" and result["published_curve"]:
                published = {float(e): 100 * value for e, value in result["published_curve"].items()}
                axis.plot(*zip(*published.items()), color=colors(i), linestyle="", marker="x", markersize=8)
        axis.set(xlabel="epoch", ylabel=label)
        axis.grid(alpha=0.3)
        axis.set_xlim(
            0, 1.08 * max((result["curve"][name][-1][0] for result in drawn if result["curve"][name]), default=1.0)
        )
    axes[0].legend(fontsize=8)
    crosses = "; crosses: published" if any(r["published_curve"] for r in drawn) else ""
    figure.suptitle(f"Mean over seeds; bands from minimum to maximum{crosses}", fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
