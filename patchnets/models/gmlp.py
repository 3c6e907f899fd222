"""gMLP: MLPs with a spatial gating unit instead of attention (Liu et al. 2021, arXiv 2105.08050)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from patchnets.models.blocks import apply_blocks
from patchnets.models.layers import GELU, ZERO, DropPath, PatchEmbed, classifier_head, mix_patches

# Table 1: depth, model width d, d_ffn (before the split), survival probability of stochastic depth.
VARIANTS: dict[str, dict[str, Any]] = {
    "Ti/16": dict(patch_size=16, depth=30, hidden_dim=128, ffn_dim=768, survival_probability=1.0),
    "S/16": dict(patch_size=16, depth=30, hidden_dim=256, ffn_dim=1536, survival_probability=0.95),
    "B/16": dict(patch_size=16, depth=30, hidden_dim=512, ffn_dim=3072, survival_probability=0.8),
}


class SpatialGatingUnit(nn.Module):
    """u * (W norm(v) + b), where u is the first half of the channels, v the second, and W mixes patches (section 2.1).

    W starts near zero and b at one, so the unit starts as u and every block as a plain feed-forward network.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch patches channels"]) -> Float[Array, "batch patches half"]:
        patches = x.shape[1]
        u, v = jnp.split(x, 2, axis=-1)  # (batch, patches, channels / 2) each
        v = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(v)
        kernel = self.param("kernel", nn.initializers.normal(1e-6), (patches, patches), jnp.float32)
        bias = self.param("bias", nn.initializers.ones_init(), (patches,), jnp.float32)
        self.sow("intermediates", "mixing", kernel)  # (patches in, patches out)
        v = mix_patches(v, kernel.astype(self.dtype)) + bias[:, None].astype(self.dtype)
        return u * v


class GmlpBlock(nn.Module):
    """norm -> dense -> GELU -> spatial gating unit -> dense, and a skip connection (figure 1)."""

    ffn_dim: int
    gelu: str = "exact"
    dtype: Any = jnp.float32
    drop_path_scale_by_keep: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch patches channels"], drop_path_rate: Any = None, *, train: bool
    ) -> Float[Array, "batch patches channels"]:
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        y = nn.Dense(self.ffn_dim, dtype=self.dtype, name="expand")(y)  # (batch, patches, d_ffn)
        y = GELU[self.gelu](y)
        y = SpatialGatingUnit(dtype=self.dtype, name="spatial_gating")(y)  # (batch, patches, d_ffn / 2)
        y = nn.Dense(x.shape[-1], dtype=self.dtype, name="project")(y)
        return x + DropPath(self.drop_path_scale_by_keep)(y, drop_path_rate, train=train)


class Gmlp(nn.Module):
    """Patch embedding, gMLP blocks, LayerNorm, mean over patches, linear head (section 3).

    There is no position embedding, because spatial projections depend on position. `ffn_dim` must be even.
    """

    num_classes: int
    patch_size: int
    depth: int
    hidden_dim: int
    ffn_dim: int
    survival_probability: float = 1.0
    drop_path_schedule: str = "linear"
    drop_path_scale_by_keep: bool = True
    gelu: str = "exact"
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        x = PatchEmbed(self.hidden_dim, (self.patch_size, self.patch_size), dtype=self.dtype, name="stem")(images)
        block = partial(
            GmlpBlock,
            ffn_dim=self.ffn_dim,
            gelu=self.gelu,
            dtype=self.dtype,
            drop_path_scale_by_keep=self.drop_path_scale_by_keep,
        )
        # (batch, patches, channels); the probability of survival falls linearly from 1 (arXiv 1603.09382)
        x = apply_blocks(self, block, x, 1.0 - self.survival_probability, self.drop_path_schedule, train=train)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="pre_head_layer_norm")(x)
        x = x.mean(axis=1)  # (batch, channels)
        return classifier_head(self, x, ZERO)
