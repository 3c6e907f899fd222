"""MLP-Mixer: an all-MLP architecture for vision (Tolstikhin et al. 2021, arXiv 2105.01601)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from patchnets.models.blocks import apply_blocks
from patchnets.models.layers import LECUN, ZERO, DropPath, Init, MlpBlock, PatchEmbed, classifier_head

# Table 1: patch resolution, number of layers, hidden size C, MLP dimensions D_S (tokens) and D_C (channels).
VARIANTS: dict[str, dict[str, Any]] = {
    "S/32": dict(patch_size=32, depth=8, hidden_dim=512, tokens_mlp_dim=256, channels_mlp_dim=2048),
    "S/16": dict(patch_size=16, depth=8, hidden_dim=512, tokens_mlp_dim=256, channels_mlp_dim=2048),
    "B/32": dict(patch_size=32, depth=12, hidden_dim=768, tokens_mlp_dim=384, channels_mlp_dim=3072),
    "B/16": dict(patch_size=16, depth=12, hidden_dim=768, tokens_mlp_dim=384, channels_mlp_dim=3072),
    "L/32": dict(patch_size=32, depth=24, hidden_dim=1024, tokens_mlp_dim=512, channels_mlp_dim=4096),
    "L/16": dict(patch_size=16, depth=24, hidden_dim=1024, tokens_mlp_dim=512, channels_mlp_dim=4096),
    "H/14": dict(patch_size=14, depth=32, hidden_dim=1280, tokens_mlp_dim=640, channels_mlp_dim=5120),
}


class MixerBlock(nn.Module):
    """One Mixer layer: token mixing, then channel mixing, each with a skip connection (section 2, equation 1)."""

    tokens_mlp_dim: int
    channels_mlp_dim: int
    gelu: str = "tanh"
    dropout_rate: float = 0.0
    norm_epsilon: float = 1e-6
    dtype: Any = jnp.float32
    param_init: Init = LECUN
    drop_path_scale_by_keep: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch patches channels"], drop_path_rate: Any = None, *, train: bool
    ) -> Float[Array, "batch patches channels"]:
        mlp = dict(gelu=self.gelu, dropout_rate=self.dropout_rate, dtype=self.dtype, param_init=self.param_init)
        drop_branch = DropPath(self.drop_path_scale_by_keep)

        y = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype)(x)  # (batch, patches, channels)
        token_mixing = MlpBlock(self.tokens_mlp_dim, over_patches=True, **mlp, name="token_mixing")
        y = token_mixing(y, train=train)
        x = x + drop_branch(y, drop_path_rate, train=train)

        y = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype)(x)
        y = MlpBlock(self.channels_mlp_dim, **mlp, name="channel_mixing")(y, train=train)
        # Input weights (patches, D_S) and output weights (D_S, patches) of the token-mixing MLP.
        weights = token_mixing.variables["params"]
        self.sow("intermediates", "mixing", (weights["Dense_0"]["kernel"], weights["Dense_1"]["kernel"]))
        return x + drop_branch(y, drop_path_rate, train=train)


class MlpMixer(nn.Module):
    """Network of figure 1: per-patch linear embedding, Mixer layers, LayerNorm, mean over patches, linear head.

    Parameters have the names of the authors' published checkpoints (`stem`, `MixerBlock_3/token_mixing/Dense_0`, ...).
    Stochastic depth grows linearly with depth (appendix B).
    """

    num_classes: int
    patch_size: int
    depth: int
    hidden_dim: int
    tokens_mlp_dim: int
    channels_mlp_dim: int
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    drop_path_schedule: str = "linear"
    drop_path_scale_by_keep: bool = True
    norm_epsilon: float = 1e-6
    gelu: str = "tanh"
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32
    param_init: Init = LECUN
    head_init: Init = ZERO

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        common = dict(dtype=self.dtype, param_init=self.param_init)
        x = PatchEmbed(self.hidden_dim, (self.patch_size, self.patch_size), **common, name="stem")(images)
        block = partial(
            MixerBlock,
            tokens_mlp_dim=self.tokens_mlp_dim,
            channels_mlp_dim=self.channels_mlp_dim,
            gelu=self.gelu,
            dropout_rate=self.dropout_rate,
            norm_epsilon=self.norm_epsilon,
            drop_path_scale_by_keep=self.drop_path_scale_by_keep,
            **common,
        )
        # (batch, patches, channels)
        drop = (self.drop_path_rate, self.drop_path_schedule)
        x = apply_blocks(self, block, x, *drop, train=train)
        x = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="pre_head_layer_norm")(x)
        x = x.mean(axis=1)  # (batch, channels)
        return classifier_head(self, x, self.head_init)
