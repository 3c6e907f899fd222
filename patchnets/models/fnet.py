"""FNet for images: Fourier transforms instead of attention (Lee-Thorp et al. 2021, arXiv 2105.03824).

The paper's encoder, applied to patches. The paper covers text only; the sizes below are this project's own, taken from
ViT.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from patchnets.models.blocks import apply_blocks
from patchnets.models.layers import GELU, ZERO, Dropout, Init, PatchEmbed, classifier_head
from patchnets.parallel.backend import backend

VARIANTS: dict[str, dict[str, Any]] = {
    f"{size}/{patch}": dict(patch_size=patch, depth=12, hidden_dim=width, mlp_dim=4 * width)
    for size, width in (("Ti", 192), ("S", 384), ("B", 768))
    for patch in (16, 32)
}

INIT = Init(nn.initializers.normal(0.02))
EPSILON = 1e-12  # of every LayerNorm, as in BERT, whose encoder the paper keeps except for the mixing


def fourier_fft(x: Float[Array, "batch patches channels"]) -> Float[Array, "batch patches channels"]:
    """Compute the real part of the discrete Fourier transform over patches and channels (equation 3), by FFT."""
    return jnp.fft.fft2(x.astype(jnp.float32), axes=(1, 2)).real.astype(x.dtype)


def fourier_matrix(x: Float[Array, "batch patches channels"]) -> Float[Array, "batch patches channels"]:
    """Compute `fourier_fft` with real matrix products: with F = C - iS, the real part of F x F' is C x C' - S x S'."""
    (rows_cos, rows_sin), (columns_cos, columns_sin) = (dft_basis(size, x.dtype) for size in x.shape[1:])
    even = jnp.einsum("mn,bnc->bmc", rows_cos, x @ columns_cos)
    odd = jnp.einsum("mn,bnc->bmc", rows_sin, x @ columns_sin)
    return even - odd


def dft_basis(size: int, dtype: Any = jnp.float32) -> tuple[Float[Array, "size size"], Float[Array, "size size"]]:
    """Return the cosine and sine matrices of the discrete Fourier transform of `size` numbers; both are symmetric."""
    # Reduce the product of the indices first; a large angle would lose digits.
    angle = 2 * np.pi * (np.outer(np.arange(size), np.arange(size)) % size) / size
    return jnp.asarray(np.cos(angle), dtype), jnp.asarray(np.sin(angle), dtype)


FOURIER_IMPLS = {"fft": fourier_fft, "matrix": fourier_matrix}
# What `auto` chooses: on the CPU the faster one in a training step (docs/measurements.md); not measured elsewhere.
AUTO_CHOICE = {"cpu": "fft", "gpu": "fft", "tpu": "matrix"}


def fourier(x: Float[Array, "batch patches channels"], implementation: str) -> Float[Array, "batch patches channels"]:
    """Apply the transform by `implementation`: "fft", "matrix", or "auto" for the faster one on the backend."""
    return FOURIER_IMPLS[AUTO_CHOICE.get(backend(), "fft") if implementation == "auto" else implementation](x)


class FnetBlock(nn.Module):
    """x = norm(x + Re(FFT2(x))), then x = norm(x + MLP(x)) (figure 1); dropout after the second dense layer."""

    mlp_dim: int
    gelu: str = "tanh"
    dropout_rate: float = 0.0
    fourier_impl: str = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch patches channels"], drop_path_rate: Any = None, *, train: bool
    ) -> Float[Array, "batch patches channels"]:
        del drop_path_rate  # the paper has no stochastic depth
        features = x.shape[-1]
        self.sow("intermediates", "mixing", dft_basis(x.shape[1]))  # (patches, patches): cosines, sines
        x = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="mixing_norm")(x + fourier(x, self.fourier_impl))
        y = nn.Dense(self.mlp_dim, dtype=self.dtype, kernel_init=INIT.kernel, name="expand")(
            x
        )  # (batch, patches, mlp_dim)
        y = GELU[self.gelu](y)
        y = nn.Dense(features, dtype=self.dtype, kernel_init=INIT.kernel, name="project")(y)
        y = Dropout(self.dropout_rate)(y, train=train)
        return nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="mlp_norm")(x + y)


class Fnet(nn.Module):
    """Patch embedding, learned position embedding, FNet blocks, mean over patches, linear head.

    `embedding_norm` adds a LayerNorm after the embeddings, as in BERT and the paper.
    """

    num_classes: int
    patch_size: int
    depth: int
    hidden_dim: int
    mlp_dim: int
    embedding_norm: bool = True
    dropout_rate: float = 0.0
    gelu: str = "tanh"
    fourier_impl: str = "auto"
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        patch = (self.patch_size, self.patch_size)
        x = PatchEmbed(self.hidden_dim, patch, dtype=self.dtype, param_init=INIT, name="stem")(images)
        position = self.param("position_embedding", INIT.kernel, (1, *x.shape[1:]), jnp.float32)
        x = x + position.astype(self.dtype)  # (batch, patches, channels) from here on
        if self.embedding_norm:
            x = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="embedding_norm")(x)
        x = Dropout(self.dropout_rate)(x, train=train)
        block = partial(
            FnetBlock,
            mlp_dim=self.mlp_dim,
            gelu=self.gelu,
            dropout_rate=self.dropout_rate,
            fourier_impl=self.fourier_impl,
            dtype=self.dtype,
        )
        x = apply_blocks(self, block, x, train=train)
        x = x.mean(axis=1)  # (batch, channels)
        return classifier_head(self, x, ZERO)
