"""Configurations with values that no network has, and arrays that would take memory: one line each."""

import json
import shutil
import tracemalloc

import numpy as np
import official
import pytest
import small_models
from small_models import entries_of, write

import patchnets
from patchnets.errors import RunError, UserError
from patchnets.weights.pretrained import read_pretrained

HUGE = 10**400  # no float holds it
TIMM = {
    "mean": dict(pretrained_cfg=dict(mean=[HUGE] * 3)),
    "std": dict(pretrained_cfg=dict(std=[-HUGE, 1, 1])),
    "crop": dict(pretrained_cfg=dict(crop_pct=HUGE)),
    "no crop": dict(pretrained_cfg=dict(crop_pct=-0.0)),
    "least crop": dict(pretrained_cfg=dict(crop_pct=5e-324)),
    "crop of nan": dict(pretrained_cfg=dict(crop_pct=float("nan"))),
    "heads": dict(model_args=dict(num_heads=HUGE)),
    "layer scale": dict(model_args=dict(num_heads=2, init_values=HUGE)),
    "pooling": dict(global_pool="x" * 10**5),
    "names": dict(label_names={"0": HUGE}),
    "flat": dict(mean=[HUGE] * 3),
}
TRANSFORMERS = {
    "heads": (dict(num_attention_heads=[2]), {}),
    "epsilon": (dict(layer_norm_eps=HUGE), {}),
    "epsilon of nan": (dict(layer_norm_eps=float("nan")), {}),
    "mean": ({}, dict(image_mean=[HUGE] * 3)),
    "size": ({}, dict(size={"shortest_edge": HUGE})),
    "crop size": ({}, dict(do_center_crop=True, crop_size={"height": float("inf")})),
    "resampling": ({}, dict(resample=[3])),
}
OWN = {
    "mean": [HUGE] * 3,
    "std": [0.0, 1.0, 1.0],
    "value_ranges": [[0, HUGE]],
    "interpolation": ["bicubic"],
    "background": {},
    "loss": [],
    "decoded_crop_pct": HUGE,
    "shorter_side": 8,
    "channels": HUGE,
    "classes": [["a"]],
    "fields": None,
    "network": "no such",
    "format": HUGE,
}


def refused(source):
    with pytest.raises((RunError, UserError)) as caught:
        read_pretrained(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500
    return str(caught.value)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A ViT in the layouts of timm and transformers, and an export."""
    root = tmp_path_factory.mktemp("folders")
    model = small_models.make_model("vit", dict(layer_scale=0.1))
    write(root / "timm", entries_of(model))
    small_models.make_model("vit").export(root / "own", "npz", verified=False)
    return root


@pytest.mark.parametrize("what", TIMM)
def test_values_in_a_configuration_of_timm(what, folders):
    config = dict(model_args=dict(num_heads=2)) | TIMM[what]
    (folders / "timm" / "config.json").write_text(json.dumps(config))
    refused(folders / "timm")


@pytest.mark.parametrize("what", TRANSFORMERS)
def test_values_in_configurations_of_transformers(what, folders):
    config, processor = TRANSFORMERS[what]
    entries = official.vit_of_transformers(official.vit())
    write(folders / "hf", entries, dict(num_attention_heads=2) | config, processor)
    refused(folders / "hf")


@pytest.mark.parametrize("name", OWN)
def test_values_in_model_json(name, folders):
    path = folders / "own" / "model.json"
    content = path.read_text()
    path.write_text(json.dumps(json.loads(content) | {name: OWN[name]}))
    try:
        refused(folders / "own")
    finally:
        path.write_text(content)


@pytest.mark.parametrize("fields", [dict(depth=2**20), dict(hidden_dim=2**20), dict(depth="2"), dict(depth=None)])
def test_sizes_in_model_json_are_compared_with_the_file_before_a_network_is_made(fields, folders):
    path = folders / "own" / "model.json"
    content = path.read_text()
    values = json.loads(content)
    path.write_text(json.dumps(values | dict(fields=values["fields"] | fields)))
    try:
        refused(folders / "own")
    finally:
        path.write_text(content)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_export_with_numbers_that_are_not_finite_is_refused(value, folders, tmp_path):
    shutil.copytree(folders / "own", tmp_path / "own")
    with np.load(folders / "own" / "model.npz") as archive:
        np.savez(tmp_path / "own" / "model.npz", **{**archive, "head/bias": np.full(5, value, np.float32)})
    with pytest.raises(RunError, match="'head/bias' holds numbers that are not finite"):
        patchnets.load(tmp_path / "own")


@pytest.mark.parametrize("content", ["", "[" * 10**5, "1" + "0" * 5000, "null", "[]", '"a"', "\ufeff{}", '{"a": 1'])
@pytest.mark.parametrize("kind", ["timm", "own"])
def test_what_is_no_object_of_json(kind, content, folders):
    path = folders / kind / ("config.json" if kind == "timm" else "model.json")
    kept = path.read_text() if path.exists() else "{}"
    path.write_text(content)
    try:
        refused(folders / kind)
    finally:
        path.write_text(kept)


def test_a_configuration_of_gigabytes_is_not_read(folders):
    with (folders / "timm" / "config.json").open("wb") as file:
        file.truncate(2**33)
    assert "and a configuration of at most" in refused(folders / "timm")


def test_a_table_of_positions_is_not_made_for_a_file_that_holds_nothing_of_such_a_size(tmp_path):
    block = "Transformer/encoderblock_0/"
    np.savez(
        tmp_path / "a.npz",
        **{
            "embedding/kernel": np.zeros((1, 1, 3, 1024), np.float32),  # 224 x 224 positions of 1024 numbers
            f"{block}MlpBlock_3/Dense_0/kernel": np.zeros((1, 1), np.float32),
            f"{block}MultiHeadDotProductAttention_1/query/kernel": np.zeros((1, 1, 1), np.float32),
        },
    )
    tracemalloc.start()
    try:
        assert "which the network of its other arrays needs" in refused(tmp_path / "a.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


def test_blocks_that_are_not_counted_from_0_are_refused(tmp_path):
    entries = entries_of(small_models.make_model("mlp_mixer"))
    apart = {name.replace("blocks.1.", "blocks.999."): value for name, value in entries.items()}
    assert "has 2 blocks; expected from 1 to 1,000, counted from 0" in refused(write(tmp_path / "a", apart))
