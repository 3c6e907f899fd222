"""Plot an image and its patches."""

from typing import Any

import numpy as np
from jaxtyping import Float

from patchnets.plots.figures import APART, bare, label, pyplot, to_rgb


def image_and_patches(image: Float[np.ndarray, "height width channels"], patch: tuple[int, int], name: str) -> Any:
    """Plot an image, with levels from 0 to 1, next to its separated patches.

    Args:
      patch: height and width of a patch in pixels.
      name: the class of the image.
    """
    height, width, _ = image.shape
    rows, columns = height // patch[0], width // patch[1]
    image = to_rgb(image)
    gap = max(1, min(patch) // 4)
    high, wide = patch[0] + gap, patch[1] + gap
    separated = np.full((rows * high - gap, columns * wide - gap, 3), APART, np.float32)
    for i in range(rows):
        for j in range(columns):
            pixels = image[i * patch[0] : (i + 1) * patch[0], j * patch[1] : (j + 1) * patch[1]]
            separated[i * high : i * high + patch[0], j * wide : j * wide + patch[1]] = pixels
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.8), layout="constrained")
    titles = (
        f"{label(name)}, {height} x {width} pixels",
        f"{rows} x {columns} patches of {patch[0]} x {patch[1]} pixels",
    )
    for axis, shown, title in zip(axes, (image, separated), titles):
        axis.imshow(shown, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        bare(axis)
    figure.suptitle("Input image and its patches", fontsize=10)
    return figure
