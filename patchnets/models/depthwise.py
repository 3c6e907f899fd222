"""Depthwise convolution: each channel with a kernel of its own, two exact ways of computing it.

`conv` is XLA's grouped convolution. `shifts` is its definition, the sum over the taps of the kernel of the shifted
image times the tap's weights, which a compiler makes into one pass of elementwise arithmetic; on a CPU that is many
times faster than what XLA does with the former (docs/measurements.md). Products
are formed in the type of the images, and summed in float32.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def depthwise_conv(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "k k 1 channels"]
) -> Float[Array, "batch height width channels"]:
    """XLA's grouped convolution; zeros beyond the edges, one more at the end where the kernel's side is even."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
    )


@jax.custom_vjp
def depthwise_shifts(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "k k 1 channels"]
) -> Float[Array, "batch height width channels"]:
    """The same as a sum of shifted products."""
    return _sum_of_shifts(_pad(x, kernel.shape[:2]), kernel, x.shape)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_shifts(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    """With respect to the images, the same convolution with the kernel turned round; with respect to the kernel, the
    product of gradient and shifted image, summed over examples and places.

    One image at a time, so that all taps find it in the processor's cache; the sums stay apart by place until the end,
    because elementwise additions are fast where reductions over leading axes are not.
    """
    x, kernel = saved
    size = kernel.shape[:2]
    shape = _, height, width, _ = x.shape
    turned_kernel = kernel[::-1, ::-1]

    def one_image(sums: tuple[Array, ...], image: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        padded, padded_grad, grad = image  # (height + k - 1, width + k - 1, channels) twice, (height, width, channels)
        products = (padded[i : i + height, j : j + width] * grad for i, j in np.ndindex(size))
        sums = tuple(before + product for before, product in zip(sums, products))
        return sums, _sum_of_shifts(padded_grad[None], turned_kernel, (1, *shape[1:]))[0]

    sums = (jnp.zeros(shape[1:], jnp.float32),) * math.prod(size)
    sums, image_grad = jax.lax.scan(one_image, sums, (_pad(x, size), _pad(grad, size, turned=True), grad))
    kernel_grad = jnp.stack([s.sum((0, 1)) for s in sums]).reshape(kernel.shape)
    return image_grad, kernel_grad.astype(kernel.dtype)


depthwise_shifts.defvjp(_forward, _backward)


def _pad(x: Array, size: tuple[int, ...], turned: bool = False) -> Array:
    low = [(side - 1) // 2 for side in size]
    high = [side - 1 - before for side, before in zip(size, low)]
    low, high = (high, low) if turned else (low, high)
    return jnp.pad(x, ((0, 0), (low[0], high[0]), (low[1], high[1]), (0, 0)))


def _sum_of_shifts(padded: Array, kernel: Array, shape: tuple[int, ...]) -> Array:
    _, height, width, _ = shape
    total = jnp.zeros((), jnp.float32)
    for i, j in np.ndindex(kernel.shape[:2]):
        total = total + padded[:, i : i + height, j : j + width] * kernel[i, j, 0]
    return total.astype(padded.dtype)


DEPTHWISE: dict[str, Callable[[Array, Array], Array]] = {"conv": depthwise_conv, "shifts": depthwise_shifts}
# What `auto` takes: on the CPU the faster one in a training step (docs/measurements.md); elsewhere not measured yet.
FASTER = {"cpu": "shifts", "gpu": "conv", "tpu": "conv"}


def depthwise(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "k k 1 channels"], how: str
) -> Float[Array, "batch height width channels"]:
    """The convolution in one of its two ways, or, for `how` = "auto", in the platform's faster one."""
    return DEPTHWISE[FASTER.get(jax.default_backend(), "conv") if how == "auto" else how](x, kernel)
