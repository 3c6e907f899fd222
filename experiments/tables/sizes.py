"""Parameters and multiply-accumulates of every published network, counted without training.

`python -m patchnets.models` prints the same figures, patchnets.models.published_sizes.PUBLISHED.
"""

from typing import NamedTuple

from patchnets import models
from patchnets.models.flops import cost
from patchnets.models.published_sizes import PUBLISHED

GMACS_TOLERANCE = 0.01  # some published counts include elementwise operations; ours do not


class Size(NamedTuple):
    """Published and counted size of one network. `gmacs` is None if not published."""

    id: str
    params: int
    gmacs: float | None
    counted_params: int
    counted_gmacs: float

    @property
    def verdict(self) -> str:
        close = self.gmacs is None or abs(self.counted_gmacs / self.gmacs - 1) <= GMACS_TOLERANCE
        return "reproduced" if close and self.counted_params == self.params else "not reproduced"


def counted() -> list[Size]:
    """Count all networks with published sizes; takes seconds."""
    sizes = []
    for (name, variant), published in PUBLISHED.items():
        if published.params is not None:
            network, variants = models.MODELS[name]
            measured = cost(network(num_classes=published.num_classes, **variants[variant]), published.image_size)
            size = Size(f"{name} {variant}", published.params, published.gmacs, measured.params, measured.macs / 1e9)
            sizes.append(size)
    return sizes
