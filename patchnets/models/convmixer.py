"""ConvMixer: patches mixed by depthwise and pointwise convolutions (Trockman & Kolter 2022, arXiv 2201.09792)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from patchnets.models.blocks import row_of_blocks
from patchnets.models.depthwise import DEPTHWISE, FASTER
from patchnets.models.layers import GELU, TORCH, Init, PatchEmbed

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


class ActivationNorm(nn.Module):
    """sigma, then BatchNorm: the activation comes before the normalisation (section 2).

    The batch's mean and variance are those of the whole batch, on however many devices it lies: arrays are global, so
    statistics are synchronised without being told to.
    """

    activation: str
    gelu: str
    epsilon: float
    momentum: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch rows columns channels"], *, train: bool
    ) -> Float[Array, "batch rows columns channels"]:
        x = GELU[self.gelu](x) if self.activation == "gelu" else nn.relu(x)
        return nn.BatchNorm(
            use_running_average=not train, epsilon=self.epsilon, momentum=self.momentum, dtype=self.dtype, name="norm"
        )(x)


class DepthwiseConv(nn.Module):
    """A kernel of its own for every channel; the image keeps its size."""

    kernel_size: int
    depthwise: str = "auto"
    dtype: Any = jnp.float32
    init_with: Init = TORCH

    @nn.compact
    def __call__(self, x: Float[Array, "batch rows columns channels"]) -> Float[Array, "batch rows columns channels"]:
        k, channels = self.kernel_size, x.shape[-1]
        how = FASTER.get(jax.default_backend(), "conv") if self.depthwise == "auto" else self.depthwise
        kernel = self.param("kernel", self.init_with.kernel, (k, k, 1, channels), jnp.float32)
        bias = self.param("bias", self.init_with.bias(k * k), (channels,), jnp.float32)
        self.sow("intermediates", "mixing", kernel[:, :, 0])  # (k, k, channels)
        return DEPTHWISE[how](x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class ConvMixerBlock(nn.Module):
    """z' = BN(sigma(depthwise(z))) + z, then BN(sigma(pointwise(z'))) (equations 2 and 3)."""

    kernel_size: int
    depthwise: str
    norm: Any  # makes an ActivationNorm
    dtype: Any = jnp.float32
    init_with: Init = TORCH

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch rows columns channels"], drop_rate: Any = None, *, train: bool
    ) -> Float[Array, "batch rows columns channels"]:
        del drop_rate  # the paper has no stochastic depth
        channels = x.shape[-1]
        common = dict(dtype=self.dtype, init_with=self.init_with)
        y = DepthwiseConv(self.kernel_size, self.depthwise, **common, name="depthwise")(x)
        x = x + self.norm(name="depthwise_norm")(y, train=train)
        # A convolution of kernel size 1 is a dense layer over the channels of every place.
        x = nn.Dense(channels, dtype=self.dtype, **self.init_with.dense(channels), name="pointwise")(x)
        return self.norm(name="pointwise_norm")(x, train=train)


class ConvMixer(nn.Module):
    """Patch embedding, ConvMixer blocks, mean over places, linear head (figure 2).

    BatchNorm's running statistics are in the collection `batch_stats`; `batch_norm_momentum` is the share of them that
    stays at each step. `depthwise` chooses how the depthwise convolution is computed: conv, shifts (sums of shifted
    products), or auto, the platform's faster.
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
    depthwise: str = "auto"
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32
    init_with: Init = TORCH

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width colors"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        common = dict(dtype=self.dtype, init_with=self.init_with)
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
        x = norm(name="stem_norm")(x, train=train)
        block = partial(ConvMixerBlock, kernel_size=self.kernel_size, depthwise=self.depthwise, norm=norm, **common)
        x = row_of_blocks(self, block, x, train=train)  # (batch, rows, columns, channels)
        x = x.mean(axis=(1, 2))  # (batch, channels)
        self.sow("intermediates", "pre_logits", x)
        head = nn.Dense(self.num_classes, dtype=jnp.float32, **self.init_with.dense(self.hidden_dim), name="head")
        return head(x.astype(jnp.float32))
