"""Networks of each family in their paper's proportions, and those among them that cost what is asked."""

import dataclasses
from collections.abc import Callable
from typing import Any

from patchnets.errors import UserError

DEPTH, WIDTH = 8, 128  # where the search begins
DEPTHS = (8, 9, 7, 10, 6, 11, 5, 12, 4, 14, 3, 16, 2)  # the usual ones first
STEP = 4  # between widths
NARROWEST, WIDEST = 16, 4096
HEAD = 32  # channels of an attention head, about
TRIES = 8  # widths at one depth


@dataclasses.dataclass(frozen=True)
class Shape:
    """A network: its family (a name of patchnets.models.MODELS), number of blocks, and channels of a patch."""

    family: str
    depth: int = DEPTH
    width: int = WIDTH

    @property
    def fields(self) -> dict[str, Any]:
        """What config.model has besides the side of a patch."""
        own = FAMILIES[self.family](self.width)
        return dict(name=self.family, depth=self.depth, hidden_dim=self.width, **own)

    def __str__(self) -> str:
        return f"{self.width}/{self.depth}"


def heads(width: int) -> int:
    """Of `width` channels, as many as make each about `HEAD` channels wide, by a number that divides them."""
    return min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(width / n - HEAD))


# What a family has besides depth and width, in proportion as the papers have it: Mixer's table 1 (D_S = C / 2 and
# D_C = 4 C), FNet's and ViT's (four times the width), gMLP's (six times), ConvMixer's CIFAR networks (kernels of 5).
FAMILIES: dict[str, Callable[[int], dict[str, Any]]] = {
    "mlp_mixer": lambda width: dict(tokens_mlp_dim=width // 2, channels_mlp_dim=4 * width),
    "fnet": lambda width: dict(mlp_dim=4 * width),
    "gmlp": lambda width: dict(ffn_dim=6 * width),
    "convmixer": lambda width: dict(kernel_size=5),
    "vit": lambda width: dict(mlp_dim=4 * width, num_heads=heads(width), pool_type="gap"),
}


def matched(family: str, target: float, tolerance: float, cost_of: Callable[[Shape], float]) -> Shape:
    """The network of a family that costs `target` to within the share `tolerance` of it, of the depth nearest the usual
    one at which one does.

    `cost_of` is asked as seldom as can be, for it may have to measure.

    Raises:
      UserError: none does.
    """
    costs: dict[Shape, float] = {}

    def cost(shape: Shape) -> float:
        if shape not in costs:
            costs[shape] = cost_of(shape)
        return costs[shape]

    def error(shape: Shape) -> float:
        return abs(cost(shape) / target - 1)

    guess, depth_before = float(WIDTH), DEPTHS[0]
    for depth in DEPTHS:
        guess *= (depth_before / depth) ** 0.5
        depth_before = depth
        shape = _of_width(family, depth, guess)
        for _ in range(TRIES):
            if error(shape) <= tolerance:
                return shape
            guess = shape.width * (target / cost(shape)) ** 0.5  # a block's products grow with the square of its width
            following = _of_width(family, depth, guess)
            if following in costs:
                break
            shape = following
    nearest = min(costs, key=error)
    raise UserError(
        f"{family} has no network that costs {target:,.6g} to within {tolerance:.2g} of it; the nearest, {nearest} "
        f"(width/depth), costs {costs[nearest]:,.6g}: give another --target"
    )


def _of_width(family: str, depth: int, width: float) -> Shape:
    return Shape(family, depth, min(WIDEST, max(NARROWEST, STEP * round(width / STEP))))
