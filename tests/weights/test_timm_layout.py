"""Variables become timm's entries and these variables again, bit for bit; networks are described as timm builds them.

That timm computes the same with them is in tests/parity/test_export.py.
"""

import dataclasses

import jax
import numpy as np
import pytest
from flax import traverse_util

from patchnets import models
from patchnets.errors import UserError
from patchnets.models.blocks import stack_blocks
from patchnets.run.model_spec import ModelSpec
from patchnets.weights import timm

MIXER = dict(patch_size=4, depth=2, hidden_dim=12, tokens_mlp_dim=6, channels_mlp_dim=20, gelu="exact")
VIT = dict(patch_size=4, depth=2, hidden_dim=16, mlp_dim=24, num_heads=2)
NETWORKS = {
    "mixer": ("mlp_mixer", MIXER),
    "gmlp": ("gmlp", dict(patch_size=4, depth=2, hidden_dim=12, ffn_dim=40)),
    "convmixer": ("convmixer", dict(patch_size=4, depth=2, hidden_dim=12, kernel_size=4)),
    "vit": ("vit", VIT),
    "vit, mean": ("vit", VIT | dict(pool_type="gap", norm_after_pooling=True, layer_scale=0.1)),
    "vit, attention pooling": ("vit", VIT | dict(pool_type="map", gelu="exact")),
    "vit, fixed positions": ("vit", VIT | dict(pool_type="gap", posemb="sincos2d")),
    "vit, fixed positions, class token": ("vit", VIT | dict(posemb="sincos2d")),
    "vit, no positions": ("vit", VIT | dict(pool_type="gap", posemb="none")),
}


def spec_of(name, fields, image_size=16, channels=3):
    network = models.create_model(name, num_classes=5, **fields)
    resolved = {field: getattr(network, field) for field in models.config_fields(name)} | {"dtype": "float32"}
    return ModelSpec(
        network=name,
        fields=resolved,
        classes=tuple("abcde"),
        loss="softmax",
        channels=channels,
        decoded_size=image_size,
        decoded_crop_pct=1.0,
        image_size=image_size,
        crop_pct=1.0,
        mean=(127.5,) * channels,
        std=(127.5,) * channels,
    )


def random_variables(network, image_size, channels):
    """Numbers of which no two are alike, so that none can be in another's stead."""
    image = jax.ShapeDtypeStruct((1, image_size, image_size, channels), np.float32)
    tree = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), image)
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: generator.random(leaf.shape, np.float32), dict(tree))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_variables_come_back_to_the_last_bit(name, channels):
    network = spec_of(*NETWORKS[name], channels=channels).create_model()
    variables = random_variables(network, 16, channels)
    entries = timm.to_entries(network, variables, 16)
    assert {key: value.shape for key, value in entries.items()} == timm.expected_shapes(network, 16, channels)
    assert all(value.dtype == np.float32 for value in entries.values())
    jax.tree.map(np.testing.assert_array_equal, timm.from_entries(network, entries, 16), variables)
    total = sum(leaf.size for leaf in jax.tree.leaves(variables))
    table = entries["pos_embed"].size if "fixed" in name else 0
    assert timm.num_params(timm.expected_shapes(network, 16, channels)) == total + table


def test_stacked_blocks_become_the_same_entries():
    network = spec_of(*NETWORKS["convmixer"]).create_model()
    variables = random_variables(network, 16, 3)
    expected = timm.to_entries(network, variables, 16)
    scanned, stacked = network.clone(scan=True), stack_blocks(variables)
    actual = timm.to_entries(scanned, stacked, 16)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    jax.tree.map(np.testing.assert_array_equal, timm.from_entries(scanned, actual, 16), stacked)


def test_layouts_are_pytorch_s():
    """Convolutions (out, in, height, width), dense layers (out, in), query, key and value in one; by hand."""
    network = spec_of(*NETWORKS["vit"]).create_model()
    params = random_variables(network, 16, 3)["params"]
    entries = timm.to_entries(network, {"params": params}, 16)
    assert entries["patch_embed.proj.weight"][7, 2, 1, 3] == params["stem"]["kernel"][1, 3, 2, 7]
    assert entries["blocks.1.mlp.fc1.weight"][20, 9] == params["VitBlock_1"]["mlp"]["Dense_0"]["kernel"][9, 20]
    attention = params["VitBlock_1"]["attention"]
    for i, name in enumerate(("query", "key", "value")):  # two heads of 8 channels each
        assert entries["blocks.1.attn.qkv.weight"][16 * i + 8 + 3, 5] == attention[name]["kernel"][5, 1, 3]
        assert entries["blocks.1.attn.qkv.bias"][16 * i + 8 + 3] == attention[name]["bias"][1, 3]
    assert entries["blocks.1.attn.proj.weight"][5, 8 + 3] == attention["out"]["kernel"][1, 3, 5]


def test_fixed_positions_are_written_and_only_these_are_read():
    network = spec_of("vit", VIT | dict(posemb="sincos2d")).create_model()
    variables = random_variables(network, 16, 3)
    assert "position_embedding" not in variables["params"]
    entries = timm.to_entries(network, variables, 16)
    assert entries["pos_embed"].shape == (1, 17, 16)
    np.testing.assert_array_equal(entries["pos_embed"][0, 0], 0)  # the class token
    np.testing.assert_array_equal(entries["pos_embed"][0, 1, 8:12], 0)  # sines of row 0
    with pytest.raises(UserError, match="pos_embed"):
        timm.from_entries(network, entries | {"pos_embed": entries["pos_embed"] + 1}, 16)


PUBLISHED = {
    "vit_small_patch16_224": ("vit", "S/16", {}),
    "vit_large_patch32_224": ("vit", "L/32", {}),
    "vit_huge_patch14_224": ("vit", "H/14", {}),
    "mixer_b16_224": ("mlp_mixer", "B/16", dict(gelu="exact")),
    "gmlp_s16_224": ("gmlp", "S/16", {}),
    "convmixer_768_32": ("convmixer", "768/32", {}),
    "convmixer_1024_20_ks9_p14": ("convmixer", "1024/20", {}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_timm_s_name(name):
    network, variant, fields = PUBLISHED[name]
    described = timm.describe(spec_of(network, models.resolve_fields(network, variant, **fields), 224))
    assert described.entry_point == name


def test_other_sizes_are_built_by_their_class_but_for_vit_s():
    described = timm.describe(spec_of(*NETWORKS["gmlp"]))
    assert described.entry_point is None
    assert described.constructor.startswith("timm.models.MlpMixer(num_classes=5, in_chans=3, img_size=16, ")
    assert described.constructor.endswith("mlp_layer=timm.layers.GatedMlp)")
    described = timm.describe(spec_of(*NETWORKS["vit"]))
    assert described.entry_point == "vit_base_patch16_224"
    assert (described.entry_args["embed_dim"], described.entry_args["mlp_ratio"]) == (16, 1.5)
    assert described.entry_args["act_layer"] == "gelu_tanh"


def test_ratios_give_back_whole_numbers():
    pairs = [(hidden, width) for hidden in range(1, 200) for width in range(1, 200)]
    assert [pair for pair in pairs if int(timm.ratio(*pair) * pair[1]) != pair[0]] == []


REFUSED = {
    "fnet": ("fnet", dict(patch_size=4, depth=1, hidden_dim=8, mlp_dim=8), "fnet"),
    "tanh": ("mlp_mixer", MIXER | dict(gelu="tanh"), "gelu='tanh'.*--to=npz"),
    "tanh gmlp": ("gmlp", NETWORKS["gmlp"][1] | dict(gelu="tanh"), "gelu='tanh'"),
    "epsilon": ("mlp_mixer", MIXER | dict(norm_epsilon=1e-5), "norm_epsilon=1e-05"),
    "batch norm": ("convmixer", NETWORKS["convmixer"][1] | dict(batch_norm_epsilon=1e-3), "batch_norm_epsilon=0.001"),
    "representation": ("vit", VIT | dict(rep_size=7), "rep_size=7"),
    "tutorial": ("keras_mixer", dict(patch_size=4, depth=1, hidden_dim=8, dropout_rate=0.0), "keras_mixer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_timm_has_no_class_for_is_one_line_with_what_to_use(name):
    network, fields, pattern = REFUSED[name]
    with pytest.raises(UserError, match=pattern) as caught:
        timm.describe(spec_of(network, fields))
    assert "--to=onnx or --to=stablehlo" in str(caught.value) and "\n" not in str(caught.value)


def test_relu_is_a_class_in_the_code():
    spec = spec_of("convmixer", NETWORKS["convmixer"][1] | dict(activation="relu", gelu="tanh"))
    assert "act_layer=torch.nn.ReLU" in timm.describe(spec).constructor
    flat = traverse_util.flatten_dict(dataclasses.asdict(timm.describe(spec)))
    assert flat[("first_conv",)] == "stem.0"
