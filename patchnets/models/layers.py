"""What two or more architectures share: patch embedding, the MLP of a block, stochastic depth."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

Dtype = Any
Initializer = Callable[..., Array]

GELU: dict[str, Callable[[Array], Array]] = {
    "tanh": lambda x: nn.gelu(x, approximate=True),
    "exact": lambda x: nn.gelu(x, approximate=False),
}


class PatchEmbed(nn.Module):
    """Cuts images into non-overlapping patches and projects each one linearly (ViT, arXiv 2010.11929, equation 1).

    The same numbers as a convolution whose stride is its kernel, with the kernel kept in that layout, (height, width,
    channels, features); written as one matrix product, which is several times faster on a CPU and equal elsewhere.
    """

    features: int
    patch_size: tuple[int, int]
    dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch patches features"]:
        batch, height, width, channels = images.shape
        p, q = self.patch_size
        if height % p or width % q:
            raise ValueError(f"an image of {height} x {width} pixels does not divide into patches of {p} x {q}")
        kernel = self.param("kernel", self.kernel_init, (p, q, channels, self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        x = images.astype(self.dtype).reshape(batch, height // p, p, width // q, q, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, (height // p) * (width // q), p * q * channels)
        x = x @ kernel.reshape(-1, self.features).astype(self.dtype) + bias.astype(self.dtype)
        self.sow("intermediates", "patches", x)
        return x


def dropout_mask(key: Array, keep: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """True with probability `keep`, for each element apart: a hash of its index and the key.

    Two rounds of a 32-bit integer hash, each mixed with half of a key that threefry made. That is random enough for a
    mask, a pure function of (key, index) on any number of devices, and nearly free, where drawing the mask itself from
    threefry takes as long as a Mixer's matrix products do on a CPU.
    """
    seeds = jax.random.bits(key, (2,), jnp.uint32)
    index = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return _hash(_hash(index ^ seeds[0]) + seeds[1]) < jnp.uint32(min(round(keep * 2**32), 2**32 - 1))


def _hash(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A bijection of 32-bit integers in which every bit of the result hangs on every bit of `x`.

    The constants are those of the least biased function found in C. Wellons, "Prospecting for hash functions", 2018.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


class Dropout(nn.Module):
    """Sets elements to zero with probability `rate` in training, and divides the others by 1 - rate."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, train: bool) -> Float[Array, "..."]:
        if self.rate == 0.0 or not train:
            return x
        keep = 1.0 - self.rate
        return jnp.where(dropout_mask(self.make_rng("dropout"), keep, x.shape), x / keep, jnp.zeros_like(x))


class MlpBlock(nn.Module):
    """dense -> GELU -> dense over the last axis, with dropout after each (ViT, arXiv 2010.11929, section 3.1)."""

    hidden_dim: int
    gelu: str = "tanh"
    dropout_rate: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"], *, train: bool) -> Float[Array, "*batch features"]:
        features = x.shape[-1]
        x = nn.Dense(self.hidden_dim, dtype=self.dtype)(x)
        x = GELU[self.gelu](x)
        x = Dropout(self.dropout_rate)(x, train=train)
        x = nn.Dense(features, dtype=self.dtype)(x)
        return Dropout(self.dropout_rate)(x, train=train)


class StochasticDepth(nn.Module):
    """Drops a residual branch for whole examples with probability `rate` (arXiv 1603.09382), and divides what is
    kept by 1 - rate, so that nothing changes in evaluation."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "batch ..."], *, train: bool) -> Float[Array, "batch ..."]:
        if self.rate == 0.0 or not train:
            return x
        keep = 1.0 - self.rate
        mask = jax.random.bernoulli(self.make_rng("dropout"), keep, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(mask, x / keep, jnp.zeros_like(x))
