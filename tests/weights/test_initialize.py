"""Trained weights fitted to another network: what is taken, what is computed of it, and what is refused."""

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util

from patchnets import models
from patchnets.errors import UserError
from patchnets.models.blocks import stack_blocks, unstack_blocks
from patchnets.models.resize_weights import adapt_channels, interpolation, resize_patches
from patchnets.step.train_state import create_train_state
from patchnets.weights.initialize import digest, initialize

VIT = dict(patch_size=4, depth=2, hidden_dim=8, mlp_dim=12, num_heads=2)
MIXER = dict(patch_size=4, depth=2, hidden_dim=8, tokens_mlp_dim=6, channels_mlp_dim=12)
SIZE = 16


def trained(network, fields, classes=5, channels=3):
    model = models.create_model(network, num_classes=classes, **fields)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, SIZE, SIZE, channels)), train=False))
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda x: generator.standard_normal(x.shape).astype(np.float32), dict(shapes))


def start(network, fields, variables, model, **options):
    options = dict(old_size=SIZE, image_size=SIZE, channels=3, head="keep") | options
    return initialize(network, fields, variables, model, **options)


def flat(variables):
    return traverse_util.flatten_dict(variables, sep="/")


def test_the_same_network_takes_everything():
    variables = trained("vit", VIT)
    result = start("vit", VIT, variables, models.create_model("vit", num_classes=5, **VIT))
    assert set(result.taken) == flat(variables).keys() == result.arrays.keys()
    assert not result.adapted and not result.new and not result.left_out
    for name, value in flat(variables).items():
        np.testing.assert_array_equal(result.arrays[name], value)


@pytest.mark.parametrize("head", ["new", "zeros"])
@pytest.mark.slow
def test_a_head_for_other_classes_starts_as_configured_and_the_rest_as_trained(head, mesh8):
    variables, model = trained("vit", VIT), models.create_model("vit", num_classes=7, **VIT, scan=True)
    result = start("vit", VIT, variables, model, head=head)
    assert result.new == dict.fromkeys(["params/head/kernel", "params/head/bias"], f"config.init.head={head}")
    assert result.left_out == result.new
    options = dict(image_size=SIZE, channels=3, seed=0, mesh=mesh8, ema=True)
    state = create_train_state(model, optax.adam(1e-3), **options, initial=result.arrays)
    scratch = create_train_state(model, optax.adam(1e-3), **options)
    actual, random = (flat(unstack_blocks({"params": s.params})) for s in (state, scratch))
    assert jax.tree.structure(state) == jax.tree.structure(scratch)
    for name, value in flat(variables).items():
        if "head/" not in name:
            np.testing.assert_array_equal(actual[name], value)
    for name in result.new:
        np.testing.assert_array_equal(actual[name], 0 * random[name] if head == "zeros" else random[name])
    np.testing.assert_array_equal(state.ema["params"]["stem"]["kernel"], actual["params/stem/kernel"])


def test_stacked_blocks_of_the_source_are_taken_apart():
    variables = trained("mlp_mixer", MIXER)
    scanned = jax.device_get(stack_blocks(variables))
    model = models.create_model("mlp_mixer", num_classes=5, **MIXER)
    result = start("mlp_mixer", MIXER | {"scan": True}, scanned, model)
    np.testing.assert_array_equal(
        result.arrays["params/MixerBlock_1/token_mixing/Dense_0/kernel"],
        variables["params"]["MixerBlock_1"]["token_mixing"]["Dense_0"]["kernel"],
    )
    assert digest(scanned) == digest(variables)


def test_a_gray_image_is_embedded_as_the_same_image_in_color():
    variables = trained("vit", VIT)
    model = models.create_model("vit", num_classes=5, **VIT)
    result = start("vit", VIT, variables, model, channels=1)
    gray = np.random.default_rng(0).standard_normal((4, 4, 1))
    expected = np.tensordot(np.repeat(gray, 3, 2), variables["params"]["stem"]["kernel"], 3)
    np.testing.assert_allclose(np.tensordot(gray, result.arrays["params/stem/kernel"], 3), expected, atol=1e-5)
    assert result.adapted == {"params/stem/kernel": "(4, 4, 3, 8) -> (4, 4, 1, 8)"}


def test_channels_repeat_and_keep_the_response_to_a_constant():
    kernel = np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype(np.float32)
    five = np.asarray(adapt_channels(kernel, 5))
    np.testing.assert_allclose(five, 3 / 5 * kernel[:, :, [0, 1, 2, 0, 1]], rtol=1e-6)


def test_a_larger_patch_is_embedded_as_the_smaller_one_that_it_was_resized_from():
    kernel = np.random.default_rng(0).standard_normal((4, 4, 3, 8)).astype(np.float32)
    patch = np.random.default_rng(1).standard_normal((4, 4, 3))
    larger = (interpolation((4, 4), (8, 8)) @ patch.reshape(16, 3)).reshape(8, 8, 3)
    np.testing.assert_allclose(
        np.tensordot(larger, np.asarray(resize_patches(kernel, 8)), 3), np.tensordot(patch, kernel, 3), atol=1e-4
    )


def test_another_patch_size_keeps_positions_where_the_grid_is_the_same():
    variables = trained("vit", VIT)
    model = models.create_model("vit", num_classes=5, **VIT | {"patch_size": 8})
    result = start("vit", VIT, variables, model, image_size=32)
    assert result.adapted == {"params/stem/kernel": "(4, 4, 3, 8) -> (8, 8, 3, 8)"}


@pytest.mark.parametrize("rule", ["bilinear", "bicubic"])
def test_positions_follow_the_grid_and_the_class_token(rule):
    variables = trained("vit", VIT)
    positions = variables["params"]["position_embedding"]
    averaging = models.create_model("vit", num_classes=5, **VIT, pool_type="gap")
    result = start("vit", VIT, variables, averaging, image_size=24, resize=rule)
    assert result.arrays["params/position_embedding"].shape == (1, 36, 8)
    np.testing.assert_allclose(
        result.arrays["params/position_embedding"][0], interpolation((4, 4), (6, 6), rule) @ positions[0, 1:], atol=1e-5
    )
    assert result.left_out == {"params/class_token": "class token: this network has none"}
    assert rule in result.adapted["params/position_embedding"]

    back = models.create_model("vit", num_classes=5, **VIT)
    gap = trained("vit", VIT | {"pool_type": "gap"})
    result = start("vit", VIT | {"pool_type": "gap"}, gap, back)
    np.testing.assert_array_equal(result.arrays["params/position_embedding"][0, 0], 0)
    assert result.new == {"params/class_token": "class token: vit of the source has none"}


def test_tiles_make_the_token_mixing_mlp_wider():
    variables = trained("mlp_mixer", MIXER)
    wide = models.create_model("mlp_mixer", num_classes=5, **MIXER | {"tokens_mlp_dim": 24})
    result = start("mlp_mixer", MIXER, variables, wide, image_size=32, resize="block_diagonal")
    assert result.arrays["params/MixerBlock_0/token_mixing/Dense_0/kernel"].shape == (64, 24)


def test_running_statistics_come_along():
    fields = dict(patch_size=4, depth=1, hidden_dim=8, kernel_size=3)
    model = models.create_model("convmixer", num_classes=5, **fields)
    variables = trained("convmixer", fields)
    result = start("convmixer", fields, variables, model, image_size=32)
    assert "batch_stats/stem_norm/norm/var" in result.taken
    assert set(result.taken) == flat(variables).keys()


def test_parameters_may_be_left_as_they_start():
    variables, model = trained("vit", VIT), models.create_model("vit", num_classes=5, **VIT)
    result = start("vit", VIT, variables, model, skip=("VitBlock_1/.*",))
    assert {name.split("/")[1] for name in result.new} == {"VitBlock_1"}
    assert result.left_out.keys() == result.new.keys()
    assert any(line.startswith("new: VitBlock_1/") for line in result.summary())


@pytest.mark.parametrize(
    "fields, options, message",
    [
        (VIT | {"depth": 1}, {}, "VitBlock_1/.* fits nowhere: this network has none"),
        (VIT | {"depth": 3}, {}, "VitBlock_2/.* fits nowhere: vit of the source has none"),
        (VIT | {"mlp_dim": 16}, {}, r"VitBlock_0/mlp/Dense_0/bias is of shape \(12,\), and this run needs \(16,\)"),
        (VIT | {"num_heads": 4}, {}, "num_heads=4, and config.init.weights was trained with 2"),
        (VIT, {"skip": ("no_such",)}, "config.init.skip: 'no_such' matches no parameter"),
        (VIT, {"skip": ("(",)}, r"config.init.skip: '\(' is no regular expression"),
        (VIT, {"classes": 6}, r"head/bias is of shape \(5,\), and this run needs \(6,\); config.init.head=keep"),
    ],
)
def test_what_fits_nowhere_is_named(fields, options, message):
    options = dict(options)
    model = models.create_model("vit", num_classes=options.pop("classes", 5), **fields)
    with pytest.raises(UserError, match=message):
        start("vit", VIT, trained("vit", VIT), model, **options)


def test_another_kind_of_network_is_named():
    with pytest.raises(UserError, match=r"holds a VisionTransformer, and config\.model is a MlpMixer"):
        start("vit", VIT, trained("vit", VIT), models.create_model("mlp_mixer", num_classes=5, **MIXER))


def test_settings_that_no_shape_shows_are_noted():
    model = models.create_model("vit", num_classes=5, **VIT | {"gelu": "exact"})
    result = start("vit", VIT, trained("vit", VIT), model)
    assert result.summary()[-1] == "note: config.model.gelu=exact; the weights were trained with tanh"
