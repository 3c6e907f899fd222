"""Exports for timm give timm the logits of patchnets; .npz files of ViT are read by timm's own reader of these.

The code in an exported README.md is run as it stands.
"""

import importlib.util
import json
import re

import numpy as np
import pytest
from PIL import Image
from small_models import images, make_model
from trained_families import held_out_images

import patchnets
from experiments.benchmark.without_torchvision import stand_in
from patchnets import models
from patchnets.export import __main__ as program
from patchnets.inference import verify
from patchnets.models.published_sizes import PUBLISHED as PUBLISHED_SIZES
from patchnets.weights import timm as timm_layout

torch = pytest.importorskip("torch")
with stand_in():
    timm = pytest.importorskip("timm")
load_file = pytest.importorskip("safetensors.torch").load_file

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
    """What all Python of a README defines, run inside of the folder, which has a photo.jpg."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(folder)
    if importlib.util.find_spec("torchvision") is None:
        monkeypatch.setattr(timm.data, "create_transform", transform_without_torchvision)
    defined = {}
    for code in blocks:
        exec(compile(code, "README.md", "exec"), defined)
    return defined


def transform_without_torchvision(*, input_size, interpolation, mean, std, crop_pct, crop_mode):
    """timm's transform, by its documentation: resize the shorter side, crop the center, normalize."""
    assert crop_mode == "center"
    channels, size, _ = input_size

    def transform(image):
        scale = int(size / crop_pct) / min(image.size)
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling[interpolation.upper()])
        left, top = ((side - size) // 2 for side in image.size)
        image = image.crop((left, top, left + size, top + size))
        pixels = np.asarray(image, np.float32).reshape(size, size, channels) / 255
        return torch.from_numpy(((pixels - np.array(mean)) / np.array(std)).astype(np.float32).transpose(2, 0, 1))

    return transform


def save_photo(path, side):
    """A half-transparent square PNG, on its side by its EXIF header, called a JPEG as in README.md."""
    pixels = np.random.default_rng(2).integers(0, 256, (side, side, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, "PNG", exif=exif)


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
    save_photo(tmp_path / "folder" / "photo.jpg", 24)
    defined = run_readme(tmp_path / "folder", monkeypatch)
    np.testing.assert_allclose(
        logits_by(defined["network"], model.preprocess(pictures)), expected, rtol=1e-5, atol=1e-5
    )
    check_photo(model, tmp_path / "folder", defined)
    loaded = patchnets.load(tmp_path / "folder")
    assert verify.same_variables(loaded.variables, model.variables)


@pytest.mark.parametrize("channels", [1, 3])
def test_transformers_call_of_timm_gives_the_same_logits(channels, tmp_path):
    """transformers (TimmWrapperForImageClassification) passes num_classes, and then model_args as they stand."""
    model = make_model("vit", {}, channels=channels, mean=(110.0,) * channels, std=(60.0,) * channels)
    model.export(tmp_path / "folder", "timm")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    network = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
    network.load_state_dict(load_file(tmp_path / "folder" / "model.safetensors"))
    pictures = images(5, channels=channels)
    actual = logits_by(network.eval(), model.preprocess(pictures))
    np.testing.assert_allclose(actual, model.logits(pictures), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["mlp_mixer", "gmlp", "convmixer", "vit"])
def test_timm_computes_the_logits_of_a_trained_network(family, families, tmp_path, monkeypatch, capsys):
    arguments = [str(families.workdir(family)), "--to=timm", f"--output={tmp_path / 'folder'}"]
    assert program.main(["export", *arguments]) == 0
    assert f"timm {timm.__version__}" in capsys.readouterr().out
    model = families.model(family)
    save_photo(tmp_path / "folder" / "photo.jpg", 8)
    network = run_readme(tmp_path / "folder", monkeypatch)["network"]
    expected = model.logits(held_out_images())
    assert expected.std() > 0.5 and len(set(expected.argmax(axis=1))) > 3  # or agreement would say little
    actual = logits_by(network, model.preprocess(held_out_images()))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def check_photo(model, folder, defined):
    """The probabilities that README.md's code computed of photo.jpg are those of patchnets."""
    probabilities = defined["probabilities"].numpy()[0]
    np.testing.assert_allclose(probabilities, model.probabilities(folder / "photo.jpg")[0], rtol=1e-4, atol=1e-6)
    (predicted,) = model.predict(folder / "photo.jpg", topk=1)
    assert defined["labels"][probabilities.argmax()] == predicted[0][0]


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("exif", [True, False])
@pytest.mark.parametrize("background", ["white", "black", "none"])
def test_the_readme_s_code_turns_images_and_lays_them_on_the_background_of_training(
    exif, background, loss, tmp_path, monkeypatch
):
    model = make_model("vit", exif_orientation=exif, background=background, loss=loss)
    model.export(tmp_path / "folder", "timm", verified=False)
    save_photo(tmp_path / "folder" / "photo.jpg", 16)
    check_photo(model, tmp_path / "folder", run_readme(tmp_path / "folder", monkeypatch))
    other = make_model("vit", exif_orientation=not exif, background="black" if background == "white" else "white")
    photo = tmp_path / "folder" / "photo.jpg"
    assert np.abs(other.preprocess(photo) - model.preprocess(photo)).max() > 0.1  # so that the rules matter


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
    save_photo(tmp_path / "folder" / "photo.jpg", 2 * size)
    defined = run_readme(tmp_path / "folder", monkeypatch)
    check_photo(model, tmp_path / "folder", defined)
    network = defined["network"]
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
