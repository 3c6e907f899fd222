"""The commands of docs/own_images.md, run as they stand on small images and small weights made here."""

import importlib
import json
import pathlib
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from patchnets.weights.files import write_safetensors

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "own_images.md").read_text()
WIDTH, PATCHES = 12, 9
CONFIG = dict(
    model_type="dinov2", hidden_size=WIDTH, num_attention_heads=2, hidden_act="gelu", layer_norm_eps=1e-6, image_size=42
)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def write_weights(folder):
    """Random weights of a block in the layout of transformers' Dinov2Model."""
    random, layer = np.random.default_rng(0), "encoder.layer.0."
    shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.position_embeddings": (1, 1 + PATCHES, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        f"{layer}mlp.fc1.weight": (2 * WIDTH, WIDTH),
        f"{layer}mlp.fc1.bias": (2 * WIDTH,),
        f"{layer}mlp.fc2.weight": (WIDTH, 2 * WIDTH),
        f"{layer}mlp.fc2.bias": (WIDTH,),
    }
    for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
        shapes |= {f"{layer}attention.{part}.weight": (WIDTH, WIDTH), f"{layer}attention.{part}.bias": (WIDTH,)}
    for norm in (f"{layer}norm1", f"{layer}norm2", "layernorm"):
        shapes |= {f"{norm}.weight": (WIDTH,), f"{norm}.bias": (WIDTH,)}
    shapes |= {f"{layer}layer_scale{n}.lambda1": (WIDTH,) for n in (1, 2)}
    folder.mkdir()
    arrays = {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    write_safetensors(folder / "model.safetensors", arrays)
    (folder / "config.json").write_text(json.dumps(CONFIG))


@pytest.fixture
def folder(tmp_path):
    """What the commands for the download leave, in small: photos/train/CLASS/*.jpg and dinov2; and photos.py."""
    random = np.random.default_rng(0)
    for name, count, level in (("nominal", 60, 60), ("local", 30, 120), ("global", 30, 200)):
        (tmp_path / "photos" / "train" / name).mkdir(parents=True)
        for i in range(1, count + 1):
            pixels = random.integers(level - 40, level + 40, (20, 20, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / "train" / name / f"textile_{i:04}.jpg")
    write_weights(tmp_path / "dinov2")
    (configuration,) = (code for code in blocks("python") if "get_config" in code)
    (tmp_path / "photos.py").write_text(configuration)
    return tmp_path


def carry_out(command):
    """Run a line `python -m MODULE ARGUMENTS` in this process and return its exit status."""
    python, option, module, *arguments = shlex.split(command)
    assert (python, option) == ("python", "-m")
    program = importlib.import_module(module if module == "patchnets.main" else f"{module}.__main__")
    return program.main([module, *arguments])


@pytest.mark.slow
def test_the_commands_are_carried_out(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for command in "".join(blocks("sh")).replace("\\\n", " ").splitlines():
        assert carry_out(command) == 0, f"{command}: {capsys.readouterr().err}"
    assert {row["name"] for row in json.loads((folder / "probes" / "probes.json").read_text())["probes"]} >= {"knn"}
    init = json.loads((folder / "runs" / "photos" / "init.json").read_text())
    assert init["adapted"].keys() == {"params/position_embedding"} and len(init["taken"]) > 15
    assert json.loads((folder / "runs" / "photos" / "summary.json").read_text())["test_accuracy"] > 0.4
    assert (folder / "exported" / "model.safetensors").exists()


def test_the_page_downloads_what_its_commands_use():
    (download,) = blocks("bash")
    assert "photos/train" in download and "experiments.dinov2_weights dinov2" in download
