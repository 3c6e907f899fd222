"""Plots of learned weights: patch filters, kernels, position embeddings, and token mixing."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from patchnets.plots.figures import APART, bare, pyplot, spread, tiles, to_rgb

SHOWN = 64  # filters per plot
Mixing = Any  # value of "block_i/mixing" from models.intermediates.capture_intermediates


def principal_order(filters: Float[np.ndarray, "height width channels features"]) -> list[int]:
    """Return the indices of the filters, those with the largest norm first."""
    strength = np.sqrt((filters.astype(np.float64) ** 2).sum(axis=(0, 1, 2)))
    return list(np.argsort(-strength))


def patch_filters(kernel: Float[np.ndarray, "height width channels features"]) -> Any:
    """Plot the filters of the patch embedding, strongest first, each on its own scale."""
    chosen = principal_order(kernel)[:SHOWN]
    shown = spread(np.moveaxis(kernel[..., chosen], -1, 0))
    plt = pyplot()
    columns = 16 if len(chosen) > 16 else max(1, len(chosen))
    figure, axis = plt.subplots(figsize=(9, 1.2 + 9 * -(-len(chosen) // columns) / columns), layout="constrained")
    axis.imshow(tiles(to_rgb(shown), columns, gap=APART), interpolation="nearest")
    bare(axis)
    height, width, _, features = kernel.shape
    figure.suptitle(
        f"Patch embedding: {len(chosen)} of {features} filters of {height} x {width} pixels, the strongest first; "
        "each scaled separately",
        fontsize=10,
    )
    return figure


def depthwise_kernels(kernels: Sequence[Float[np.ndarray, "k k channels"]], count: int = 16) -> Any:
    """Plot a row of depthwise kernels per layer, those with the largest norms, on one scale per layer."""
    plt = pyplot()
    figure, axes = plt.subplots(
        len(kernels), 1, figsize=(9, 0.62 * len(kernels) + 0.9), squeeze=False, layout="constrained"
    )
    for i, (axis, kernel) in enumerate(zip(axes[:, 0], kernels)):
        order = np.argsort(-np.sqrt((kernel.astype(np.float64) ** 2).sum(axis=(0, 1))))[:count]
        limit = float(np.abs(kernel[..., order]).max()) or 1.0
        sheet = tiles(np.moveaxis(kernel[..., order], -1, 0), len(order), gap=np.nan)
        axis.imshow(sheet, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        bare(axis)
        axis.set_ylabel(f"layer {i + 1}\n±{limit:.2g}", rotation=0, ha="right", va="center", fontsize=8)
    side, shown = kernels[0].shape[0], min(count, kernels[0].shape[-1])
    figure.suptitle(f"Depthwise kernels of {side} x {side}: the {shown} strongest channels of each layer", fontsize=10)
    return figure


def position_similarity(
    embedding: Float[np.ndarray, "patches channels"], grid: tuple[int, int], name: str = "Position embeddings"
) -> Any:
    """Plot the cosine similarity of each patch's position embedding with all others (arXiv 2010.11929, figure 7)."""
    x = embedding.astype(np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    cosines = (x @ x.T).reshape(-1, *grid)
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7.2, 6.4), layout="constrained")
    shown = axis.imshow(tiles(cosines, grid[1], gap=np.nan), cmap="viridis", vmin=-1, vmax=1, interpolation="nearest")
    bare(axis)
    axis.set(xlabel="column of the patch", ylabel="row of the patch")
    figure.colorbar(shown, ax=axis, label="cosine similarity", shrink=0.8)
    figure.suptitle(f"{name} of {grid[0]} x {grid[1]} patches: each one's similarity to all", fontsize=10)
    return figure


def conv_as_matrix(
    kernel: Float[np.ndarray, "k k"], grid: tuple[int, int]
) -> Float[np.ndarray, "patches_in patches_out"]:
    """Return the matrix of a zero-padded convolution over patches."""
    k, _ = kernel.shape
    low = (k - 1) // 2
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    down, right = rows[:, None] - rows[None] + low, columns[:, None] - columns[None] + low
    within = (down >= 0) & (down < k) & (right >= 0) & (right < k)
    return np.where(within, kernel[down.clip(0, k - 1), right.clip(0, k - 1)], 0.0)


def token_matrix(mixing: Mixing, grid: tuple[int, int]) -> tuple[Float[np.ndarray, "patches_in patches_out"], str]:
    """Return the weight with which each patch enters each other one, and a description.

    MLP-Mixer: product of both layers of the token-mixing MLP, without the activation; gMLP: the spatial weights; FNet:
    the cosines; ViT: attention, averaged over images and heads; ConvMixer: the kernels' mean absolute values, as a
    matrix.
    """
    if isinstance(mixing, tuple):
        first, second = (np.asarray(part, np.float32) for part in mixing)
        patches = grid[0] * grid[1]
        square = first.shape == second.shape == (patches, patches)
        if square and np.allclose(first, first.T, atol=1e-4) and np.allclose(second, second.T, atol=1e-4):
            return first, "Fourier transform, cosines"
        return first @ second, "token-mixing MLP, its two layers multiplied"
    array = np.asarray(mixing, np.float32)
    if array.ndim == 4:
        return array.mean(axis=(0, 1)).T, "attention, mean over images and heads"
    if array.ndim == 3:
        return conv_as_matrix(np.abs(array).mean(axis=-1), grid), "depthwise kernels, mean of absolute values"
    return array, "spatial gating weights"


def token_maps(mixing: Mixing, grid: tuple[int, int], count: int) -> tuple[Float[np.ndarray, "count h w"], str]:
    """Return `count` maps over the image of the input weights of a block, and a description."""
    patches = grid[0] * grid[1]
    if isinstance(mixing, tuple):
        reads = np.asarray(mixing[0], np.float32)  # (patches, units)
        order = np.argsort(-np.linalg.norm(reads, axis=0))[:count]
        return reads[:, order].T.reshape(-1, *grid), "weights over the image, of hidden units or frequencies"
    array = np.asarray(mixing, np.float32)
    if array.ndim == 3:
        order = np.argsort(-np.sqrt((array**2).sum(axis=(0, 1))))[:count]
        return np.moveaxis(array[..., order], -1, 0), "kernels of channels"
    if array.ndim == 4:
        heads = array.mean(axis=0)[:, :, -patches:]  # drops a class token, which comes first
        middle = heads.shape[1] - patches + (grid[0] // 2) * grid[1] + grid[1] // 2
        return heads[:, middle].reshape(-1, *grid)[:count], "attention of the middle patch, by head"
    chosen = np.linspace(0, patches - 1, min(count, patches)).round().astype(int)
    return array[:, chosen].T.reshape(-1, *grid), "input weights of patches from the first to the last"


def token_mixing(blocks: Sequence[Mixing], grid: tuple[int, int], family: str) -> Any:
    """Plot token mixing of every block: the matrix from patch to patch, and maps over the image below it."""
    plt = pyplot()
    shown = sorted({round(i) for i in np.linspace(0, len(blocks) - 1, min(8, len(blocks)))})
    figure, axes = plt.subplots(
        2, len(shown), figsize=(max(6.4, 2.3 * len(shown)), 5.8), squeeze=False, layout="constrained"
    )
    for column, i in enumerate(shown):
        values, description = token_matrix(blocks[i], grid)
        limit = _signed(axes[0, column], values)
        axes[0, column].set_title(f"block {i + 1}: ±{limit:.2g}", fontsize=9)
        maps, maps_description = token_maps(blocks[i], grid, 16)
        limits = np.abs(maps).max(axis=(1, 2), keepdims=True)
        scaled = maps / np.where(limits > 0, limits, 1.0)
        side = math.ceil(math.sqrt(len(maps)))
        axes[1, column].imshow(tiles(scaled, side, gap=np.nan), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        bare(axes[1, column])
        least, most = f"±{limits.min():.2g}", f"±{limits.max():.2g}"
        axes[1, column].set_xlabel(least if least == most else f"{least} to {most}", fontsize=9)
    axes[0, 0].set(xlabel="to patch", ylabel="from patch")
    axes[1, 0].set_ylabel("maps over the image", fontsize=9)
    figure.suptitle(
        f"{family}: token mixing\nabove: {description}\nbelow: {maps_description}, each scaled separately\n"
        "red: positive, blue: negative, up to the value after ±",
        fontsize=10,
    )
    return figure


def side_by_side(networks: Mapping[str, tuple[Sequence[Mixing], tuple[int, int]]]) -> Any:
    """Plot token mixing of the first and last block of each network, as matrices from patch to patch."""
    plt = pyplot()
    figure, axes = plt.subplots(
        2, len(networks), figsize=(max(5.0, 2.9 * len(networks)), 6.2), squeeze=False, layout="constrained"
    )
    for column, (name, (blocks, grid)) in enumerate(networks.items()):
        for axis, i in zip(axes[:, column], (0, len(blocks) - 1)):
            values, description = token_matrix(blocks[i], grid)
            limit = _signed(axis, values)
            axis.set_title(f"{name}\nblock {i + 1} of {len(blocks)}, ±{limit:.2g}\n{description}", fontsize=8)
    axes[1, 0].set(xlabel="to patch", ylabel="from patch")
    figure.suptitle(
        "Token mixing, each block scaled separately\nred: positive, blue: negative, up to the value after ±",
        fontsize=10,
    )
    return figure


def _signed(axis: Any, values: Float[np.ndarray, "rows columns"]) -> float:
    """Show a matrix in blue and red, white at 0, up to its 99.5th percentile; return that value."""
    limit = float(np.quantile(np.abs(values), 0.995)) or 1.0
    axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest", aspect="equal")
    axis.tick_params(labelsize=7)
    return limit
