"""Count parameters, multiply-accumulates and tokens of a network from its traced program."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """Cost of evaluating one image.

    Attributes:
      params: number of trainable parameters.
      batch_stats: number of running statistics of BatchNorm.
      macs: multiply-accumulates of matrix products, convolutions and Fourier transforms. Elementwise operations are not
        counted, as in publications.
      tokens: rows of the activations between blocks: patches, and the class token if there is one.

    """

    params: int
    batch_stats: int
    macs: int
    tokens: int


@functools.cache
def cost(model: nn.Module, image_size: int | tuple[int, int], channels: int = 3) -> ModelCost:
    """Return the cost of a network without computing anything. The result is the same on every backend."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    plain: Any = dict(depthwise_impl="conv", fourier_impl="fft", attention_impl="plain", scan=True, remat=False)
    model = model.clone(**{name: value for name, value in plain.items() if hasattr(model, name)})
    image = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    sown = jax.eval_shape(lambda v, x: model.apply(v, x, train=False, mutable=["intermediates"])[1], variables, image)
    block = sown["intermediates"]["block_0"][0].shape  # (1, tokens, channels) or (1, rows, columns, channels)
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, image)
    return ModelCost(
        params=_size(variables["params"]),
        batch_stats=_size(variables.get("batch_stats", {})),
        macs=_macs(program.jaxpr),
        tokens=math.prod(block[1:-1]),
    )


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _macs(program: Any) -> int:
    """Count the multiply-accumulates of a program, including inner programs, times the number of their runs."""
    total = 0
    for step in program.eqns:
        shapes = [variable.aval.shape for variable in (*step.invars, *step.outvars)]
        match step.primitive.name:
            case "dot_general":
                (contracted, _), _ = step.params["dimension_numbers"]
                total += math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in contracted)
            case "conv_general_dilated":
                features = step.params["dimension_numbers"].rhs_spec[0]
                total += math.prod(shapes[-1]) * math.prod(shapes[1]) // shapes[1][features]
            case "fft":  # 5 n log2 n operations for n complex numbers, two of them to a multiply-accumulate
                numbers = math.prod(step.params["fft_lengths"])
                total += round(2.5 * math.prod(shapes[-1]) * math.log2(numbers))
        times = step.params["length"] if step.primitive.name == "scan" else 1
        for inner in step.params.values():
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                total += times * _macs(getattr(inner, "jaxpr", inner))
    return total
