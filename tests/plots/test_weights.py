"""Matrices and maps in plots of token mixing, against the networks themselves."""

import jax
import numpy as np
import pytest

from patchnets.models import ops
from patchnets.models.fnet import dft_basis
from patchnets.plots import figures
from patchnets.plots import weights as weights_lib

GRID = (3, 4)


def test_a_depthwise_kernel_as_a_matrix_does_what_the_convolution_does():
    rng = np.random.default_rng(0)
    for k in (3, 4, 5):
        kernel, image = rng.standard_normal((k, k)), rng.standard_normal((1, *GRID, 1)).astype(np.float32)
        expected = ops.depthwise_conv(image, kernel[:, :, None, None].astype(np.float32))
        actual = image.reshape(-1) @ weights_lib.conv_as_matrix(kernel, GRID)
        np.testing.assert_allclose(actual, np.asarray(expected).reshape(-1), atol=1e-5)


def test_each_family_is_recognized_by_what_it_sows():
    rng, patches = np.random.default_rng(0), 12
    reads, writes = rng.standard_normal((patches, 7)), rng.standard_normal((7, patches))
    attention = rng.random((2, 3, patches, patches))
    families = {
        "token-mixing MLP": (reads, writes),
        "spatial gating": rng.standard_normal((patches, patches)),
        "Fourier": tuple(map(np.asarray, dft_basis(patches))),
        "attention": attention,
        "depthwise": rng.standard_normal((5, 5, 8)),
    }
    for words, mixing in families.items():
        values, message = weights_lib.token_matrix(mixing, GRID)
        assert words in message and values.shape == (patches, patches)
        shown, _ = weights_lib.token_maps(mixing, GRID, 16)
        assert shown.shape[1:] == ((5, 5) if words == "depthwise" else GRID) and 0 < len(shown) <= 16
    np.testing.assert_allclose(weights_lib.token_matrix((reads, writes), GRID)[0], reads @ writes, rtol=1e-4)
    # A row of attention sums to one over what it looks at: here a column, from patch to patch.
    uniform = np.full((1, 2, patches, patches), 1 / patches)
    np.testing.assert_allclose(weights_lib.token_matrix(uniform, GRID)[0].sum(axis=0), 1.0, rtol=1e-5)


def test_attention_maps_leave_a_class_token_out():
    weights = np.zeros((1, 2, 13, 13), np.float32)
    weights[:, :, 1 + 1 * 4 + 2, 1:] = np.arange(12)  # what the middle patch looks at, and 0 for the class token
    shown, _ = weights_lib.token_maps(weights, GRID, 16)
    np.testing.assert_array_equal(shown[0], np.arange(12).reshape(GRID))


def test_position_similarity_is_one_with_itself():
    embedding = np.random.default_rng(0).standard_normal((12, 6))
    (axis, *_) = weights_lib.position_similarity(embedding, GRID).axes
    sheet = axis.get_images()[0].get_array()
    for row in range(3):
        for column in range(4):
            assert sheet[row * 4 + row, column * 5 + column] == pytest.approx(1.0)


def test_filters_are_ordered_by_strength_and_spread_to_the_whole_range():
    kernel = np.random.default_rng(0).standard_normal((4, 4, 3, 10)) * np.arange(1, 11)
    assert weights_lib.principal_order(kernel)[0] == int(np.linalg.norm(kernel.reshape(-1, 10), axis=0).argmax())
    scaled = figures.spread(np.moveaxis(kernel, -1, 0))
    np.testing.assert_allclose(scaled.min(axis=(1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.max(axis=(1, 2, 3)), 1, atol=1e-6)
    assert (figures.spread(np.ones((1, 2, 2, 3))) == 0.5).all()


def test_tiles_keep_every_image_apart():
    images = np.arange(1, 6)[:, None, None] * np.ones((5, 2, 3))
    sheet = figures.tiles(images, columns=3, gap=0.0)
    assert sheet.shape == (5, 11)
    assert (sheet[0:2, 4:7] == 2).all() and (sheet[3:5, 0:3] == 4).all() and (sheet[2] == 0).all()


def test_jax_arrays_are_taken_too():
    mixing = jax.numpy.eye(12)
    assert weights_lib.token_matrix(mixing, GRID)[0].trace() == 12


def test_scales_are_written_beside_how_patches_are_mixed():
    weights = np.full((12, 12), 0.25)
    figure = weights_lib.token_mixing([weights, -2 * weights], GRID, "gmlp")
    above, below = figure.axes[:2], figure.axes[2:]
    assert [axis.get_title() for axis in above] == ["block 1: ±0.25", "block 2: ±0.5"]
    assert [axis.get_xlabel() for axis in below] == ["±0.25", "±0.5"]
    figure = weights_lib.side_by_side({"gmlp": ([weights], GRID)})
    assert "block 1 of 1, ±0.25" in figure.axes[0].get_title()
