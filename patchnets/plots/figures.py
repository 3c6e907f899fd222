"""Helpers of all plots: Matplotlib without a display, tiles of small images, atomic writing of PNG files."""

import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from patchnets.runtime import fonts
from patchnets.runtime.files import atomic_path

DPI = 110
LONGEST = 40  # columns of a name; longer names are shortened
APART = (0.62, 0.72, 0.86)  # the color between tiles, distinct from any gray


def pyplot() -> Any:
    """Return Matplotlib's pyplot with a backend that draws into files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, path: pathlib.Path) -> pathlib.Path:
    """Write a figure to `path` (PNG) atomically, close it, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    from matplotlib.text import Text

    try:
        powers = _labels_of_logarithmic_axes(figure)
        for text in figure.findobj(Text):
            if text not in powers:
                _draw_literally(text)
        with atomic_path(path) as partial:
            figure.savefig(partial, dpi=DPI)
    finally:
        pyplot().close(figure)
    return path


def _labels_of_logarithmic_axes(figure: Any) -> set[Any]:
    """Return the labels that matplotlib itself writes as formulas, such as powers of ten."""
    axes = [axis for part in figure.axes for axis in (part.xaxis, part.yaxis) if axis.get_scale() == "log"]
    return {label for axis in axes for label in (*axis.get_majorticklabels(), *axis.get_minorticklabels())}


def _draw_literally(text: Any) -> None:
    """Have a text drawn as it stands, $ and _ included, in fonts that have its characters."""
    text.set_parse_math(False)
    if not text.get_text().isascii():
        text.set_text("\n".join(map(fonts.drawable, text.get_text().split("\n"))))
        text.set_family(fonts.families(text.get_text()))


def label(name: str, columns: int = LONGEST) -> str:
    """Return a class name as a picture shows it: in one line that is not too long."""
    return fonts.shorten(fonts.drawable(name), columns)


def bare(axis: Any) -> None:
    """Remove ticks and frame of an axis."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def tiles(
    images: Num[np.ndarray, "count height width *channels"], columns: int, gap: float | tuple[float, ...]
) -> Float[np.ndarray, "rows_high columns_wide *channels"]:
    """Lay images out in rows of `columns`, with one pixel of color `gap` between them."""
    count, height, width, *channels = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, *channels), gap, np.float32)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet


def to_rgb(images: Num[np.ndarray, "*shape channels"]) -> Num[np.ndarray, "*shape 3"]:
    """Convert images to RGB: unchanged for three channels, else the mean over channels."""
    return images if images.shape[-1] == 3 else np.repeat(images.mean(axis=-1, keepdims=True), 3, axis=-1)


def spread(
    images: Num[np.ndarray, "count height width *channels"],
) -> Float[np.ndarray, "count height width *channels"]:
    """Rescale each image from [min, max] to [0, 1]; constant images become 0.5."""
    low = images.min(axis=tuple(range(1, images.ndim)), keepdims=True)
    high = images.max(axis=tuple(range(1, images.ndim)), keepdims=True)
    span = np.where(high > low, high - low, 1.0)
    return np.where(high > low, (images - low) / span, 0.5).astype(np.float32)
