"""Search networks of each family, in the proportions of its paper, that have a given cost."""

import dataclasses
from collections.abc import Callable
from typing import Any

from patchnets.errors import UserError

DEPTH, WIDTH = 8, 128  # start of the search
DEPTHS = (8, 9, 7, 10, 6, 11, 5, 12, 4, 14, 3, 16, 2)  # in order of preference
STEP = 4  # widths are multiples of it
NARROWEST, WIDEST = 16, 4096
HEAD = 32  # approximate channels per attention head
TRIES = 8  # widths tried per depth


@dataclasses.dataclass(frozen=True)
class Shape:
    """A network: family (a name of patchnets.models.MODELS), number of blocks, and channels per token."""

    family: str
    depth: int = DEPTH
    width: int = WIDTH

    @property
    def fields(self) -> dict[str, Any]:
        """The keys of config.model, except the patch size."""
        own = FAMILIES[self.family](self.width)
        return dict(name=self.family, depth=self.depth, hidden_dim=self.width, **own)

    def __str__(self) -> str:
        return f"{self.width}/{self.depth}"


def heads(width: int) -> int:
    """Return the divisor of `width` that makes heads closest to `HEAD` channels."""
    return min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(width / n - HEAD))


# Fields of a family other than depth and width, in the papers' proportions: Mixer table 1 (D_S = C / 2, D_C = 4 C),
# FNet and ViT (MLP of four times the width), gMLP (six times), ConvMixer's CIFAR networks (kernels of 5).
FAMILIES: dict[str, Callable[[int], dict[str, Any]]] = {
    "mlp_mixer": lambda width: dict(tokens_mlp_dim=width // 2, channels_mlp_dim=4 * width),
    "fnet": lambda width: dict(mlp_dim=4 * width),
    "gmlp": lambda width: dict(ffn_dim=6 * width),
    "convmixer": lambda width: dict(kernel_size=5),
    "vit": lambda width: dict(mlp_dim=4 * width, num_heads=heads(width), pool_type="gap"),
}


def matched(family: str, target: float, tolerance: float, cost_of: Callable[[Shape], float]) -> Shape:
    """Return the network of a family whose cost is `target` within the relative `tolerance`.

    Depths are tried in the order of DEPTHS. `cost_of` is called rarely, because it may have to measure.

    Raises:
      UserError: no network has this cost.
    """
    costs: dict[Shape, float] = {}

    def cost(shape: Shape) -> float:
        if shape not in costs:
            costs[shape] = cost_of(shape)
        return costs[shape]

    def error(shape: Shape) -> float:
        return abs(cost(shape) / target - 1)

    guess, previous_depth = float(WIDTH), DEPTHS[0]
    for depth in DEPTHS:
        guess *= (previous_depth / depth) ** 0.5
        previous_depth = depth
        shape = _of_width(family, depth, guess)
        for _ in range(TRIES):
            if error(shape) <= tolerance:
                return shape
            guess = shape.width * (target / cost(shape)) ** 0.5  # cost grows with the square of the width
            following = _of_width(family, depth, guess)
            if following in costs:
                break
            shape = following
    nearest = min(costs, key=error)
    raise UserError(
        f"{family} has no network that costs {target:,.6g} to within {tolerance:.2g} of it; the nearest, {nearest} "
        f"(width/depth), costs {costs[nearest]:,.6g}; use another --target"
    )


def _of_width(family: str, depth: int, width: float) -> Shape:
    return Shape(family, depth, min(WIDEST, max(NARROWEST, STEP * round(width / STEP))))
