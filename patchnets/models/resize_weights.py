"""Adapt trained weights to another image size.

Position embeddings and token-mixing weights are resampled from the old grid of patches to the new one. All other
weights, including ConvMixer's, are the same at any size. Patch embeddings can be adapted to other channels and to
another patch size.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from patchnets.errors import UserError
from patchnets.models.blocks import stack_blocks, unstack_blocks
from patchnets.models.convmixer import ConvMixer
from patchnets.models.fnet import Fnet
from patchnets.models.gmlp import Gmlp
from patchnets.models.mlp_mixer import MlpMixer
from patchnets.models.vit import VisionTransformer

Grid = tuple[int, int]  # rows and columns of patches
Kernel = Float[Array | np.ndarray, "rows columns channels width"]  # of a patch embedding
INTERPOLATIONS = {"bilinear": "bilinear", "bicubic": "cubic"}  # by the names of jax.image.resize
SAMPLED = "bicubic_no_antialias"
RULES = (*INTERPOLATIONS, SAMPLED, "block_diagonal")

# Token-mixing weights by the end of their path, and the meaning of each axis.
TOKENS_IN, TOKENS_OUT, HIDDEN = "patches read", "patches written", "hidden units"
TOKEN_MIXING_AXES = {
    "/token_mixing/Dense_0/kernel": (TOKENS_IN, HIDDEN),
    "/token_mixing/Dense_0/bias": (HIDDEN,),
    "/token_mixing/Dense_1/kernel": (HIDDEN, TOKENS_OUT),
    "/token_mixing/Dense_1/bias": (TOKENS_OUT,),
    "/spatial_gating/kernel": (TOKENS_IN, TOKENS_OUT),
    "/spatial_gating/bias": (TOKENS_OUT,),
}


def resize_weights(
    model: nn.Module,
    variables: Mapping[str, Any],
    old_size: int | Grid,
    new_size: int | Grid,
    rule: str = "bilinear",
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network and its variables for another image size.

    Args:
      model: the network that was trained.
      variables: its variables, with or without stacked blocks.
      old_size: size of the training images in pixels: a side, or (height, width).
      new_size: size of the new images.
      rule: how to resample. "bilinear" and "bicubic": position embeddings are interpolated, and token-mixing weights
        such that for interpolated activations they give the interpolated results of the old ones.
        "bicubic_no_antialias" samples position embeddings as DINOv2 does (`sampling`). "block_diagonal"
        (Mixer and gMLP, whole multiples of the grid): split the new grid into tiles of the old size and mix each tile
        with the old weights, repeated along the diagonal of a larger matrix (MLP-Mixer, arXiv 2105.01601, appendix C);
        the Mixer's `tokens_mlp_dim` grows with the number of tiles.

    Returns:
      The network (changed only by "block_diagonal") and its variables. If the sizes agree, both are returned unchanged.

    Raises:
      UserError: a size not divisible by the patch size, an unknown rule, a grid that is not a whole multiple for
        "block_diagonal", variables of another size, or a network whose head or hidden layers are tied to one size.

    """
    if rule not in RULES:
        raise UserError(f"rule={rule!r} is unknown; expected one of {', '.join(RULES)}")
    if not isinstance(model, MlpMixer | Gmlp | Fnet | VisionTransformer | ConvMixer):
        raise UserError(f"{type(model).__name__} cannot be resized: its layers are tied to one image size")
    if "params" not in variables:
        raise UserError(
            f"the variables hold {', '.join(variables)} and no params; pass everything that model.init returns"
        )
    old, new = grid(old_size, model.patch_size), grid(new_size, model.patch_size)
    if old == new:
        return model, dict(variables)
    tiled = rule == "block_diagonal" and isinstance(model, MlpMixer | Gmlp)
    method = "bilinear" if rule == "block_diagonal" else rule
    resized_model = resize_network(model, old_size, new_size, rule)
    apart = unstack_blocks(variables)
    flat = traverse_util.flatten_dict(apart["params"], sep="/")
    for path, weights in flat.items():
        axes = next((axes for end, axes in TOKEN_MIXING_AXES.items() if path.endswith(end)), ())
        if path == "position_embedding":
            flat[path] = resize_positions(weights, old, new, getattr(model, "pool_type", None) == "cls", method)
        elif axes:
            _check_patches(path, weights.shape, axes, old)
            flat[path] = _tile(weights, axes, old, new) if tiled else _interpolate(weights, axes, old, new, method)
    resized = apart | {"params": traverse_util.unflatten_dict(flat, sep="/")}
    return resized_model, stack_blocks(resized) if model.scan else resized


def resize_network(model: nn.Module, old_size: int | Grid, new_size: int | Grid, rule: str) -> nn.Module:
    """Return the network of the weights that `resize_weights` makes: `model`, unless "block_diagonal" widens a Mixer.

    Raises:
      UserError: a grid that is not a whole multiple, for "block_diagonal".
    """
    if rule != "block_diagonal" or not isinstance(model, MlpMixer | Gmlp):
        return model
    old, new = grid(old_size, model.patch_size), grid(new_size, model.patch_size)
    if new[0] % old[0] or new[1] % old[1]:
        raise UserError(
            f"{new[0]} x {new[1]} patches are no multiple of {old[0]} x {old[1]}, which rule=block_diagonal needs"
        )
    if isinstance(model, Gmlp):
        return model
    return model.clone(tokens_mlp_dim=model.tokens_mlp_dim * new[0] * new[1] // (old[0] * old[1]))


def grid(size: int | Grid, patch_size: int) -> Grid:
    """Return (rows, columns) of patches in an image of `size` pixels: a side, or (height, width)."""
    height, width = size if isinstance(size, tuple | list) else (size, size)
    if min(height, width) < 1 or height % patch_size or width % patch_size:
        raise UserError(f"images of {height} x {width} pixels are not divisible by patch_size {patch_size}")
    return height // patch_size, width // patch_size


def resize_positions(
    embedding: Float[Array, "1 tokens channels"], old: Grid, new: Grid, class_token: bool, method: str = "bilinear"
) -> Float[Array, "1 new_tokens channels"]:
    """Resize position embeddings over the grid of patch centers; a leading class token is kept.

    "bicubic" is timm's (`resample_abs_pos_embed`): Keys' kernel with a = -0.5, wider where the grid shrinks.
    "bicubic_no_antialias" is transformers', DINO's and DINOv2's (`interpolate_pos_encoding`).
    """
    token, places = embedding[:, : int(class_token)], embedding[:, int(class_token) :]
    if places.shape[1] != (count := old[0] * old[1]):
        raise UserError(
            f"position_embedding is for {places.shape[1]} patches; old_size makes {count}, {old[0]} x {old[1]}"
        )
    if method == SAMPLED:
        places = jnp.einsum("np,bpc->bnc", interpolation(old, new, method).astype(places.dtype), places)
    else:
        places = places.reshape(1, *old, -1)
        places = jax.image.resize(places, (1, *new, places.shape[-1]), INTERPOLATIONS[method])
        places = places.reshape(1, new[0] * new[1], -1)
    return jnp.concatenate([token, places], axis=1)


def interpolation(old: Grid, new: Grid, method: str = "bilinear") -> Float[np.ndarray, "new_patches patches"]:
    """Return the matrix of a bilinear or bicubic resize from one grid of patches to another."""
    rows, columns = (
        sampling(before, after)
        if method == SAMPLED
        else np.asarray(jax.image.resize(jnp.eye(before), (after, before), INTERPOLATIONS[method]), np.float64)
        for before, after in zip(old, new)
    )
    return np.kron(rows, columns)


def sampling(before: int, after: int) -> Float[np.ndarray, "after before"]:
    """Return the matrix of PyTorch's bicubic resize of a line without antialiasing.

    Keys' kernel with a = -0.75 is never widened; beyond both ends values continue as they are there.
    """
    reach = 2  # of the kernel
    values = jnp.pad(jnp.eye(before), ((reach, reach), (0, 0)), mode="edge")
    scale = jnp.array([after / before])
    method = jax.image.ResizeMethod.CUBIC_PYTORCH
    shape = (after, before)
    return np.asarray(
        jax.image.scale_and_translate(values, shape, (0,), scale, -reach * scale, method, antialias=False), np.float64
    )


def _interpolate(weights: Array, axes: tuple[str, ...], old: Grid, new: Grid, method: str) -> Array:
    """Interpolate output axes, and resample input axes with the pseudoinverse of the interpolation, so that
    interpolated inputs give the same result (arXiv 2212.08013, equation 4)."""
    matrix = interpolation(old, new, method)
    maps = {TOKENS_OUT: matrix, TOKENS_IN: np.linalg.pinv(matrix).T}  # (new patches, old patches)
    resized = np.asarray(weights, np.float64)
    for axis, kind in enumerate(axes):
        if kind in maps:
            resized = np.moveaxis(np.tensordot(maps[kind], resized, (1, axis)), 0, axis)
    return jnp.asarray(resized, weights.dtype)


def _tile(weights: Array, axes: tuple[str, ...], old: Grid, new: Grid) -> Array:
    """Repeat the weights for every tile of the new grid, with zeros between patches of different tiles."""
    row, column = (index.ravel() for index in np.indices(new))
    tiles_across = new[1] // old[1]
    tile = row // old[0] * tiles_across + column // old[1]
    within = row % old[0] * old[1] + column % old[1]
    count = tile.max() + 1
    places, tiles = [], []
    for size, kind in zip(weights.shape, axes):
        hidden = kind == HIDDEN
        places.append(np.arange(count * size) % size if hidden else within)
        tiles.append(np.arange(count * size) // size if hidden else tile)
    tiled = np.asarray(weights)[np.ix_(*places)]
    if len(axes) == 2:
        tiled = np.where(tiles[0][:, None] == tiles[1], tiled, 0)
    return jnp.asarray(tiled)


def adapt_channels(kernel: Kernel, channels: int) -> Kernel:
    """Adapt a patch embedding to images of other channels, as timm's `adapt_input_conv`.

    One channel of RGB weights gets their sum; any other number gets them in turns, scaled to keep their sum.
    """
    old = kernel.shape[2]
    if channels == old:
        return kernel
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return jnp.take(kernel, np.arange(channels) % old, axis=2) * (old / channels)


def resize_patches(kernel: Kernel, patch_size: int) -> Kernel:
    """Adapt a patch embedding to another patch size by the pseudoinverse of the resize of patches.

    Of all kernels this one gives embeddings of resized patches nearest to those of the original ones (FlexiViT, arXiv
    2212.08013, section 3.4).
    """
    old, new = (kernel.shape[0], kernel.shape[1]), (patch_size, patch_size)
    if old == new:
        return kernel
    inverse = np.linalg.pinv(interpolation(old, new)).T  # (new pixels, old pixels)
    flat = np.asarray(kernel, np.float64).reshape(old[0] * old[1], -1)
    return jnp.asarray((inverse @ flat).reshape(*new, *kernel.shape[2:]), kernel.dtype)


def _check_patches(path: str, shape: tuple[int, ...], axes: tuple[str, ...], old: Grid) -> None:
    expected = old[0] * old[1]
    wrong = [size for size, kind in zip(shape, axes) if kind != HIDDEN and size != expected]
    if wrong:
        raise UserError(f"{path} is for {wrong[0]} patches; old_size makes {expected}, {old[0]} x {old[1]}")
