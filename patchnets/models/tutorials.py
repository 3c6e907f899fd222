"""Networks of tutorials as published; they differ from the papers they are named after.

Five come from the Keras examples "Image classification with modern MLP models" (CIFAR-100: Mixer, FNet, gMLP),
"Image classification with Vision Transformer" (CIFAR-100) and "Image classification with ConvMixer" (CIFAR-10); two
from a blog post that builds an MLP-Mixer in PyTorch and in Keras. Kernels are initialized as in Keras
(glorot_uniform) or PyTorch. GELU is exact. Each docstring lists the differences from the paper.
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from patchnets.models.blocks import apply_blocks
from patchnets.models.convmixer import ConvMixer
from patchnets.models.fnet import dft_basis, fourier
from patchnets.models.layers import GELU, GLOROT, TORCH, DenseOverPatches, Dropout, Init, PatchEmbed, classifier_head
from patchnets.models.mlp_mixer import MlpMixer
from patchnets.models.vit import attend_values, attention_weights

# Published sizes.
MLP_VARIANTS: dict[str, dict[str, Any]] = {"cifar100": dict(patch_size=8, depth=4, hidden_dim=256, dropout_rate=0.2)}
VIT_VARIANTS: dict[str, dict[str, Any]] = {
    "cifar100": dict(
        patch_size=6, depth=8, hidden_dim=64, num_heads=4, mlp_dim=128, dropout_rate=0.1, head_dropout_rate=0.5
    )
}
CONVMIXER_VARIANTS: dict[str, dict[str, Any]] = {"cifar10": dict(patch_size=2, depth=8, hidden_dim=256, kernel_size=5)}
BLOG_PYTORCH_VARIANTS: dict[str, dict[str, Any]] = {
    "imagenet": dict(patch_size=16, depth=1, hidden_dim=512, tokens_mlp_dim=256, channels_mlp_dim=2048)
}
BLOG_KERAS_VARIANTS: dict[str, dict[str, Any]] = {
    "cifar10": dict(patch_size=4, depth=8, hidden_dim=128, tokens_mlp_dim=64, channels_mlp_dim=512)
}

glorot = GLOROT.kernel
gelu = GELU["exact"]


def glorot_flat(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Draw glorot_uniform for a dense layer on flattened patches, as in the examples; a convolution's is smaller."""
    return glorot(key, (math.prod(shape[:-1]), shape[-1]), dtype).reshape(shape)


FLAT = Init(glorot_flat)


def norm(dtype: Any, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)


class KerasMixerBlock(nn.Module):
    """Mixer layer with one LayerNorm shared by both halves, as many hidden units as patches in both MLPs, and dropout
    after each MLP."""

    dropout_rate: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch patches channels"], drop_path_rate: Any = None, *, train: bool
    ) -> Float[Array, "batch patches channels"]:
        del drop_path_rate
        patches, channels = x.shape[1:]
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=glorot)
        over_patches = partial(DenseOverPatches, patches, dtype=self.dtype, kernel_init=glorot)
        shared_norm = norm(self.dtype, "norm")

        y = gelu(over_patches(name="token_expand")(shared_norm(x)))
        x = x + Dropout(self.dropout_rate)(over_patches(name="token_project")(y), train=train)

        y = gelu(dense(patches, name="channel_expand")(shared_norm(x)))  # (batch, patches, patches)
        y = dense(channels, name="channel_project")(y)
        weights = self.variables["params"]
        self.sow("intermediates", "mixing", tuple(weights[f"token_{n}"]["kernel"] for n in ("expand", "project")))
        return x + Dropout(self.dropout_rate)(y, train=train)


class KerasFnetBlock(nn.Module):
    """FNet block with post-norm and Re(FFT2) as in the paper, a hidden layer as wide as x, and dropout after it."""

    dropout_rate: float
    fourier_impl: str
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch patches channels"], drop_path_rate: Any = None, *, train: bool
    ) -> Float[Array, "batch patches channels"]:
        del drop_path_rate
        channels = x.shape[-1]
        dense = partial(nn.Dense, channels, dtype=self.dtype, kernel_init=glorot)
        self.sow("intermediates", "mixing", dft_basis(x.shape[1]))  # (patches, patches): cosines, sines
        x = norm(self.dtype, "mixing_norm")(x + fourier(x, self.fourier_impl))
        y = Dropout(self.dropout_rate)(gelu(dense(name="expand")(x)), train=train)
        return norm(self.dtype, "mlp_norm")(x + dense(name="project")(y))


class KerasGmlpBlock(nn.Module):
    """gMLP block whose skip connection starts after the first LayerNorm; d_ffn is twice the width; dropout after GELU.

    The spatial kernel is initialized like any other, not near zero; its bias is one as in the paper.

    """

    dropout_rate: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch patches channels"], drop_path_rate: Any = None, *, train: bool
    ) -> Float[Array, "batch patches channels"]:
        del drop_path_rate
        patches, channels = x.shape[1:]
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=glorot)
        x = norm(self.dtype, "norm")(x)
        y = Dropout(self.dropout_rate)(gelu(dense(2 * channels, name="expand")(x)), train=train)
        u, v = jnp.split(y, 2, axis=-1)  # (batch, patches, channels) each
        v = norm(self.dtype, "gate_norm")(v)
        ones = nn.initializers.ones_init()
        spatial = DenseOverPatches(patches, dtype=self.dtype, kernel_init=glorot, bias_init=ones, name="spatial")
        v = spatial(v)
        self.sow("intermediates", "mixing", spatial.variables["params"]["kernel"])  # (patches in, patches out)
        return x + dense(channels, name="project")(u * v)


class KerasMlpExample(nn.Module):
    """Base of the three networks of the MLP example: patches, blocks, mean, dropout, head; no final LayerNorm."""

    num_classes: int
    patch_size: int
    depth: int
    hidden_dim: int
    dropout_rate: float
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        patch = (self.patch_size, self.patch_size)
        x = PatchEmbed(self.hidden_dim, patch, dtype=self.dtype, param_init=FLAT, name="stem")(images)
        x = self.add_position(x)  # (batch, patches, channels)
        x = apply_blocks(self, self.make_block(), x, train=train)
        x = x.mean(axis=1)  # (batch, channels)
        x = Dropout(self.dropout_rate)(x, train=train)
        return classifier_head(self, x, GLOROT)

    def make_block(self) -> Any:
        """Return a function that builds a block from its name."""
        raise NotImplementedError

    def add_position(self, x: Float[Array, "batch patches channels"]) -> Float[Array, "batch patches channels"]:
        """Add the position embedding, if the network has one."""
        return x


class KerasMixer(KerasMlpExample):
    """The example's MLP-Mixer: see KerasMixerBlock. 242,788 parameters."""

    def make_block(self) -> Any:
        return partial(KerasMixerBlock, dropout_rate=self.dropout_rate, dtype=self.dtype)


class KerasFnet(KerasMlpExample):
    """The example's FNet: see KerasFnetBlock; with a learned position embedding. 621,924 parameters."""

    fourier_impl: str = "auto"

    def make_block(self) -> Any:
        return partial(KerasFnetBlock, dropout_rate=self.dropout_rate, fourier_impl=self.fourier_impl, dtype=self.dtype)

    def add_position(self, x: Float[Array, "batch patches channels"]) -> Float[Array, "batch patches channels"]:
        return x + self.param("position_embedding", glorot, x.shape[1:], jnp.float32).astype(self.dtype)


class KerasGmlp(KerasMlpExample):
    """The example's gMLP: see KerasGmlpBlock. 885,348 parameters."""

    def make_block(self) -> Any:
        return partial(KerasGmlpBlock, dropout_rate=self.dropout_rate, dtype=self.dtype)


class KerasAttention(nn.Module):
    """Keras's MultiHeadAttention with heads as wide as x each.

    Up to version 3.14, Keras treats two axes of these kernels as those of a convolution when it initializes them, so
    that they are smaller than kernels of dense layers; so are they here.

    """

    num_heads: int
    dropout_rate: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens channels"], *, train: bool
    ) -> Float[Array, "batch tokens channels"]:
        channels, shape = x.shape[-1], (self.num_heads, x.shape[-1])
        zeros = nn.initializers.zeros_init()

        def project(name: str) -> Array:
            kernel = self.param(f"{name}_kernel", glorot, (channels, *shape), jnp.float32)
            bias = self.param(f"{name}_bias", zeros, shape, jnp.float32)
            return jnp.einsum("bnc,chd->bnhd", x, kernel.astype(self.dtype)) + bias.astype(self.dtype)

        query, key, value = project("query"), project("key"), project("value")  # (batch, tokens, heads, channels)
        weights = attention_weights(query, key)  # (batch, heads, tokens, tokens)
        self.sow("intermediates", "mixing", weights)
        weights = Dropout(self.dropout_rate)(weights, train=train)
        mixed = attend_values(weights, value)  # (batch, tokens, heads, channels)
        kernel = self.param("out_kernel", glorot, (*shape, channels), jnp.float32)
        bias = self.param("out_bias", zeros, (channels,), jnp.float32)
        return jnp.einsum("bnhd,hdc->bnc", mixed, kernel.astype(self.dtype)) + bias.astype(self.dtype)


class KerasVitBlock(nn.Module):
    """Encoder block with pre-norm as in the paper, and GELU and dropout after both dense layers of the MLP."""

    num_heads: int
    mlp_dim: int
    dropout_rate: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens channels"], drop_path_rate: Any = None, *, train: bool
    ) -> Float[Array, "batch tokens channels"]:
        del drop_path_rate
        y = norm(self.dtype, "attention_norm")(x)
        x = x + KerasAttention(self.num_heads, self.dropout_rate, self.dtype, name="attention")(y, train=train)
        y = norm(self.dtype, "mlp_norm")(x)
        for name, units in (("expand", self.mlp_dim), ("project", x.shape[-1])):
            y = gelu(nn.Dense(units, dtype=self.dtype, kernel_init=glorot, name=name)(y))
            y = Dropout(self.dropout_rate)(y, train=train)
        return x + y


class KerasVit(nn.Module):
    """The example's Vision Transformer. 21,759,012 parameters, nine tenths of them in the head.

    There is no class token: tokens are concatenated, and two dense layers of 2048 and 1024 units, with GELU and
    dropout, precede the head. The position embedding is initialized uniformly in [-0.05, 0.05].

    """

    num_classes: int
    patch_size: int
    depth: int
    hidden_dim: int
    num_heads: int
    mlp_dim: int
    dropout_rate: float
    head_dropout_rate: float
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        patch = (self.patch_size, self.patch_size)
        x = PatchEmbed(self.hidden_dim, patch, dtype=self.dtype, param_init=FLAT, name="stem")(images)

        def start(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            return jax.random.uniform(key, shape, dtype, -0.05, 0.05)

        x = x + self.param("position_embedding", start, x.shape[1:], jnp.float32).astype(self.dtype)
        block = partial(
            KerasVitBlock,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
        )
        x = apply_blocks(self, block, x, train=train)  # (batch, patches, channels)
        x = norm(self.dtype, "pre_head_layer_norm")(x)
        x = x.reshape(x.shape[0], -1)  # (batch, patches * channels)
        x = Dropout(self.head_dropout_rate)(x, train=train)
        for i, units in enumerate((2048, 1024)):
            x = gelu(nn.Dense(units, dtype=self.dtype, kernel_init=glorot, name=f"head_hidden_{i}")(x))
            x = Dropout(self.head_dropout_rate)(x, train=train)
        return classifier_head(self, x, GLOROT)


class KerasConvMixer(ConvMixer):
    """The example's ConvMixer-256/8: the paper's network with Keras's BatchNorm and initialization.

    594,186 trainable parameters, and 8,704 running statistics.
    """

    batch_norm_epsilon: float = 1e-3
    batch_norm_momentum: float = 0.99
    param_init: Init = GLOROT


class BlogMixerPytorch(MlpMixer):
    """The blog's Mixer in PyTorch: the paper's network with PyTorch's LayerNorm, GELU and initialization.

    3,110,316 parameters at its depth of 1.
    """

    norm_epsilon: float = 1e-5
    gelu: str = "exact"
    param_init: Init = TORCH
    head_init: Init = TORCH


class BlogMixerKerasBlock(nn.Module):
    """Mixer layer whose LayerNorms normalize each channel over the patches (axis 1), not each patch over channels."""

    tokens_mlp_dim: int
    channels_mlp_dim: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch patches channels"], drop_path_rate: Any = None, *, train: bool
    ) -> Float[Array, "batch patches channels"]:
        del drop_path_rate, train
        patches, channels = x.shape[1:]
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=glorot)
        over_patches = partial(DenseOverPatches, dtype=self.dtype, kernel_init=glorot)

        def norm_patches(y: Array, name: str) -> Array:
            # LayerNorm works on the last axis: (batch, channels, patches) in between.
            return nn.LayerNorm(epsilon=1e-3, dtype=self.dtype, name=name)(y.swapaxes(1, 2)).swapaxes(1, 2)

        y = gelu(over_patches(self.tokens_mlp_dim, name="token_expand")(norm_patches(x, "token_norm")))
        x = x + over_patches(patches, name="token_project")(y)

        y = gelu(dense(self.channels_mlp_dim, name="channel_expand")(norm_patches(x, "channel_norm")))
        weights = self.variables["params"]
        self.sow("intermediates", "mixing", tuple(weights[f"token_{n}"]["kernel"] for n in ("expand", "project")))
        return x + dense(channels, name="channel_project")(y)


class BlogMixerKeras(nn.Module):
    """The blog's Mixer in Keras, which concatenates and normalizes all patches before the head.

    1,226,890 parameters.
    """

    num_classes: int
    patch_size: int
    depth: int
    hidden_dim: int
    tokens_mlp_dim: int
    channels_mlp_dim: int
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        patch = (self.patch_size, self.patch_size)
        x = PatchEmbed(self.hidden_dim, patch, dtype=self.dtype, param_init=GLOROT, name="stem")(images)
        block = partial(
            BlogMixerKerasBlock,
            tokens_mlp_dim=self.tokens_mlp_dim,
            channels_mlp_dim=self.channels_mlp_dim,
            dtype=self.dtype,
        )
        x = apply_blocks(self, block, x, train=train)  # (batch, patches, channels)
        x = x.reshape(x.shape[0], -1)  # (batch, patches * channels)
        x = nn.LayerNorm(epsilon=1e-3, dtype=self.dtype, name="pre_head_layer_norm")(x)
        return classifier_head(self, x, GLOROT)
