"""ConvMixer: depthwise convolutions mix patches, pointwise ones channels (Trockman & Kolter 2022, arXiv 2201.09792)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from patchnets.models.blocks import apply_blocks
from patchnets.models.layers import GELU, TORCH, Init, PatchEmbed, classifier_head
from patchnets.models.ops import depthwise
from patchnets.parallel.sharding import sum_over_devices

# Width h / depth d with kernel size k and patch size p: tables 1 and 3, and the authors' repository. The last ones are
# for CIFAR at 32 px: width / depth, then kernel and patch where the paper tries several (appendix A).
VARIANTS: dict[str, dict[str, Any]] = {
    "1536/20": dict(patch_size=7, depth=20, hidden_dim=1536, kernel_size=9),
    "768/32": dict(patch_size=7, depth=32, hidden_dim=768, kernel_size=7, activation="relu"),
    "1024/20": dict(patch_size=14, depth=20, hidden_dim=1024, kernel_size=9),
    "1024/12": dict(patch_size=7, depth=12, hidden_dim=1024, kernel_size=8),
    "512/16": dict(patch_size=7, depth=16, hidden_dim=512, kernel_size=8),
    "256/8-k5-p1": dict(patch_size=1, depth=8, hidden_dim=256, kernel_size=5),
    "256/8-k5-p2": dict(patch_size=2, depth=8, hidden_dim=256, kernel_size=5),
    "256/8-k9-p1": dict(patch_size=1, depth=8, hidden_dim=256, kernel_size=9),
    "256/8-k9-p2": dict(patch_size=2, depth=8, hidden_dim=256, kernel_size=9),
    "256/16": dict(patch_size=1, depth=16, hidden_dim=256, kernel_size=9),
}
ACTIVATIONS = ("gelu", "relu")  # GELU in the form that the field `gelu` names


class BatchNorm(nn.Module):
    """Batch normalization: (x - mean) / sqrt(variance + epsilon) per channel, scaled and shifted (arXiv 1502.03167).

    In training, mean and variance are taken over all positions of the examples with a `mask` of 1, on all devices.
    Evaluation uses the running statistics. Each step keeps the share `momentum` of them, or all of them if every
    example is masked. Statistics are float32. The variance is the mean squared deviation; PyTorch's running variance
    divides by n - 1 instead.

    """

    epsilon: float
    momentum: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch rows columns channels"], mask: Float[Array, " batch"] | None, *, train: bool
    ) -> Float[Array, "batch rows columns channels"]:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones_init(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        mean, var = running_mean.value, running_var.value
        if train:
            weight = jnp.ones((x.shape[0],)) if mask is None else mask
            examples = sum_over_devices(weight.sum())
            any_valid = examples > 0
            weight = (weight / (jnp.maximum(examples, 1) * x.shape[1] * x.shape[2]))[:, None, None, None]
            mean = sum_over_devices((weight * x.astype(jnp.float32)).sum((0, 1, 2)))
            var = sum_over_devices((weight * jnp.square(x.astype(jnp.float32) - mean)).sum((0, 1, 2)))
            if not self.is_initializing():
                kept, taken = jnp.where(any_valid, self.momentum, 1.0), jnp.where(any_valid, 1 - self.momentum, 0.0)
                running_mean.value = kept * running_mean.value + taken * mean
                running_var.value = kept * running_var.value + taken * var
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return (x * factor + (bias - mean * factor)).astype(self.dtype)


class ActivationNorm(nn.Module):
    """Activation, then BatchNorm (section 2)."""

    activation: str
    gelu: str
    epsilon: float
    momentum: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch rows columns channels"], mask: Float[Array, " batch"] | None, *, train: bool
    ) -> Float[Array, "batch rows columns channels"]:
        x = GELU[self.gelu](x) if self.activation == "gelu" else nn.relu(x)
        return BatchNorm(self.epsilon, self.momentum, self.dtype, name="norm")(x, mask, train=train)


class DepthwiseConv(nn.Module):
    """Depthwise convolution: one kernel per channel, with the size of the image unchanged."""

    kernel_size: int
    depthwise_impl: str = "auto"
    dtype: Any = jnp.float32
    param_init: Init = TORCH

    @nn.compact
    def __call__(self, x: Float[Array, "batch rows columns channels"]) -> Float[Array, "batch rows columns channels"]:
        k, channels = self.kernel_size, x.shape[-1]
        kernel = self.param("kernel", self.param_init.kernel, (k, k, 1, channels), jnp.float32)
        bias = self.param("bias", self.param_init.bias(k * k), (channels,), jnp.float32)
        self.sow("intermediates", "mixing", kernel[:, :, 0])  # (k, k, channels)
        return depthwise(x.astype(self.dtype), kernel.astype(self.dtype), self.depthwise_impl) + bias.astype(self.dtype)


class ConvMixerBlock(nn.Module):
    """z' = BN(sigma(depthwise(z))) + z, then BN(sigma(pointwise(z'))) (equations 2 and 3)."""

    kernel_size: int
    depthwise_impl: str
    norm: Any  # makes an ActivationNorm
    dtype: Any = jnp.float32
    param_init: Init = TORCH

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch rows columns channels"],
        drop_path_rate: Any = None,
        *,
        train: bool,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch rows columns channels"]:
        del drop_path_rate  # the paper has no stochastic depth
        channels = x.shape[-1]
        common = dict(dtype=self.dtype, param_init=self.param_init)
        y = DepthwiseConv(self.kernel_size, self.depthwise_impl, **common, name="depthwise")(x)
        x = x + self.norm(name="depthwise_norm")(y, mask, train=train)
        # A convolution of kernel size 1 is a dense layer over the channels of every position.
        x = nn.Dense(channels, dtype=self.dtype, **self.param_init.dense(channels), name="pointwise")(x)
        return self.norm(name="pointwise_norm")(x, mask, train=train)


class ConvMixer(nn.Module):
    """Patch embedding, ConvMixer blocks, mean over positions, linear head (figure 2).

    BatchNorm's running statistics are in the collection `batch_stats`; `batch_norm_momentum` is the share of them kept
    at each step. Examples with a `mask` of 0, which pad a batch, do not count in the statistics. `depthwise_impl`
    selects the implementation of the depthwise convolution: conv, shifts (sums of shifted products), or auto (the
    faster one on the backend).

    """

    num_classes: int
    patch_size: int
    depth: int
    hidden_dim: int
    kernel_size: int
    activation: str = "gelu"
    gelu: str = "exact"
    batch_norm_epsilon: float = 1e-5
    batch_norm_momentum: float = 0.9
    depthwise_impl: str = "auto"
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32
    param_init: Init = TORCH

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        *,
        train: bool,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        common = dict(dtype=self.dtype, param_init=self.param_init)
        norm = partial(
            ActivationNorm,
            activation=self.activation,
            gelu=self.gelu,
            epsilon=self.batch_norm_epsilon,
            momentum=self.batch_norm_momentum,
            dtype=self.dtype,
        )
        p = self.patch_size
        x = PatchEmbed(self.hidden_dim, (p, p), **common, name="stem")(images)
        x = x.reshape(x.shape[0], images.shape[1] // p, images.shape[2] // p, self.hidden_dim)
        x = norm(name="stem_norm")(x, mask, train=train)
        block = partial(
            ConvMixerBlock, kernel_size=self.kernel_size, depthwise_impl=self.depthwise_impl, norm=norm, **common
        )
        x = apply_blocks(self, block, x, train=train, mask=mask)  # (batch, rows, columns, channels)
        x = x.mean(axis=(1, 2))  # (batch, channels)
        return classifier_head(self, x, self.param_init)
