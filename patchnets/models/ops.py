"""Depthwise convolution (one kernel per channel), with two exact implementations.

`conv` is XLA's grouped convolution. `shifts` sums, over the taps of the kernel, the shifted image times the weights of
the tap, which compiles to one pass of elementwise arithmetic. On a CPU that is many times faster than XLA's grouped
convolution (docs/measurements.md). Products have the dtype of the images; sums are float32.

"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from patchnets.parallel.backend import backend

MIN_CHANNELS, MAX_CHANNELS = 32, 128  # of a block, if a divisor of all channels is between (docs/benchmarks.md)


def depthwise_conv(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "k k 1 channels"]
) -> Float[Array, "batch height width channels"]:
    """Convolve with XLA's grouped convolution. Zero padding, with one more at the end for even kernel sizes."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
    )


@jax.custom_vjp
def depthwise_shifts(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "k k 1 channels"]
) -> Float[Array, "batch height width channels"]:
    """Convolve as a sum of shifted products, with a custom gradient."""
    return _shifted_sum(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_shifts(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    """Return the gradients. For the images: the same convolution with the flipped kernel. For the kernel: the product
    of gradient and shifted image, summed over examples and positions."""
    x, kernel = saved
    image_grad = _shifted_sum(grad, kernel[::-1, ::-1], flipped=True)
    return image_grad, _kernel_gradient(x, grad, kernel.shape).astype(kernel.dtype)


depthwise_shifts.defvjp(_forward, _backward)


def _shifted_sum(x: Array, kernel: Array, flipped: bool = False) -> Array:
    """Process a block of channels of one image at a time, so that it stays in cache for all taps, and so that XLA
    computes the result once instead of once per consumer."""
    batch, height, width, channels = x.shape
    size, block = kernel.shape[:2], _channel_block(channels)
    padded = _pad(x, size, flipped)

    def of(block_index: tuple[Array, Array]) -> Array:
        image, first = block_index
        window = jax.lax.dynamic_slice(padded, (image, 0, 0, first), (1, *padded.shape[1:3], block))[0]
        weights = jax.lax.dynamic_slice_in_dim(kernel[:, :, 0], first, block, axis=2)
        total = jnp.zeros((), jnp.float32)
        for i, j in np.ndindex(size):
            total = total + window[i : i + height, j : j + width] * weights[i, j]
        return total.astype(x.dtype)

    images, parts = jnp.divmod(jnp.arange(batch * (channels // block)), channels // block)
    sums = jax.lax.map(of, (images, parts * block)).reshape(batch, -1, height, width, block)
    return jnp.moveaxis(sums, 1, 3).reshape(x.shape)


def _kernel_gradient(x: Array, grad: Array, shape: tuple[int, ...]) -> Array:
    """Sum row by row over a block of channels, so that the sums of all taps stay in cache. Sums are kept per column
    until the end, because elementwise additions are faster than reductions over leading axes."""
    k, taps = shape[0], list(np.ndindex(shape[:2]))
    batch, height, width, channels = x.shape
    block, padded = _channel_block(channels), _pad(x, shape[:2])
    images, rows = jnp.divmod(jnp.arange(batch * height), height)

    def of_channels(first: Array) -> Array:
        def add_row(sums: tuple[Array, ...], row_index: tuple[Array, Array]) -> tuple[tuple[Array, ...], None]:
            image, row = row_index
            window = jax.lax.dynamic_slice(padded, (image, row, 0, first), (1, k, width + k - 1, block))[0]
            grad_row = jax.lax.dynamic_slice(grad, (image, row, 0, first), (1, 1, width, block))[0, 0]
            return tuple(s + window[i, j : j + width] * grad_row for s, (i, j) in zip(sums, taps)), None

        sums, _ = jax.lax.scan(add_row, (jnp.zeros((width, block), jnp.float32),) * len(taps), (images, rows))
        return jnp.stack([s.sum(axis=0) for s in sums])

    parts = jax.lax.map(of_channels, jnp.arange(0, channels, block))  # (channels / some, taps, some)
    return jnp.moveaxis(parts, 0, 1).reshape(shape)


def _channel_block(channels: int) -> int:
    return max((size for size in range(MIN_CHANNELS, MAX_CHANNELS + 1) if channels % size == 0), default=channels)


def _pad(x: Array, size: tuple[int, ...], flipped: bool = False) -> Array:
    low = [(side - 1) // 2 for side in size]
    high = [side - 1 - before for side, before in zip(size, low)]
    low, high = (high, low) if flipped else (low, high)
    return jnp.pad(x, ((0, 0), (low[0], high[0]), (low[1], high[1]), (0, 0)))


DEPTHWISE_IMPLS: dict[str, Callable[[Array, Array], Array]] = {"conv": depthwise_conv, "shifts": depthwise_shifts}
# What `auto` chooses: on the CPU the faster one in a training step (docs/measurements.md); not measured elsewhere.
AUTO_CHOICE = {"cpu": "shifts", "gpu": "conv", "tpu": "conv"}


def depthwise(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "k k 1 channels"], implementation: str
) -> Float[Array, "batch height width channels"]:
    """Convolve by `implementation`: "conv", "shifts", or "auto" for the faster one on the backend."""
    return DEPTHWISE_IMPLS[AUTO_CHOICE.get(backend(), "conv") if implementation == "auto" else implementation](
        x, kernel
    )
