"""Metrics as sums and counts (clu). Every example counts once; padding is masked out."""

from typing import Any

import flax.struct
import jax.numpy as jnp
from clu import metrics as clu_metrics
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class EvalMetrics(clu_metrics.Collection):
    """Evaluation metrics: means over examples."""

    loss: clu_metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: clu_metrics.Average.from_output("top1")  # type: ignore[valid-type]
    top5_accuracy: clu_metrics.Average.from_output("top5")  # type: ignore[valid-type]


@flax.struct.dataclass
class GradNorm(clu_metrics.Average):
    """Mean over steps of the gradient norm; no mask applies to it."""

    @classmethod
    def from_model_output(cls, grad_norm: Array, **_: Any) -> "GradNorm":
        return super().from_model_output(grad_norm)


@flax.struct.dataclass
class TrainMetrics(clu_metrics.Collection):
    """Training metrics: means over examples, and the mean gradient norm over steps."""

    loss: clu_metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: clu_metrics.Average.from_output("top1")  # type: ignore[valid-type]
    top5_accuracy: clu_metrics.Average.from_output("top5")  # type: ignore[valid-type]
    grad_norm: GradNorm


def top_k_correct(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], k: int
) -> Float[Array, " batch"]:
    """Return 1 for each example whose label is among the `k` classes with the highest logits, else 0.

    Ties go to the class with the smaller index. If the logit of the label is not finite, the result is 0.
    """
    label_logits = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    classes = jnp.arange(logits.shape[-1])
    ahead = (logits > label_logits) | ((logits == label_logits) & (classes < labels[:, None]))
    return ((ahead.sum(axis=-1) < k) & jnp.isfinite(label_logits[:, 0])).astype(jnp.float32)
