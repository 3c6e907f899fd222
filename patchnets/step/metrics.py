"""Metrics as sums and counts (clu), in which every example counts once: padding is masked out."""

from typing import Any

import flax.struct
import jax.numpy as jnp
from clu import metrics as clu_metrics
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class EvalMetrics(clu_metrics.Collection):
    """Means over examples."""

    loss: clu_metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: clu_metrics.Average.from_output("top1")  # type: ignore[valid-type]
    top5_accuracy: clu_metrics.Average.from_output("top5")  # type: ignore[valid-type]


@flax.struct.dataclass
class GradNorm(clu_metrics.Average):
    """The mean over steps of a figure that a step has one of, which no mask applies to."""

    @classmethod
    def from_model_output(cls, grad_norm: Array, **_: Any) -> "GradNorm":
        return super().from_model_output(grad_norm)


@flax.struct.dataclass
class TrainMetrics(clu_metrics.Collection):
    """The same, and the norm of the gradient as a mean over steps."""

    loss: clu_metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: clu_metrics.Average.from_output("top1")  # type: ignore[valid-type]
    top5_accuracy: clu_metrics.Average.from_output("top5")  # type: ignore[valid-type]
    grad_norm: GradNorm


def top_k_correct(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], k: int
) -> Float[Array, " batch"]:
    """1 where fewer than `k` classes score higher than the label's, or as high with a smaller index; else 0.

    A logit that is not a number is never right.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    classes = jnp.arange(logits.shape[-1])
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    return ((ahead.sum(axis=-1) < k) & jnp.isfinite(own[:, 0])).astype(jnp.float32)
