"""Weights adapted to another image size: expected interpolated values, and outputs that must not change."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import parameters

from patchnets.errors import UserError
from patchnets.models import tutorials
from patchnets.models.blocks import stack_blocks, unstack_blocks
from patchnets.models.convmixer import ConvMixer
from patchnets.models.fnet import Fnet
from patchnets.models.gmlp import Gmlp
from patchnets.models.intermediates import capture_intermediates
from patchnets.models.layers import MlpBlock
from patchnets.models.mlp_mixer import MlpMixer
from patchnets.models.resize_weights import interpolation, resize_positions, resize_weights, sampling
from patchnets.models.vit import VisionTransformer

COMMON = dict(num_classes=3, patch_size=2, depth=2, hidden_dim=8)
MIXER = MlpMixer(**COMMON, tokens_mlp_dim=5, channels_mlp_dim=6)
GMLP = Gmlp(**COMMON, ffn_dim=12)
FNET = Fnet(**COMMON, mlp_dim=16)
VIT = VisionTransformer(**COMMON, mlp_dim=16, num_heads=2)
CONVMIXER = ConvMixer(**COMMON, kernel_size=3)
ALL = [MIXER, GMLP, FNET, VIT, CONVMIXER]


def variables_of(model, size):
    return {"params": parameters(model, *size)}


def along(line, out):
    """Bilinear resizing of a line, from the definition: centers of pixels, edges repeated."""
    actual = []
    for i in range(out):
        at = min(max((i + 0.5) * len(line) / out - 0.5, 0), len(line) - 1)
        low = min(int(at), len(line) - 2) if len(line) > 1 else 0
        high = min(low + 1, len(line) - 1)
        actual.append(line[low] + (at - low) * (line[high] - line[low]))
    return np.array(actual)


def resized(plane, rows, columns):
    """Of (rows, columns, channels)."""
    return np.stack([along(row, columns) for row in along(plane, rows)])


@pytest.mark.parametrize("model", ALL, ids=lambda m: type(m).__name__)
def test_the_same_size_changes_nothing(model):
    variables = variables_of(model, (8, 8))
    for rule in ("bilinear", "bicubic", "block_diagonal"):
        found_model, actual = resize_weights(model, variables, 8, (8, 8), rule)
        assert found_model == model
        jax.tree.map(np.testing.assert_array_equal, actual, variables)


@pytest.mark.slow
@pytest.mark.parametrize("model", ALL, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("new", [(12, 20), (4, 8), (16, 16)])
def test_what_comes_out_is_a_network_for_the_new_size(model, new):
    size = (8, 12)
    variables = variables_of(model, size)
    if model is CONVMIXER:
        init = jax.jit(functools.partial(model.init, train=False))
        variables |= {"batch_stats": init(jax.random.key(0), jnp.zeros((1, *size, 3)))["batch_stats"]}
    found_model, actual = resize_weights(model, variables, size, new)
    shapes = jax.eval_shape(lambda: found_model.init(jax.random.key(0), jnp.zeros((1, *new, 3)), train=False))
    assert jax.tree.map(jnp.shape, actual["params"]) == jax.tree.map(jnp.shape, shapes["params"])
    logits = jax.jit(functools.partial(found_model.apply, train=False))(actual, np.ones((2, *new, 3), np.float32))
    assert np.isfinite(logits).all()


def test_positions_are_resized_bilinearly_and_the_class_token_keeps_its_own():
    old, new = (2, 3), (5, 4)
    embedding = np.random.default_rng(0).standard_normal((1, 7, 4)).astype(np.float32)
    actual = resize_positions(jnp.asarray(embedding), old, new, class_token=True)
    np.testing.assert_array_equal(actual[:, 0], embedding[:, 0])
    expected = resized(embedding[0, 1:].reshape(2, 3, 4), *new).reshape(20, 4)
    np.testing.assert_allclose(actual[0, 1:], expected, atol=1e-6)
    without = resize_positions(jnp.asarray(embedding[:, 1:]), old, new, class_token=False)
    np.testing.assert_allclose(without[0], expected, atol=1e-6)


@pytest.mark.parametrize("model", [VIT, FNET], ids=lambda m: type(m).__name__)
def test_only_positions_change_in_networks_that_mix_without_weights_for_places(model):
    variables = variables_of(model, (8, 8))
    _, actual = resize_weights(model, variables, 8, 12)
    before, after = (dict(jax.tree_util.tree_leaves_with_path(v["params"])) for v in (variables, actual))
    changed = {jax.tree_util.keystr(p) for p in before if before[p].shape != after[p].shape}
    assert changed == {"['position_embedding']"}
    assert all(np.array_equal(before[p], after[p]) for p in before if before[p].shape == after[p].shape)


def test_interpolation_is_that_of_the_definition():
    plane = np.random.default_rng(1).standard_normal((3, 4, 1))
    actual = interpolation((3, 4), (7, 6)) @ plane.ravel()
    np.testing.assert_allclose(actual, resized(plane, 7, 6).ravel(), atol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(37, 16), (37, 7), (7, 12), (3, 2)])
@pytest.mark.slow
def test_sampling_is_torchs_bicubic_without_antialiasing(before, after):
    def keys(distance, a=-0.75):
        x = abs(distance)
        return ((a + 2) * x - (a + 3)) * x * x + 1 if x <= 1 else ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    expected = np.zeros((after, before))
    for i in range(after):
        at = (i + 0.5) * before / after - 0.5
        for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            expected[i, min(max(j, 0), before - 1)] += keys(at - j)
    np.testing.assert_allclose(sampling(before, after), expected, atol=2e-5)
    embedding = np.random.default_rng(2).standard_normal((1, 1 + before * before, 3)).astype(np.float32)
    actual = resize_positions(jnp.asarray(embedding), (before, before), (after, after), True, "bicubic_no_antialias")
    plane = np.einsum("ir,js,rsc->ijc", expected, expected, embedding[0, 1:].reshape(before, before, 3))
    np.testing.assert_allclose(actual[0, 1:], plane.reshape(-1, 3), atol=2e-4)
    np.testing.assert_array_equal(actual[:, 0], embedding[:, 0])


def test_token_mixing_of_interpolated_activations_is_the_old_mixing_interpolated():
    old, new = (3, 4), (6, 10)
    variables = variables_of(MIXER, (6, 8))
    _, actual = resize_weights(MIXER, variables, (6, 8), (12, 20))
    x = np.random.default_rng(2).standard_normal((2, 8, 3, 4)).astype(np.float32)  # (batch, channels, rows, columns)
    larger = np.stack([[resized(plane[..., None], *new)[..., 0] for plane in first] for first in x])
    mlp = MlpBlock(MIXER.tokens_mlp_dim)
    apply = jax.jit(functools.partial(mlp.apply, train=False))
    mix = [
        apply({"params": v["params"]["MixerBlock_1"]["token_mixing"]}, y.reshape(2, 8, -1))
        for v, y in ((variables, x), (actual, larger))
    ]
    before = np.asarray(mix[0]).reshape(2, 8, *old)
    expected = np.stack([[resized(plane[..., None], *new)[..., 0] for plane in first] for first in before])
    np.testing.assert_allclose(np.asarray(mix[1]).reshape(2, 8, *new), expected, atol=1e-4)


def test_gating_of_interpolated_activations_is_the_old_gate_interpolated():
    variables = variables_of(GMLP, (8, 8))
    _, actual = resize_weights(GMLP, variables, 8, 12)
    matrix = interpolation((4, 4), (6, 6))
    v = np.random.default_rng(3).standard_normal((16, 5))
    old, new = (x["params"]["GmlpBlock_0"]["spatial_gating"] for x in (variables, actual))
    before = old["kernel"].T @ v + old["bias"][:, None]
    after = np.asarray(new["kernel"]).T @ (matrix @ v) + np.asarray(new["bias"])[:, None]
    np.testing.assert_allclose(after, matrix @ before, atol=1e-4)


@pytest.mark.parametrize(("model", "block"), [(MIXER, "MixerBlock_0"), (GMLP, "GmlpBlock_0")])
def test_block_diagonal_networks_treat_every_tile_as_an_image_of_its_own(model, block):
    """The mean over patches then is the mean over tiles of what the old network gives for each."""
    old, new = (4, 8), (12, 16)  # 3 x 2 tiles
    variables = variables_of(model, old)
    found_model, actual = resize_weights(model, variables, old, new, "block_diagonal")
    images = np.random.default_rng(4).standard_normal((2, *new, 3)).astype(np.float32)
    tiles = [images[:, r : r + 4, c : c + 8] for r in (0, 4, 8) for c in (0, 8)]
    before = jax.jit(lambda v, x: capture_intermediates(model, v, x)["pre_logits"])
    after = jax.jit(lambda v, x: capture_intermediates(found_model, v, x)["pre_logits"])
    expected = np.mean([before(variables, tile) for tile in tiles], axis=0)
    np.testing.assert_allclose(after(actual, images), expected, atol=1e-4)
    mixing = jax.tree.leaves(actual["params"][block].get("token_mixing", actual["params"][block].get("spatial_gating")))
    assert any(np.mean(leaf == 0) == pytest.approx(5 / 6) for leaf in mixing)


def test_hidden_units_of_the_mixer_grow_with_the_number_of_tiles():
    model, _ = resize_weights(MIXER, variables_of(MIXER, (8, 8)), 8, 16, "block_diagonal")
    assert model == MIXER.clone(tokens_mlp_dim=4 * MIXER.tokens_mlp_dim)


@pytest.mark.slow
def test_stacked_blocks_are_resampled_as_those_that_stand_apart():
    variables = variables_of(MIXER, (8, 8))
    _, apart = resize_weights(MIXER, variables, 8, 12)
    scanned, actual = resize_weights(MIXER.clone(scan=True), stack_blocks(variables), 8, 12)
    assert "MixerBlocks" in actual["params"] and scanned.scan
    jax.tree.map(np.testing.assert_array_equal, unstack_blocks(actual), apart)


@pytest.mark.parametrize(
    ("model", "sizes", "rule", "words"),
    [
        (MIXER, (8, -8), "bilinear", "-8 x -8 pixels .* patch_size 2"),
        (VIT.clone(pool_type="gap"), ((6, 10), 12), "bilinear", "for 16 patches; old_size makes 15, 3 x 5"),
        (MIXER, (8, 9), "bilinear", "9 x 9 pixels .* patch_size 2"),
        (MIXER, (8, 16), "nearest", "rule='nearest' .* bilinear, bicubic, .*block_diagonal"),
        (MIXER, (8, 12), "block_diagonal", "6 x 6 patches .* 4 x 4"),
        (MIXER, (16, 32), "bilinear", "token_mixing/Dense_0/kernel is for 16 patches; old_size makes 64"),
        (VIT, (16, 32), "bilinear", "position_embedding is for 16 patches; old_size makes 64"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(model, sizes, rule, words):
    with pytest.raises(UserError) as caught:
        resize_weights(model, variables_of(model, (8, 8)), *sizes, rule)
    assert re.search(words, str(caught.value)) and "\n" not in str(caught.value)


def test_parameters_alone_are_refused_with_what_to_give():
    with pytest.raises(UserError, match=r"pass everything that model\.init returns"):
        resize_weights(MIXER, variables_of(MIXER, (8, 8))["params"], 8, 16)


def test_networks_tied_to_one_size_are_refused():
    model = tutorials.BlogMixerKeras(3, 2, 1, 8, 4, 4)
    with pytest.raises(UserError, match="BlogMixerKeras cannot be resized"):
        resize_weights(model, variables_of(model, (8, 8)), 8, 16)
