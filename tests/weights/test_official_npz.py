"""Variables under the authors' names, and back, bit for bit."""

import jax
import numpy as np
import pytest

from patchnets import models
from patchnets.errors import UserError
from patchnets.models.blocks import stack_blocks
from patchnets.weights import official_npz

MIXER = dict(patch_size=4, depth=2, hidden_dim=12, tokens_mlp_dim=6, channels_mlp_dim=20)
VIT = dict(patch_size=4, depth=2, hidden_dim=16, mlp_dim=24, num_heads=2)
NETWORKS = {
    "mixer": ("mlp_mixer", MIXER),
    "vit": ("vit", VIT),
    "vit, mean": ("vit", VIT | dict(pool_type="gap")),
    "vit, representation": ("vit", VIT | dict(rep_size=7, norm_after_pooling=True)),
    "vit, no positions": ("vit", VIT | dict(pool_type="gap", posemb="none")),
    "vit, attention pooling": ("vit", VIT | dict(pool_type="map")),
    "vit, fixed positions": ("vit", VIT | dict(pool_type="gap", posemb="sincos2d")),
}


def create(name, **fields):
    kind, known = NETWORKS[name]
    return models.create_model(kind, num_classes=5, **known | fields)


def random_variables(network):
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    tree = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), image)
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: generator.random(leaf.shape, np.float32), dict(tree))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_variables_come_back_to_the_last_bit(name, scan):
    network = create(name)
    variables = random_variables(network)
    if scan:
        network, variables = network.clone(scan=True), stack_blocks(variables)
    arrays = official_npz.to_arrays(network, variables)
    assert {key: value.shape for key, value in arrays.items()} == official_npz.expected_shapes(network, 16, 3)
    jax.tree.map(np.testing.assert_array_equal, official_npz.from_arrays(network, arrays, 16, 3), variables)


# Of gs://mixer_models, gs://vit_models and gs://big_vision, without what is in every block and layer.
OFFICIAL = {
    "mixer": [
        *("head/bias", "head/kernel", "pre_head_layer_norm/bias", "stem/kernel"),
        *("MixerBlock_1/LayerNorm_1/scale", "MixerBlock_1/channel_mixing/Dense_1/kernel"),
        "MixerBlock_0/token_mixing/Dense_0/bias",
    ],
    "vit, representation": [
        *("cls", "embedding/kernel", "pre_logits/kernel", "Transformer/posembed_input/pos_embedding"),
        *("Transformer/encoderblock_1/LayerNorm_2/scale", "Transformer/encoderblock_1/MlpBlock_3/Dense_1/kernel"),
        *("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel", "Transformer/encoder_norm/bias"),
    ],
    "vit, attention pooling": [
        *("params/embedding/bias", "params/pos_embedding", "params/MAPHead_0/probe", "params/head/kernel"),
        *("params/MAPHead_0/MultiHeadDotProductAttention_0/out/kernel", "params/MAPHead_0/MlpBlock_0/Dense_0/bias"),
        *("params/MAPHead_0/LayerNorm_0/scale", "params/Transformer/encoderblock_1/LayerNorm_1/scale"),
        "params/Transformer/encoderblock_0/MultiHeadDotProductAttention_0/value/bias",
    ],
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_names_are_the_official_ones(name):
    network = create(name)
    names = official_npz.to_arrays(network, random_variables(network)).keys()
    assert set(OFFICIAL[name]) <= names
    mixer = name == "mixer"
    per_block = 12 if mixer else 16  # 2 norms, 2 MLPs of 2 dense layers; or 2 norms, 4 projections, 2 dense layers
    assert len([key for key in names if "block_1/" in key.lower()]) == per_block


def test_a_name_that_is_missing_is_named():
    network = create("vit")
    arrays = official_npz.to_arrays(network, random_variables(network))
    del arrays["cls"]
    with pytest.raises(UserError, match="'cls'"):
        official_npz.from_arrays(network, arrays, 16, 3)


@pytest.mark.parametrize(
    ("kind", "fields", "pattern"),
    [
        ("gmlp", dict(patch_size=4, depth=1, hidden_dim=8, ffn_dim=8), "Gmlp"),
        ("vit", VIT | dict(layer_scale=0.1), "layer_scale"),
        ("vit", VIT | dict(pool_type="gap", norm_after_pooling=True), "after"),
        ("blog_mixer_pytorch", MIXER, "BlogMixerPytorch"),
    ],
)
def test_networks_without_official_weights_are_one_line_with_what_to_use(kind, fields, pattern):
    network = models.create_model(kind, num_classes=5, **fields)
    with pytest.raises(UserError, match=pattern) as caught:
        official_npz.to_arrays(network, {"params": {}})
    assert "--to=onnx or --to=stablehlo" in str(caught.value)
