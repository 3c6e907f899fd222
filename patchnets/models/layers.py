"""What two or more architectures share: patch embedding, the MLP of a block, stochastic depth."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
        return x @ kernel.reshape(-1, self.features).astype(self.dtype) + bias.astype(self.dtype)


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
        x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
        x = nn.Dense(features, dtype=self.dtype)(x)
        return nn.Dropout(self.dropout_rate)(x, deterministic=not train)


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
