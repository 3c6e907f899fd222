"""Contact sheets of a data set: images of every class, as they are and as training augments them."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt

from patchnets.data import DataOptions
from patchnets.data.inspection import Inspection
from patchnets.plots import augmentations, figures
from patchnets.run import console

MAX_CLASSES, COLUMNS = 24, 8  # rows, and images in a row
LABEL = 24  # columns of a class name


def draw(inspection: Inspection, options: DataOptions, directory: pathlib.Path) -> list[pathlib.Path]:
    """Write classes.png and augmented.png to `directory` and return their paths.

    Both show the same images of the training split, spread evenly over it: at `options.image_size`, and with the
    augmentation of `options`.
    """
    rows = sample(inspection, options.image_size)
    if not rows:
        return []
    images = jnp.asarray(np.concatenate(list(rows.values())))
    augmented = augmentations.to_bytes(augmentations.augmentation(options)(jax.random.key(options.seed), images))
    split_at = np.cumsum([len(row) for row in rows.values()])[:-1]
    settings = console.describe_augmentation(options.augment) or "none"
    title = f"{inspection.source.name}, {options.image_size} px"
    return [
        draw_rows(rows, title, directory / "classes.png"),
        draw_rows(
            dict(zip(rows, np.split(augmented, split_at))),
            f"{title}; augmentation: {settings}",
            directory / "augmented.png",
        ),
    ]


def sample(inspection: Inspection, size: int) -> dict[str, UInt[np.ndarray, "images size size channels"]]:
    """Return {class name: some of its readable images}, of evenly spaced classes if there are many."""
    split = "train" if "train" in inspection.facts else next(iter(inspection.facts))
    facts, names = inspection.facts[split], inspection.source.class_names
    records = inspection.source.records(split)
    readable = np.array([fact.error is None for fact in facts])
    rows = {}
    for label in np.unique(np.linspace(0, len(names) - 1, MAX_CLASSES).round().astype(int)):
        positions = np.flatnonzero(readable & (inspection.labels(split) == label))
        if len(positions):
            chosen = positions[np.unique(np.linspace(0, len(positions) - 1, COLUMNS).round().astype(int))]
            rows[names[label]] = np.stack([image for image, _ in records.examples(chosen.tolist(), size)])
    return rows


def draw_rows(
    rows: dict[str, UInt[np.ndarray, "images size size channels"]], title: str, path: pathlib.Path
) -> pathlib.Path:
    """Draw a row of images for each class name."""
    plt, labels = figures.pyplot(), [figures.label(name, LABEL) for name in rows]
    size_of_figure = (COLUMNS * 0.9 + 0.1 * max(map(len, labels)), 0.92 * len(rows) + 0.5)
    figure, axes = plt.subplots(len(rows), 1, figsize=size_of_figure, squeeze=False, layout="constrained")
    for axis, label, images in zip(axes[:, 0], labels, rows.values()):
        size = images.shape[1]
        strip = np.ones((size, COLUMNS * (size + size // 16 + 1), 3))
        for i, image in enumerate(figures.to_rgb(images / np.iinfo(images.dtype).max)):
            strip[:, i * (size + size // 16 + 1) :][:, :size] = image
        axis.imshow(strip)
        figures.bare(axis)
        axis.set_anchor("E")
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle(title, fontsize=9, wrap=True)
    return figures.save(figure, path)
