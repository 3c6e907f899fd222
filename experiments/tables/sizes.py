"""Parameters and multiply-accumulates of every published network: counted, with nothing to train.

The figures themselves are patchnets.models.published_sizes.PUBLISHED, which `python -m patchnets.models` prints too.
"""

from typing import NamedTuple

from patchnets import models
from patchnets.models.flops import cost
from patchnets.models.published_sizes import PUBLISHED

GMACS_TOLERANCE = 0.01  # what is done element by element is not counted here, and by some who publish is


class Size(NamedTuple):
    """One network: what was published of it, and what is counted. GMACs are None where nobody published them."""

    id: str
    params: int
    gmacs: float | None
    counted_params: int
    counted_gmacs: float

    @property
    def verdict(self) -> str:
        near = self.gmacs is None or abs(self.counted_gmacs / self.gmacs - 1) <= GMACS_TOLERANCE
        return "reproduced" if near and self.counted_params == self.params else "not reproduced"


def counted() -> list[Size]:
    """All networks of which something was published; seconds in all."""
    sizes = []
    for (name, variant), published in PUBLISHED.items():
        if published.params is not None:
            network, variants = models.MODELS[name]
            measured = cost(network(num_classes=published.num_classes, **variants[variant]), published.image_size)
            size = Size(f"{name} {variant}", published.params, published.gmacs, measured.params, measured.macs / 1e9)
            sizes.append(size)
    return sizes
