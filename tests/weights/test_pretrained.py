"""Weights of every source but official .npz become the same network with the same numbers."""

import math
import pickle
import shutil
import struct

import jax
import numpy as np
import official
import pytest
import small_models
from small_models import entries_of, write

import patchnets
from patchnets import models
from patchnets.data import decode
from patchnets.errors import RunError, UserError
from patchnets.inference import images
from patchnets.models import vit
from patchnets.weights import __main__ as command
from patchnets.weights import class_names, hub
from patchnets.weights.layout import Notes
from patchnets.weights.pretrained import read_pretrained

IMAGE = np.random.default_rng(2).standard_normal((official.SIZE, official.SIZE, 3)).astype(np.float32)
CFG = dict(input_size=[3, 16, 16], interpolation="bilinear", crop_pct=0.95, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(jax.tree.map(np.asarray, expected))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


EXACT = dict(gelu="exact")
FAMILIES = {
    "mlp_mixer": ("mlp_mixer", {}, {}),
    "gmlp": ("gmlp", {}, {}),
    "convmixer": ("convmixer", {}, dict(architecture="convmixer_1536_20")),
    "vit": ("vit", EXACT, dict(model_args=dict(num_heads=2))),
    "vit, tanh": ("vit", {}, dict(model_args=dict(num_heads=2, act_layer="gelu_tanh"))),
    "vit, mean": ("vit", EXACT | dict(pool_type="gap", norm_after_pooling=True), dict(model_args=dict(num_heads=2))),
    "vit, norm then mean": ("vit", EXACT | dict(pool_type="gap"), dict(model_args=dict(num_heads=2))),
    "vit, attention pooling": ("vit", EXACT | dict(pool_type="map"), dict(model_args=dict(num_heads=2))),
    "vit, layer scale": ("vit", EXACT | dict(layer_scale=0.1), dict(model_args=dict(num_heads=2, init_values=0.1))),
    "vit, representation": ("vit", EXACT | dict(rep_size=7), dict(model_args=dict(num_heads=2))),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_in_timm_s_layout_is_the_network_that_it_was_written_from(name, tmp_path):
    family, fields, config = FAMILIES[name]
    model = small_models.make_model(family, fields)
    labels = ["a", "b", "b", "c", "d"]
    config = config | dict(pretrained_cfg=CFG, label_names=labels, num_classes=5)
    pretrained = read_pretrained(write(tmp_path / "folder", entries_of(model), config))
    assert_same(pretrained.variables, model.variables)
    assert (pretrained.network, pretrained.fields) == (family, model.spec.fields)
    assert (pretrained.image_size, pretrained.channels, pretrained.layout) == (16, 3, "timm")
    assert pretrained.classes == ("a", "b (1)", "b (2)", "c", "d")
    assert (pretrained.crop_pct, pretrained.interpolation) == (0.95, "bilinear")
    np.testing.assert_allclose(pretrained.mean, [102, 127.5, 153])
    np.testing.assert_allclose(pretrained.std, [51, 76.5, 102])
    assert (pretrained.source, pretrained.assumed) == (str(tmp_path / "folder"), ())


def test_half_precision_counters_and_masks(tmp_path):
    model = small_models.make_model("convmixer")
    entries = {name: value.astype(jax.numpy.bfloat16) for name, value in entries_of(model).items()}
    expected = {name: value.astype(np.float32) for name, value in entries.items()}
    entries["stem.2.num_batches_tracked"] = np.array(7)
    entries["mask_token"] = np.zeros((1, 12), np.float32)
    pretrained = read_pretrained(write(tmp_path / "bf16", entries))
    assert sorted(pretrained.leftovers) == ["mask_token", "stem.2.num_batches_tracked"]
    assert_same(pretrained.variables, read_pretrained(write(tmp_path / "f32", expected)).variables)


def test_what_a_bare_file_does_not_say_is_assumed_and_said(tmp_path, monkeypatch):
    fields = EXACT | dict(hidden_dim=64, num_heads=1)
    write(tmp_path, entries_of(small_models.make_model("vit", fields)))
    (tmp_path / "model.safetensors").rename(tmp_path / "bare.safetensors")
    pretrained = read_pretrained(tmp_path / "bare.safetensors")
    assert pretrained.fields["num_heads"] == 1 and pretrained.classes == tuple("01234")
    assert pretrained.assumed == (
        "num_heads 1, 64 channels each, for the file has none",
        "numbers as class names, for the file has none",
        "mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5), crop_pct 0.9, interpolation bicubic, for the file has none",
        "gelu exact and timm's norm_epsilon, for the file has none",
    )
    for network, heads in (("vit_small_patch16_224", 6), ("timm/vit_huge_patch14_224.orig_in21k", 16), ("vit", 1)):
        if heads != 6:
            assert read_pretrained(tmp_path / "bare.safetensors", network).fields["num_heads"] == heads
        else:
            with pytest.raises(UserError, match="does not divide into"):
                read_pretrained(tmp_path / "bare.safetensors", network)
    monkeypatch.setitem(vit.SIZES, "S", dict(depth=2, hidden_dim=64, mlp_dim=24, num_heads=4))
    pretrained = read_pretrained(tmp_path / "bare.safetensors")
    assert pretrained.fields["num_heads"] == 4 and "num_heads 4, as of ViT-S" in pretrained.assumed[0]


def test_heads_that_nobody_says_are_an_error(tmp_path):
    write(tmp_path, entries_of(small_models.make_model("vit")))
    with pytest.raises(UserError, match="does not say how many heads"):
        read_pretrained(tmp_path)


def test_convmixer_s_activation(tmp_path, monkeypatch):
    write(tmp_path, entries_of(small_models.make_model("convmixer")), dict(pretrained_cfg=CFG))
    activation = lambda network=None: read_pretrained(tmp_path, network).fields["activation"]
    assert activation() == "gelu" and "activation gelu" in read_pretrained(tmp_path).assumed[0]
    assert activation("convmixer_768_32.in1k") == "relu"
    monkeypatch.setitem(models.convmixer.VARIANTS, "768/32", dict(depth=2, hidden_dim=16))
    assert activation() == "relu" and "as of ConvMixer-768/32" in read_pretrained(tmp_path).assumed[0]
    assert activation("convmixer_1024_20_ks9_p14") == "gelu"


def test_a_position_less_for_the_class_token_is_zero(tmp_path):
    entries = entries_of(small_models.make_model("vit", EXACT))
    entries["pos_embed"] = entries["pos_embed"][:, 1:]
    pretrained = read_pretrained(write(tmp_path, entries, dict(model_args=dict(num_heads=2))))
    positions = pretrained.variables["params"]["position_embedding"]
    np.testing.assert_array_equal(positions[:, 1:], entries["pos_embed"])
    np.testing.assert_array_equal(positions[0, 0], 0)


def test_thousand_classes_without_names_are_those_of_imagenet():
    names = class_names.imagenet()
    assert len(set(names)) == 1000
    expected = {
        0: "tench",
        1: "goldfish",
        207: "golden retriever",
        281: "tabby",
        517: "crane (machine)",
        999: "toilet tissue",
    }
    assert {i: names[i] for i in expected} == expected
    notes = Notes()
    assert class_names.class_names(1000, None, notes, "it") == names and "ImageNet-1k" in notes.assumed[0]


HF_CONFIG = dict(
    model_type="vit",
    num_attention_heads=2,
    hidden_act="gelu_new",
    layer_norm_eps=1e-12,
    id2label={"0": "cat", "1": "dog", "2": "owl"},
)
PROCESSOR = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=2, size={"height": 12, "width": 12})


def logits(pretrained, image=IMAGE):
    network = pretrained.spec.create_model()
    return np.asarray(jax.jit(lambda v, x: network.apply(v, x, train=False))(pretrained.variables, image[None]))[0]


def test_vit_of_transformers_gives_the_logits_of_numpy(tmp_path):
    arrays = official.vit()
    pretrained = read_pretrained(write(tmp_path, official.vit_of_transformers(arrays), HF_CONFIG, PROCESSOR))
    np.testing.assert_allclose(logits(pretrained), official.vit_logits(arrays, IMAGE, 1e-12), rtol=1e-5, atol=1e-5)
    assert pretrained.classes == ("cat", "dog", "owl") and pretrained.layout == "transformers (vit)"
    assert (pretrained.fields["norm_epsilon"], pretrained.interpolation, pretrained.crop_pct) == (1e-12, "bilinear", 1)
    assert pretrained.assumed == (
        "the center square of an image, for squeezing all of it into a square is not available",
    )


def test_the_epsilon_of_vit_s_norms_is_that_of_its_field():
    tokens = 1e-3 * np.random.default_rng(0).standard_normal((1, 4, 8)).astype(np.float32)
    block = vit.VitBlock(num_heads=2, mlp_dim=4, norm_epsilon=1e-2)
    captured = jax.jit(
        lambda x: block.init_with_output(jax.random.key(0), x, train=False, capture_intermediates=True)[1]
    )(tokens)
    actual = captured["intermediates"]["attention_norm"]["__call__"][0]
    centered = tokens - tokens.mean(-1, keepdims=True)
    np.testing.assert_allclose(actual, centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-2), rtol=1e-4)


def dinov2(arrays, prefix=""):
    """The names of transformers' Dinov2Model, with layer scale, of arrays without a head."""
    entries = {}
    table = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        ".output.dense": ".mlp.fc2",
    }
    for name, value in official.vit_of_transformers(arrays, prefix).items():
        for old, new in table.items():
            name = name if "attention.output" in name else name.replace(old, new)
        entries[name] = value
    for i in range(official.DEPTH):
        for n in (1, 2):
            entries[f"{prefix}encoder.layer.{i}.layer_scale{n}.lambda1"] = np.full(official.WIDTH, 0.5 * n, np.float32)
    return entries | {f"{prefix}embeddings.mask_token": np.zeros((1, official.WIDTH), np.float32)}


def with_scales_folded(arrays):
    """Layer scale multiplies the output of a branch, and so does its last dense layer."""
    folded = dict(arrays)
    for i in range(official.DEPTH):
        for layer, factor in (("MultiHeadDotProductAttention_1/out", 0.5), ("MlpBlock_3/Dense_1", 1.0)):
            for leaf in ("kernel", "bias"):
                name = f"Transformer/encoderblock_{i}/{layer}/{leaf}"
                folded[name] = arrays[name] * np.float32(factor)
    return folded


def test_dinov2_of_transformers_gives_the_features_of_numpy(tmp_path):
    arrays = official.vit(classes=0)
    config = dict(model_type="dinov2", num_attention_heads=2, hidden_act="gelu_new", layer_norm_eps=1e-6)
    processor = dict(
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        resample=3,
        do_center_crop=True,
        crop_size={"height": 8, "width": 8},
        size={"shortest_edge": 10},
    )
    pretrained = read_pretrained(write(tmp_path, dinov2(arrays), config, processor))
    expected = official.vit_logits(with_scales_folded(arrays), IMAGE)
    np.testing.assert_allclose(logits(pretrained), expected, rtol=1e-5, atol=1e-5)
    assert pretrained.classes == () and pretrained.leftovers == ("embeddings.mask_token",)
    assert (pretrained.crop_pct, pretrained.fields["layer_scale"]) == (0.8, 1.0)
    (line,) = pretrained.assumed
    assert line.startswith("image_size 12, that of the position embeddings; the preprocessor makes 8 px")
    assert "bicubic_no_antialias" in line


def test_a_bare_file_of_transformers_and_a_network_without_its_head(tmp_path, monkeypatch):
    entries = official.vit_of_transformers(official.vit(classes=0), "")
    entries["pooler.dense.weight"] = np.zeros((8, 8), np.float32)
    monkeypatch.setitem(vit.SIZES, "S", dict(depth=2, hidden_dim=8, mlp_dim=12, num_heads=2))
    pretrained = read_pretrained(write(tmp_path, entries))
    assert pretrained.leftovers == ("pooler.dense.weight",) and pretrained.classes == ()
    assert "hidden_act gelu and layer_norm_eps 1e-12" in pretrained.assumed[0]


WRONG_CONFIG = {
    "no object": ([1], RunError, "holds no JSON object"),
    "family": (dict(architecture="gmlp_s16_224"), UserError, "not of the architecture gmlp_s16_224"),
    "activation": (dict(model_args=dict(num_heads=2, act_layer="silu")), UserError, "act_layer='silu'"),
    "heads": (dict(model_args=dict(num_heads="2")), UserError, "num_heads='2' is no int"),
    "no heads": (dict(model_args=dict(num_heads=0)), UserError, "num_heads=0"),
    "negative heads": (dict(model_args=dict(num_heads=-2)), UserError, "num_heads=-2"),
    "pooling": (dict(global_pool="avg"), UserError, "'cls_token' and pools by global_pool=avg"),
    "unknown pooling": (dict(global_pool="max"), UserError, "global_pool='max' is not available"),
    "mean": (dict(pretrained_cfg=dict(mean=["a"])), UserError, "mean="),
    "mean of nan": (dict(pretrained_cfg=dict(mean=[float("nan")] * 3)), UserError, "mean="),
    "two channels": (dict(pretrained_cfg=dict(mean=[0.1, 0.2])), UserError, "is for 2 channels"),
    "std": (dict(pretrained_cfg=dict(std=[0.0] * 3)), UserError, "std="),
    "crop": (dict(pretrained_cfg=dict(crop_pct=2.0)), UserError, "decoded_crop_pct=2.0"),
    "labels": (dict(label_names=[1, 2]), UserError, "class names"),
    "background": (dict(background="pink"), UserError, "background='pink'"),
    "turned": (dict(exif_orientation=1), UserError, "exif_orientation="),
}


@pytest.mark.parametrize("what", WRONG_CONFIG)
def test_a_configuration_that_does_not_fit_is_one_line(what, tmp_path):
    config, kind, words = WRONG_CONFIG[what]
    heads = dict(model_args=dict(num_heads=2)) if isinstance(config, dict) else {}
    write(tmp_path, entries_of(small_models.make_model("vit")), heads | config if heads else config)
    with pytest.raises(kind, match=words) as caught:
        read_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["head.weight", "patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"])
def test_entries_without_axes_are_one_line(name, tmp_path):
    entries = entries_of(small_models.make_model("vit")) | {name: np.float32(1)}
    with pytest.raises(UserError, match=r"has shape \(\)"):
        read_pretrained(write(tmp_path, entries, dict(model_args=dict(num_heads=2))))


def test_a_network_that_is_no_name_is_one_line(tmp_path):
    write(tmp_path, entries_of(small_models.make_model("mlp_mixer")))
    with pytest.raises(UserError, match="network='mixr_b16' is neither one of mlp_mixer, fnet"):
        read_pretrained(tmp_path, "mixr_b16")
    with pytest.raises(UserError, match="holds the weights of mlp_mixer, not of network=vit"):
        read_pretrained(tmp_path, "vit")


def test_an_entry_that_fits_no_parameter_is_named(tmp_path):
    entries = entries_of(small_models.make_model("vit")) | {"reg_token": np.zeros((1, 4, 16), np.float32)}
    with pytest.raises(UserError, match=r"an entry 'reg_token' of shape \(1, 4, 16\)"):
        read_pretrained(write(tmp_path, entries, dict(model_args=dict(num_heads=2))))
    with pytest.raises(UserError, match="its first entry is 'a'"):
        read_pretrained(write(tmp_path / "other", {"a": np.zeros(3, np.float32)}))


def header_of(size, content=b"{}"):
    return struct.pack("<Q", size) + content


HOSTILE = {
    "header of 2^60 bytes": ("a.safetensors", header_of(2**60), "cannot be read"),
    "more than the file has": (
        "a.safetensors",
        header_of(63, b'{"a":{"dtype":"F32","shape":[1048576],"data_offsets":[0,4194304]}}'),
        "cannot be read",
    ),
    "empty": ("a.safetensors", b"", "cannot be read"),
    "torn": ("a.npz", b"PK\x03\x04" + b"\0" * 100, "cannot be read"),
    "pickle named .npz": ("a.npz", pickle.dumps({"a": 1}), "cannot be read"),
    "pickle named .safetensors": ("a.safetensors", pickle.dumps({"a": 1}), "cannot be read"),
    "text": ("a.safetensors", b"version https://git-lfs.github.com/spec/v1", "cannot be read"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_one_line_and_status_1(what, tmp_path, capsys):
    name, content, words = HOSTILE[what]
    (tmp_path / name).write_bytes(content)
    assert command.main(["weights", str(tmp_path / name)]) == 1
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1 and printed.out == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone", "there is no"),
        (".", "has no model.safetensors"),
        ("pickled", "is a pickle, which may run code and is not read"),
        ("sharded", "in several files"),
        ("a" * 5000, "is no path"),
        ("hf-hub:a", "is no id of the hub"),
        ("hf-hub:../..", "is no id of the hub"),
        ("hf-hub:a/b@../../c", "is no id of the hub"),
        ("timm:", "is no id of the hub"),
    ],
)
def test_what_is_no_source_is_one_line_and_status_2(name, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, file in (("pickled", "pytorch_model.bin"), ("sharded", "model.safetensors.index.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_bytes(b"{}")
    assert command.main(["weights", name]) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_numbers_that_are_not_finite_are_refused(value, tmp_path):
    entries = entries_of(small_models.make_model("mlp_mixer"))
    entries["head.bias"] = np.full(5, value, np.float32)
    with pytest.raises(RunError, match=r"'head\.bias' holds numbers that are not finite"):
        _ = read_pretrained(write(tmp_path, entries)).variables


def test_types_that_are_no_floats_are_refused_by_the_header(tmp_path):
    entries = entries_of(small_models.make_model("mlp_mixer")) | {"head.bias": np.zeros(5, np.int64)}
    with pytest.raises(RunError, match=r"'head\.bias' is int64; expected float32"):
        read_pretrained(write(tmp_path, entries))


COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the hub with one network under two revisions."""
    for name in ("HF_HUB_CACHE", "HF_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    repo = tmp_path / "hub" / "models--timm--tiny.in1k"
    write(repo / "snapshots" / COMMIT, entries_of(small_models.make_model("mlp_mixer")), dict(pretrained_cfg=CFG))
    (repo / "refs" / "pr").mkdir(parents=True)
    for revision in ("main", "v1", "pr/1"):
        (repo / "refs" / revision).write_text(COMMIT)
    return tmp_path / "hub"


@pytest.mark.parametrize(
    "name",
    [
        "timm:tiny.in1k",
        "hf-hub:timm/tiny.in1k",
        "timm:tiny.in1k@v1",
        "hf-hub:timm/tiny.in1k@pr/1",
        f"timm:tiny.in1k@{COMMIT}",
    ],
)
def test_weights_in_the_hub_s_cache_are_read_without_a_network(name, cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pretrained = read_pretrained(name)
    assert (pretrained.source, pretrained.network) == (name, "mlp_mixer")
    assert pretrained.path == cache / "models--timm--tiny.in1k" / "snapshots" / COMMIT


def test_the_cache_is_where_the_environment_says(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "other"))
    assert hub.cached("timm/tiny.in1k", "main") is None
    cache.rename(tmp_path / "other")
    assert hub.cached("timm/tiny.in1k", "main") is not None
    for name in ("HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert hub.cache_folder() == tmp_path / "home/.cache/huggingface/hub"


def test_what_is_not_in_the_cache_says_what_to_put_where(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set; .* https://huggingface.co/timm/tiny.in1k ") as caught:
        read_pretrained("timm:tiny.in1k@v2")
    assert str(cache) in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'patchnets\[hub\]'"):
        read_pretrained("timm:other")


def test_a_ref_that_leaves_the_cache_is_not_followed(cache, tmp_path):
    write(tmp_path / "outside", entries_of(small_models.make_model("mlp_mixer")))
    (cache / "models--timm--tiny.in1k" / "refs" / "main").write_text("../../../outside")
    assert hub.cached("timm/tiny.in1k", "main") is None


@pytest.mark.slow
def test_a_loaded_model_predicts_with_its_classes_and_exports_again(tmp_path):
    model = small_models.make_model("mlp_mixer")
    config = dict(label_names=list("vwxyz"), pretrained_cfg=CFG | dict(interpolation="bicubic", crop_pct=1.0))
    loaded = patchnets.load(write(tmp_path / "folder", entries_of(model), config))
    assert loaded.classes == tuple("vwxyz")
    assert {name for name, _ in loaded.predict(small_models.images(1), topk=5)[0]} == set("vwxyz")
    loaded.export(tmp_path / "npz", to="npz")
    again = patchnets.load(tmp_path / "npz")
    assert_same(again.variables, model.variables)
    assert again.spec == loaded.spec
    assert_same(read_pretrained(tmp_path / "npz" / "model.npz").variables, model.variables)
    assert "trained" not in (tmp_path / "npz" / "README.md").read_text().split("## Use")[0]


def test_stacked_blocks_are_unstacked_for_others_and_stacked_for_the_network(tmp_path):
    model = small_models.make_model("mlp_mixer", dict(scan=True))
    model.export(tmp_path / "npz", to="npz", verified=False)
    assert "MixerBlock_1" in read_pretrained(tmp_path / "npz").variables["params"]
    assert_same(patchnets.load(tmp_path / "npz").variables, model.variables)


def test_a_network_without_a_head_has_features_and_no_classes(tmp_path):
    arrays = official.vit(classes=0)
    np.savez(tmp_path / "a.npz", **arrays)
    model = patchnets.load(tmp_path / "a.npz")
    images = small_models.images(2)
    features = model.features(images)
    expected = official.vit_logits(arrays, np.asarray(model.preprocess(images))[1])
    np.testing.assert_allclose(features[1], expected, rtol=1e-5, atol=1e-5)
    for call in (model.predict, model.probabilities, model.logits, lambda images: model.evaluate((images, [0, 1]))):
        with pytest.raises(UserError, match="has no classes: its weights have no head"):
            call(images)


@pytest.mark.parametrize(("width", "height"), [(50, 37), (37, 50), (40, 40), (500, 3)])
@pytest.mark.parametrize("crop_pct", [0.95, 0.875, 0.6, 1.0])
def test_images_are_resized_and_cut_as_timm_does(crop_pct, width, height, tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    cfg = CFG | dict(crop_pct=crop_pct)
    loaded = patchnets.load(write(tmp_path, entries_of(small_models.make_model("mlp_mixer")), dict(pretrained_cfg=cfg)))
    expected = timm_transform(decode.Image.fromarray(image), 16, crop_pct, decode.Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(images.decode_one(image, loaded.spec), expected)
    monkeypatch.setattr(decode, "LARGEST_RESIZED", 0)  # of a very long image only the center is resized
    np.testing.assert_allclose(images.decode_one(image, loaded.spec), expected, atol=2)


def timm_transform(image, size, crop_pct, resampling):
    """timm's evaluation transform by torchvision's rules: all of the image is resized, its shorter side to
    floor(size / crop_pct), the longer one rounded down; then the center is cut, its corner rounded."""
    shorter = math.floor(size / crop_pct)
    sides = [int(shorter * side / min(image.size)) for side in image.size]
    left, top = (round((side - size) / 2) for side in sides)
    return np.asarray(image.resize(sides, resampling).crop((left, top, left + size, top + size)), np.float32)


@pytest.mark.slow
def test_logits_of_a_jpeg_are_those_of_timm_s_transform(tmp_path):
    model = small_models.make_model("vit", EXACT)
    cfg = CFG | dict(crop_pct=0.9, interpolation="bicubic")
    config = dict(pretrained_cfg=cfg, model_args=dict(num_heads=2))
    loaded = patchnets.load(write(tmp_path / "vit", entries_of(model), config))
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    decode.Image.fromarray(noise).resize((500, 375)).save(tmp_path / "photo.jpg")
    pixels = timm_transform(decode.Image.open(tmp_path / "photo.jpg"), 16, 0.9, decode.Image.Resampling.BICUBIC)
    inputs = (pixels / 255 - np.float32(CFG["mean"])) / np.float32(CFG["std"])
    expected = loaded.network.apply(loaded.variables, inputs[None], train=False)
    np.testing.assert_allclose(loaded.logits([tmp_path / "photo.jpg"]), expected, rtol=1e-4, atol=1e-5)


def test_a_crop_that_would_take_a_huge_image_is_refused(tmp_path):
    cfg = dict(pretrained_cfg=CFG | dict(crop_pct=1e-5))
    with pytest.raises(UserError, match="shorter_side=1599999 cannot be used"):
        read_pretrained(write(tmp_path, entries_of(small_models.make_model("mlp_mixer")), cfg))


def test_a_configuration_of_older_releases_of_timm_has_its_keys_at_the_top(tmp_path):
    entries = entries_of(small_models.make_model("mlp_mixer"))
    config = dict(architecture="mixer_s16_224", num_classes=5)
    new = read_pretrained(
        write(tmp_path / "new", entries, config | dict(pretrained_cfg=CFG, label_names=list("vwxyz")))
    )
    flat = read_pretrained(write(tmp_path / "old", entries, config | CFG | dict(labels=list("vwxyz"))))
    assert flat.spec == new.spec and flat.assumed == new.assumed == () and flat.crop_pct == CFG["crop_pct"]


def test_the_command_prints_what_is_inside(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **official.mixer())
    assert command.main(["weights", str(tmp_path / "a.npz")]) == 0
    printed = capsys.readouterr().out
    norm = np.linalg.norm(official.mixer()["stem/kernel"].astype(np.float64))
    rows = [" ".join(line.split()) for line in printed.splitlines()]
    assert f"stem/kernel 4 x 4 x 3 x 8 float32 {norm:.4g}" in rows
    assert "mlp_mixer: patch_size=4, depth=2, hidden_dim=8, tokens_mlp_dim=5, channels_mlp_dim=12\n" in printed
    total = sum(array.size for array in official.mixer().values())
    assert f"parameters  {total:,}\n" in printed and "assumed     numbers as class names" in printed


def test_the_command_reads_no_array_if_it_need_not(tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "a.npz", **official.mixer())
    monkeypatch.setattr(np, "load", lambda *args, **kwargs: pytest.fail("the arrays were read"))
    assert command.main(["weights", str(tmp_path / "a.npz"), "--norms=off"]) == 0
    assert "stem/kernel" in capsys.readouterr().out


def test_a_run_s_checkpoint_of_a_file_is_refused(tmp_path):
    shutil.copytree(write(tmp_path / "a", entries_of(small_models.make_model("mlp_mixer"))), tmp_path / "b")
    with pytest.raises(UserError, match="holds one set of weights; leave out checkpoint=latest"):
        patchnets.load(tmp_path / "b", "latest")
