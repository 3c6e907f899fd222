"""What two or more architectures share: initialization, patch embedding, a block's MLP, dropout, stochastic depth."""

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
    """How a dense layer or a convolution starts: its kernel, and its bias given the number of inputs of a unit."""

    kernel: Initializer
    bias: Callable[[int], Initializer] = lambda fan_in: nn.initializers.zeros_init()

    def dense(self, fan_in: int) -> dict[str, Any]:
        """The arguments of a flax layer whose units have `fan_in` inputs."""
        return dict(kernel_init=self.kernel, bias_init=self.bias(fan_in))


def _within_root(fan_in: int) -> Initializer:
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


LECUN = Init(nn.initializers.lecun_normal())  # flax's default, and so that of the authors' Mixer
XAVIER = Init(nn.initializers.xavier_uniform(), lambda fan_in: nn.initializers.normal(1e-6))  # the authors' ViT
GLOROT = Init(nn.initializers.glorot_uniform())  # Keras's default
TORCH = Init(nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), _within_root)  # PyTorch's default
ZERO = Init(nn.initializers.zeros_init())


@jax.custom_vjp
def gelu_exact(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x P(X <= x) for a standard normal X (arXiv 1606.08415, section 2), in float32 whatever the type of `x`.

    By the error function and with its gradient written out, where JAX's own takes the complementary one, branches and
    all: half the time in training on a CPU, a quarter in evaluation, and equal to 5e-7. It has no
    forward-mode derivative (jax.jvp).
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
    """Cuts images into non-overlapping patches and projects each one linearly (ViT, arXiv 2010.11929, equation 1).

    The same numbers as a convolution whose stride is its kernel, with the kernel kept in that layout, (height, width,
    channels, features); written as one matrix product, which is several times faster on a CPU and equal elsewhere.
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
            raise ValueError(f"an image of {height} x {width} pixels does not divide into patches of {p} x {q}")
        kernel = self.param("kernel", self.param_init.kernel, (p, q, channels, self.features), jnp.float32)
        bias = self.param("bias", self.param_init.bias(p * q * channels), (self.features,), jnp.float32)
        x = images.astype(self.dtype).reshape(batch, height // p, p, width // q, q, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, (height // p) * (width // q), p * q * channels)
        x = x @ kernel.reshape(-1, self.features).astype(self.dtype) + bias.astype(self.dtype)
        self.sow("intermediates", "patches", x)
        return x


def classifier_head(network: Any, x: Float[Array, "batch channels"], param_init: Init) -> Float[Array, "batch classes"]:
    """The linear head of `network`, called from its compact method: logits in float32, whatever came before."""
    network.sow("intermediates", "pre_logits", x)
    head = nn.Dense(network.num_classes, dtype=jnp.float32, **param_init.dense(x.shape[-1]), name="head")
    return head(x.astype(jnp.float32))


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


def mix_patches(
    x: Float[Array, "batch patches channels"], kernel: Float[Array, "patches new"]
) -> Float[Array, "batch new channels"]:
    """Each new patch a weighted sum of all patches, channel by channel.

    On a CPU as one small product for each example, W^T X, which reads and writes the channels in the order in which
    they lie: with the axes exchanged instead, the copies take as long as the product.
    """
    if backend() != "cpu":
        return jnp.einsum("bnc,nm->bmc", x, kernel)
    patches, new = kernel.shape
    # The barrier keeps XLA from making one product of them all, which brings the copies back.
    each = jax.lax.optimization_barrier(jnp.broadcast_to(kernel.T, (x.shape[0], new, patches)))
    return each @ x


class DenseOverPatches(nn.Module):
    """A dense layer over the patches, the same for every channel: nn.Dense with the axes exchanged before and after,
    and the parameters of that."""

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

    Over the channels, or over the patches as in token mixing (MLP-Mixer, arXiv 2105.01601, equation 1).
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
    """Drops a residual branch for whole examples with probability `rate` in training (stochastic depth, arXiv
    1603.09382). A rate of None is none at all.

    With `scale_by_keep` what is kept is divided by 1 - rate, so that its expectation is the branch itself, as in
    evaluation (timm's rule). Without, it is added as it is, in training and in evaluation: the rule of the Mixer
    authors' own code (google-research/big_vision, models/mlp_mixer.py).
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
