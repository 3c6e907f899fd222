"""What all pictures share: a canvas without a screen, tiles of small images, and writing a PNG whole or not at all."""

import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from patchnets.files import atomic_path

DPI = 110
APART = (0.62, 0.72, 0.86)  # the color between tiles, which is that of no gray image


def pyplot() -> Any:
    """Matplotlib, drawing into files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, path: pathlib.Path) -> pathlib.Path:
    """Writes a figure to `path`, a PNG, closes it, and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(path) as partial:
            figure.savefig(partial, dpi=DPI)
    finally:
        pyplot().close(figure)
    return path


def bare(axis: Any) -> None:
    """An axis for an image: no ticks, no frame."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def tiles(
    images: Num[np.ndarray, "count height width *channels"], columns: int, gap: float | tuple[float, ...]
) -> Float[np.ndarray, "rows_high columns_wide *channels"]:
    """Images laid out in rows of `columns`, one pixel of `gap` between them."""
    count, height, width, *channels = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, *channels), gap, np.float32)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet


def to_rgb(images: Num[np.ndarray, "*shape channels"]) -> Num[np.ndarray, "*shape 3"]:
    """Levels of red, green and blue, of images with three channels or one; of others the mean over channels."""
    return images if images.shape[-1] == 3 else np.repeat(images.mean(axis=-1, keepdims=True), 3, axis=-1)


def spread(
    images: Num[np.ndarray, "count height width *channels"],
) -> Float[np.ndarray, "count height width *channels"]:
    """Each image from its least value, 0, to its greatest, 1; 0.5 where all are equal."""
    low = images.min(axis=tuple(range(1, images.ndim)), keepdims=True)
    high = images.max(axis=tuple(range(1, images.ndim)), keepdims=True)
    wide = np.where(high > low, high - low, 1.0)
    return np.where(high > low, (images - low) / wide, 0.5).astype(np.float32)
