"""ViT: a Transformer encoder on image patches (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from patchnets.models.blocks import apply_blocks
from patchnets.models.layers import XAVIER, ZERO, Dropout, DropPath, MlpBlock, PatchEmbed, classifier_head
from patchnets.parallel.backend import backend

# Table 1 (B, L, H), and DeiT's two smaller ones (arXiv 2012.12877, table 1), each with every patch size.
SIZES: dict[str, dict[str, Any]] = {
    "Ti": dict(depth=12, hidden_dim=192, mlp_dim=768, num_heads=3),
    "S": dict(depth=12, hidden_dim=384, mlp_dim=1536, num_heads=6),
    "B": dict(depth=12, hidden_dim=768, mlp_dim=3072, num_heads=12),
    "L": dict(depth=24, hidden_dim=1024, mlp_dim=4096, num_heads=16),
    "H": dict(depth=32, hidden_dim=1280, mlp_dim=5120, num_heads=16),
}
VARIANTS: dict[str, dict[str, Any]] = {
    f"{name}/{patch}": dict(patch_size=patch, **size) for name, size in SIZES.items() for patch in (14, 16, 32)
}
POOL_TYPES = ("cls", "gap", "map")
POSEMBS = ("learned", "sincos2d", "none")


def attention_weights(
    query: Float[Array, "batch queries heads width"], key: Float[Array, "batch tokens heads width"]
) -> Float[Array, "batch heads queries tokens"]:
    """Compute softmax(q k' / sqrt(width)) (appendix A, equation 6), the softmax in float32."""
    scores = swap_heads_tokens(query * query.shape[-1] ** -0.5) @ swap_heads_tokens(key).swapaxes(2, 3)
    return nn.softmax(scores.astype(jnp.float32)).astype(query.dtype)


def attend_values(
    weights: Float[Array, "batch heads queries tokens"], value: Float[Array, "batch tokens heads width"]
) -> Float[Array, "batch queries heads width"]:
    """Return the means of the values under the attention weights (appendix A, equation 7)."""
    return swap_heads_tokens(weights @ swap_heads_tokens(value))


def swap_heads_tokens(x: Float[Array, "batch a b width"]) -> Float[Array, "batch b a width"]:
    """Swap the axes of tokens and heads, so that the tokens of each head are contiguous.

    On a CPU a barrier makes this a separate operation; XLA would otherwise swap the axes again in each product.
    """
    x = x.swapaxes(1, 2)
    return jax.lax.optimization_barrier(x) if backend() == "cpu" else x


def attention_reference(query: Array, key: Array, value: Array) -> Float[Array, "batch queries heads width"]:
    """Compute attention by its definition: the means of the values under the attention weights."""
    return attend_values(attention_weights(query, key), value)


def attention_fused(query: Array, key: Array, value: Array) -> Float[Array, "batch queries heads width"]:
    """Compute attention with jax.nn.dot_product_attention (cuDNN, which stores no weights, for bfloat16 on a GPU)."""
    cudnn = backend() == "gpu" and query.dtype == jnp.bfloat16
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn" if cudnn else "xla")


ATTENTION_IMPLS = {"plain": attention_reference, "fused": attention_fused}
# What `auto` chooses in (training, evaluation): on the CPU the faster one for a gradient and for a forward pass
# (docs/measurements.md); not measured elsewhere.
AUTO_CHOICE = {"cpu": ("plain", "fused"), "gpu": ("fused", "fused"), "tpu": ("fused", "fused")}


def sincos2d(rows: int, columns: int, width: int) -> Float[np.ndarray, "patches width"]:
    """Return sines and cosines of each patch's column and row, at width / 4 wavelengths from 2 pi to 20,000 pi.

    This is the fixed position embedding of "Better plain ViT baselines for ImageNet-1k" (arXiv 2205.01580, section 2),
    taken from MoCo v3 (arXiv 2104.02057). `width` must be divisible by 4.

    """
    y, x = np.mgrid[:rows, :columns]
    quarter = width // 4
    frequencies = 10_000.0 ** -(np.arange(quarter) / max(quarter - 1, 1))
    angles = [coordinate.reshape(-1, 1) * frequencies for coordinate in (x, y)]  # (patches, width / 4) each
    return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)


class MultiHeadAttention(nn.Module):
    """Multi-head attention of `tokens` to `memory`, with an output projection (appendix A)."""

    num_heads: int
    dropout_rate: float = 0.0  # of the attention weights
    attention_impl: str = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "batch queries channels"],
        memory: Float[Array, "batch tokens channels"],
        *,
        train: bool,
    ) -> Float[Array, "batch queries channels"]:
        channels = tokens.shape[-1]
        dense = partial(nn.DenseGeneral, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        heads = (self.num_heads, channels // self.num_heads)
        query = dense(heads, name="query")(tokens)  # (batch, queries, heads, width)
        key, value = dense(heads, name="key")(memory), dense(heads, name="value")(memory)
        dropping = train and self.dropout_rate > 0
        if dropping or self.is_mutable_collection("intermediates"):
            weights = attention_weights(query, key)  # (batch, heads, queries, tokens)
            self.sow("intermediates", "mixing", weights)
        if dropping:
            weights = Dropout(self.dropout_rate)(weights, train=train)
            mixed = attend_values(weights, value)
        else:
            training, evaluation = AUTO_CHOICE.get(backend(), ("fused", "fused"))
            faster = training if train else evaluation
            implementation = faster if self.attention_impl == "auto" else self.attention_impl
            mixed = ATTENTION_IMPLS[implementation](query, key, value)
        return dense(channels, axis=(-2, -1), name="out")(mixed)


class VitBlock(nn.Module):
    """z' = MSA(LN(z)) + z, then MLP(LN(z')) + z' (equations 2 and 3).

    A nonzero `layer_scale` is the initial value of a learned factor per channel of each branch (arXiv 2103.17239,
    section 2.1).
    """

    num_heads: int
    mlp_dim: int
    gelu: str = "tanh"
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    layer_scale: float = 0.0
    norm_epsilon: float = 1e-6
    attention_impl: str = "auto"
    dtype: Any = jnp.float32
    drop_path_scale_by_keep: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens channels"], drop_path_rate: Any = None, *, train: bool
    ) -> Float[Array, "batch tokens channels"]:
        def branch(y: Array, name: str) -> Array:
            if self.layer_scale:
                scale = nn.initializers.constant(self.layer_scale)
                y = y * self.param(f"{name}_scale", scale, (x.shape[-1],), jnp.float32).astype(self.dtype)
            return DropPath(self.drop_path_scale_by_keep)(y, drop_path_rate, train=train)

        y = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="attention_norm")(x)
        y = MultiHeadAttention(
            self.num_heads, self.attention_dropout_rate, self.attention_impl, self.dtype, name="attention"
        )(y, y, train=train)
        x = x + branch(Dropout(self.dropout_rate)(y, train=train), "attention")

        y = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="mlp_norm")(x)
        y = MlpBlock(self.mlp_dim, self.gelu, self.dropout_rate, self.dtype, XAVIER, name="mlp")(y, train=train)
        return x + branch(y, "mlp")


class MapHead(nn.Module):
    """Attention pooling: a learned query attends to all tokens, then an MLP (MAP; arXiv 2106.04560, section 3.3)."""

    num_heads: int
    mlp_dim: int
    gelu: str = "tanh"
    norm_epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens channels"], *, train: bool) -> Float[Array, "batch channels"]:
        batch, _, channels = x.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, channels), jnp.float32)
        probe = jnp.broadcast_to(probe.astype(self.dtype), (batch, 1, channels))
        x = MultiHeadAttention(self.num_heads, dtype=self.dtype, name="attention")(probe, x, train=train)
        y = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="norm")(x)
        y = MlpBlock(self.mlp_dim, self.gelu, dtype=self.dtype, param_init=XAVIER, name="mlp")(y, train=train)
        return (x + y)[:, 0]


class VisionTransformer(nn.Module):
    """Patch and position embedding, encoder blocks, LayerNorm, pooling, linear head (figure 1, equations 1 to 4).

    Attributes:
      pool_type: cls (a class token), gap (the mean over patches) or map (attention pooling).
      posemb: learned, sincos2d (fixed; the class token gets none) or none.
      rep_size: if not 0, width of a dense layer with tanh before the head, as in the paper's pre-training.
      norm_after_pooling: apply the last LayerNorm after pooling, as timm does in networks that average the patches.
      num_heads: must divide `hidden_dim`.

    """

    num_classes: int
    patch_size: int
    depth: int
    hidden_dim: int
    mlp_dim: int
    num_heads: int
    pool_type: str = "cls"
    posemb: str = "learned"
    rep_size: int = 0
    norm_after_pooling: bool = False
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    drop_path_schedule: str = "linear"
    drop_path_scale_by_keep: bool = True
    layer_scale: float = 0.0
    norm_epsilon: float = 1e-6
    gelu: str = "tanh"
    attention_impl: str = "auto"
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        x = self.embed(images)  # (batch, tokens, channels)
        x = Dropout(self.dropout_rate)(x, train=train)
        block = partial(
            VitBlock,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            gelu=self.gelu,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            layer_scale=self.layer_scale,
            norm_epsilon=self.norm_epsilon,
            attention_impl=self.attention_impl,
            dtype=self.dtype,
            drop_path_scale_by_keep=self.drop_path_scale_by_keep,
        )
        drop = (self.drop_path_rate, self.drop_path_schedule)
        x = apply_blocks(self, block, x, *drop, train=train)
        norm = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="pre_head_layer_norm")
        x = x if self.norm_after_pooling else norm(x)
        if self.pool_type == "map":
            x = MapHead(self.num_heads, self.mlp_dim, self.gelu, self.norm_epsilon, self.dtype, name="map_head")(
                x, train=train
            )
        else:
            x = x[:, 0] if self.pool_type == "cls" else x.mean(axis=1)  # (batch, channels)
        x = norm(x) if self.norm_after_pooling else x
        if self.rep_size:
            x = nn.tanh(nn.Dense(self.rep_size, dtype=self.dtype, name="representation")(x))
        return classifier_head(self, x, ZERO)

    def embed(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch tokens channels"]:
        """Return embedded patches, after the class token if there is one, with position embeddings (equation 1)."""
        p, channels = self.patch_size, self.hidden_dim
        x = PatchEmbed(channels, (p, p), dtype=self.dtype, name="stem")(images)
        if self.posemb == "sincos2d":
            places = sincos2d(images.shape[1] // p, images.shape[2] // p, channels)
            x = x + jnp.asarray(places, self.dtype)
        if self.pool_type == "cls":
            token = self.param("class_token", nn.initializers.zeros_init(), (1, 1, channels), jnp.float32)
            x = jnp.concatenate([jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], 1, channels)), x], axis=1)
        if self.posemb == "learned":
            init = nn.initializers.normal(0.02)
            x = x + self.param("position_embedding", init, (1, *x.shape[1:]), jnp.float32).astype(self.dtype)
        return x
