"""Exports for timm give timm the logits of patchnets; .npz files of ViT are read by timm's own reader of these.

The code in an exported README.md is run as it stands.
"""

import re

import numpy as np
import pytest
from small_models import images, make_model

import patchnets
from experiments.benchmark.without_torchvision import stand_in
from patchnets import models
from patchnets.inference import verify
from patchnets.models.published_sizes import PUBLISHED as PUBLISHED_SIZES
from patchnets.weights import timm as timm_layout

torch = pytest.importorskip("torch")
with stand_in():
    timm = pytest.importorskip("timm")
pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # PyTorch's

MEAN = dict(pool_type="gap", gelu="exact")
VITS = {
    "vit": {},
    "vit, exact": dict(gelu="exact"),
    "vit, mean then norm": MEAN | dict(norm_after_pooling=True),
    "vit, norm then mean": MEAN,
    "vit, class token, norm after pooling": dict(norm_after_pooling=True),
    "vit, layer scale": dict(layer_scale=0.1),
    "vit, attention pooling": dict(pool_type="map"),
    "vit, attention pooling, norm after": dict(pool_type="map", norm_after_pooling=True),
    "vit, fixed positions": dict(posemb="sincos2d"),
    "vit, fixed positions, mean": MEAN | dict(posemb="sincos2d"),
    "vit, no positions": MEAN | dict(posemb="none"),
    "vit, stacked": dict(scan=True),
    "vit, ratio": dict(hidden_dim=18, mlp_dim=25),
}
SMALL = {
    **{name: ("vit", fields) for name, fields in VITS.items()},
    "mixer": ("mlp_mixer", {}),
    "mixer, stacked": ("mlp_mixer", dict(scan=True)),
    "gmlp": ("gmlp", {}),
    "convmixer": ("convmixer", {}),
    "convmixer, relu, kernel 4": ("convmixer", dict(activation="relu", kernel_size=4)),
}


def run_readme(folder, monkeypatch):
    """What the first Python of a README defines, run inside of the folder."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(folder)
    defined = {}
    exec(compile(code, "README.md", "exec"), defined)
    return defined["network"]


def logits_by(network, inputs):
    with torch.inference_mode():
        return network(torch.from_numpy(np.array(inputs).transpose(0, 3, 1, 2).copy())).numpy()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SMALL)
def test_timm_gives_the_same_logits(name, channels, tmp_path, monkeypatch):
    kind, fields = SMALL[name]
    model = make_model(kind, fields, channels=channels, mean=(110.0,) * channels, std=(60.0,) * channels)
    report = model.export(tmp_path / "folder", "timm")
    assert report.comparison.by == f"timm {timm.__version__}"
    assert report.comparison.difference < 1e-5 and report.comparison.agree == 32
    pictures = images(5, channels=channels)
    expected = model.logits(pictures)
    assert expected.std() > 0.1  # or agreement would say little
    network = run_readme(tmp_path / "folder", monkeypatch)
    np.testing.assert_allclose(logits_by(network, model.preprocess(pictures)), expected, rtol=1e-5, atol=1e-5)
    loaded = patchnets.load(tmp_path / "folder")
    assert verify.same_variables(loaded.variables, model.variables)


PUBLISHED = {
    "vit_tiny_patch16_224": ("vit", "Ti/16", 32),
    "vit_small_patch32_224": ("vit", "S/32", 64),
    "mixer_s32_224": ("mlp_mixer", "S/32", 64),
    "gmlp_ti16_224": ("gmlp", "Ti/16", 32),
    "convmixer_768_32": ("convmixer", "768/32", 14),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_built_by_timm_s_create_model(name, tmp_path, monkeypatch):
    kind, variant, size = PUBLISHED[name]
    fields = models.resolve_fields(kind, variant, gelu="exact", scan=True)  # one block to compile
    model = make_model(kind, fields, image_size=size, decoded_size=size, crop_pct=1.0)
    report = model.export(tmp_path / "folder", "timm")
    assert report.comparison.holds and report.comparison.agree == 32 and report.notes == ""
    network = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
    assert network.pretrained_cfg["architecture"] == name
    config = timm.data.resolve_model_data_config(network)
    assert config["input_size"] == (3, size, size) and config["interpolation"] == "bicubic"
    assert config["crop_pct"] == 1.0 and config["crop_mode"] == "center"
    np.testing.assert_allclose(config["mean"], np.array(model.spec.mean) / 255)
    np.testing.assert_allclose(config["std"], np.array(model.spec.std) / 255)
    assert list(network.pretrained_cfg["label_names"]) == list("abcde")


def test_every_entry_point_is_one_of_timm_s_and_of_the_published_size():
    """The names in `patchnets.weights.timm`, by the parameters of timm's networks, which are made without weights."""
    kinds = {
        "vit": timm_layout.VIT_NAMES,
        "mlp_mixer": timm_layout.MIXER_NAMES,
        "gmlp": timm_layout.GMLP_NAMES,
        "convmixer": timm_layout.CONVMIXER_NAMES,
    }
    for kind, names in kinds.items():
        for variant, name in names.items():
            with torch.device("meta"):
                network = timm.create_model(name, num_classes=1000)
            count = sum(value.numel() for value in network.parameters())
            assert count == PUBLISHED_SIZES[kind, variant].params, name


@pytest.mark.parametrize("name", ["vit", "vit, exact", "vit, attention pooling", "vit, norm then mean"])
def test_timm_s_reader_of_official_files_reads_ours(name, tmp_path):
    kind, fields = SMALL[name]
    model = make_model(kind, fields)
    model.export(tmp_path / "folder", "npz")
    network = timm.models.VisionTransformer(**timm_layout.describe(model.spec).class_args)
    network.load_pretrained(str(tmp_path / "folder" / "model.npz"))
    pictures = images(5)
    np.testing.assert_allclose(
        logits_by(network.eval(), model.preprocess(pictures)), model.logits(pictures), rtol=1e-5, atol=1e-5
    )
