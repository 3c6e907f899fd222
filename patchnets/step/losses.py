"""Per-example losses with soft targets."""

from collections.abc import Callable

import jax
import optax
from jaxtyping import Array, Float, Int

Targets = Float[Array, "batch classes"]


def smooth_one_hot(labels: Int[Array, " batch"], classes: int, smoothing: float = 0.0) -> Targets:
    """Return one-hot targets, with `smoothing` spread evenly over all classes (arXiv 1512.00567, section 7)."""
    return optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing)


def softmax_cross_entropy(logits: Float[Array, "batch classes"], targets: Targets) -> Float[Array, " batch"]:
    """Return per-example softmax cross-entropy."""
    return optax.softmax_cross_entropy(logits, targets)


def sigmoid_cross_entropy(logits: Float[Array, "batch classes"], targets: Targets) -> Float[Array, " batch"]:
    """Return per-example sigmoid cross-entropy, summed over classes (arXiv 2006.07159, section 4.1)."""
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)


LOSSES: dict[str, Callable[..., Array]] = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}
