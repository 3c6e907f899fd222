"""Layers that several architectures share: patch embedding, MLP, dropout, stochastic depth; initializers."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from patchnets.parallel.backend import backend

Dtype = Any
Initializer = Callable[..., Array]


class Init(NamedTuple):
    """Initializers of a dense layer or convolution: the kernel's, and the bias's given the fan-in."""

    kernel: Initializer
    bias: Callable[[int], Initializer] = lambda fan_in: nn.initializers.zeros_init()

    def dense(self, fan_in: int) -> dict[str, Any]:
        """Return the initializer arguments of a flax layer with `fan_in` inputs per unit."""
        return dict(kernel_init=self.kernel, bias_init=self.bias(fan_in))


def _within_root(fan_in: int) -> Initializer:
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


LECUN = Init(nn.initializers.lecun_normal())  # flax's default, used by the authors' Mixer
XAVIER = Init(nn.initializers.xavier_uniform(), lambda fan_in: nn.initializers.normal(1e-6))  # the authors' ViT
GLOROT = Init(nn.initializers.glorot_uniform())  # Keras's default
TORCH = Init(nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), _within_root)  # PyTorch's default
ZERO = Init(nn.initializers.zeros_init())


@jax.custom_vjp
def gelu_exact(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Compute exact GELU: x P(X <= x) for a standard normal X (arXiv 1606.08415, section 2), in float32.

    Uses the error function and a custom gradient; jax.nn.gelu uses the complementary error function, with branches.
    On a CPU this takes half the time in training and a quarter in evaluation (docs/benchmarks.md), and agrees to 5e-7.
    It has no forward-mode derivative (jax.jvp). Returns the dtype of `x`.

    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_backward(x: Array, grad: Array) -> tuple[Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    return ((grad * (_normal_cdf(wide) + wide * density)).astype(x.dtype),)


gelu_exact.defvjp(lambda x: (gelu_exact(x), x), _gelu_backward)

GELU: dict[str, Callable[[Array], Array]] = {"tanh": lambda x: nn.gelu(x, approximate=True), "exact": gelu_exact}


class PatchEmbed(nn.Module):
    """Linear projection of non-overlapping image patches (ViT, arXiv 2010.11929, equation 1).

    Computes the same as a convolution whose stride equals its kernel size, and keeps the kernel in that layout,
    (height, width, channels, features). It is written as one matrix product, which is several times faster on a CPU.

    Raises:
      ValueError: the image size is not divisible by the patch size.

    """

    features: int
    patch_size: tuple[int, int]
    dtype: Dtype = jnp.float32
    param_init: Init = LECUN

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch patches features"]:
        batch, height, width, channels = images.shape
        p, q = self.patch_size
        if height % p or width % q:
            raise ValueError(f"image size {height} x {width} is not divisible by patch size {p} x {q}")
        kernel = self.param("kernel", self.param_init.kernel, (p, q, channels, self.features), jnp.float32)
        bias = self.param("bias", self.param_init.bias(p * q * channels), (self.features,), jnp.float32)
        x = images.astype(self.dtype).reshape(batch, height // p, p, width // q, q, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, (height // p) * (width // q), p * q * channels)
        x = x @ kernel.reshape(-1, self.features).astype(self.dtype) + bias.astype(self.dtype)
        self.sow("intermediates", "patches", x)
        return x


def classifier_head(network: Any, x: Float[Array, "batch channels"], param_init: Init) -> Float[Array, "batch classes"]:
    """Apply the linear head of `network` and return float32 logits. Call it from the compact method of a network.

    A network of 0 classes has no head: it returns the input of the head, as in timm.
    """
    network.sow("intermediates", "pre_logits", x)
    if network.num_classes == 0:
        return x.astype(jnp.float32)
    head = nn.Dense(network.num_classes, dtype=jnp.float32, **param_init.dense(x.shape[-1]), name="head")
    return head(x.astype(jnp.float32))


def dropout_mask(key: Array, keep: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Return a mask of `shape` whose elements are independently True with probability `keep`.

    Hashes the index of each element with two rounds of a 32-bit integer hash, each mixed with half of a threefry key.
    That is random enough for a mask, a pure function of (key, index) on any number of devices, and nearly free;
    drawing the mask from threefry would take as long as a Mixer's matrix products on a CPU.

    """
    seeds = jax.random.bits(key, (2,), jnp.uint32)
    index = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return _hash(_hash(index ^ seeds[0]) + seeds[1]) < jnp.uint32(min(round(keep * 2**32), 2**32 - 1))


def _hash(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Hash 32-bit integers bijectively; every bit of the result depends on every bit of `x`.

    The constants are those of the least biased function found in C. Wellons, "Prospecting for hash functions", 2018.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


class Dropout(nn.Module):
    """Dropout: zero elements with probability `rate` in training, and divide the others by 1 - rate."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, train: bool) -> Float[Array, "..."]:
        if self.rate == 0.0 or not train:
            return x
        keep = 1.0 - self.rate
        return jnp.where(dropout_mask(self.make_rng("dropout"), keep, x.shape), x / keep, jnp.zeros_like(x))


def mix_patches(
    x: Float[Array, "batch patches channels"], kernel: Float[Array, "patches new"]
) -> Float[Array, "batch new channels"]:
    """Return new patches, each a weighted sum of all patches, channel by channel.

    On a CPU this is one small product W^T X per example, which keeps the memory layout of the channels. Swapping axes
    instead costs copies that take as long as the product.

    """
    if backend() != "cpu":
        return jnp.einsum("bnc,nm->bmc", x, kernel)
    patches, new = kernel.shape
    # The barrier keeps XLA from merging them into one product, which brings the copies back.
    each = jax.lax.optimization_barrier(jnp.broadcast_to(kernel.T, (x.shape[0], new, patches)))
    return each @ x


class DenseOverPatches(nn.Module):
    """Dense layer over the patches, shared by all channels: nn.Dense with axes swapped before and after, with the
    same parameters."""

    features: int
    dtype: Dtype = jnp.float32
    kernel_init: Initializer = LECUN.kernel
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Float[Array, "batch patches channels"]) -> Float[Array, "batch features channels"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return mix_patches(x.astype(self.dtype), kernel.astype(self.dtype)) + bias[:, None].astype(self.dtype)


class MlpBlock(nn.Module):
    """dense -> GELU -> dense, with dropout after each (ViT, arXiv 2010.11929, section 3.1).

    It works over the channels, or over the patches for token mixing (MLP-Mixer, arXiv 2105.01601, equation 1).
    """

    hidden_dim: int
    gelu: str = "tanh"
    dropout_rate: float = 0.0
    dtype: Dtype = jnp.float32
    param_init: Init = LECUN
    over_patches: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"], *, train: bool) -> Float[Array, "*batch channels"]:
        dense, features = (DenseOverPatches, x.shape[-2]) if self.over_patches else (nn.Dense, x.shape[-1])
        x = dense(self.hidden_dim, dtype=self.dtype, **self.param_init.dense(features), name="Dense_0")(x)
        x = GELU[self.gelu](x)
        x = Dropout(self.dropout_rate)(x, train=train)
        x = dense(features, dtype=self.dtype, **self.param_init.dense(self.hidden_dim), name="Dense_1")(x)
        return Dropout(self.dropout_rate)(x, train=train)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382).

    Drop a residual branch for whole examples with probability `rate` in training; a rate of None disables it. With
    `scale_by_keep` (timm's rule) a branch that is kept is divided by 1 - rate, so that its expectation is the branch,
    as in evaluation. Without it the branch is not scaled, as in the Mixer authors' code (google-research/big_vision,
    models/mlp_mixer.py).
    """

    scale_by_keep: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch ..."], rate: float | Float[Array, ""] | None, *, train: bool
    ) -> Float[Array, "batch ..."]:
        if rate is None or not train:
            return x
        mask = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
        kept = x / jnp.asarray(1.0 - rate, x.dtype) if self.scale_by_keep else x
        return jnp.where(mask, kept, jnp.zeros_like(x))
