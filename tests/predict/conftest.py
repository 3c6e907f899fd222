"""A small trained network and images for it."""

import dataclasses
import pathlib

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import patchnets
from patchnets import train
from patchnets.config import common


@dataclasses.dataclass(frozen=True)
class Trained:
    """A work directory, its model, and a folder of the first 20 images of its test split as PNG files."""

    workdir: pathlib.Path
    model: patchnets.Model
    images: pathlib.Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A Mixer that was trained on the digits for a few steps; read it, and do not change it."""
    root = tmp_path_factory.mktemp("predict")
    config = common.base(
        dataset=dict(name="digits", val_split="train[:60]", cache_dir=str(root)),
        image_size=8,
        model=dict(name="mlp_mixer", patch_size=4, depth=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32),
        batch_size=64,
        total_steps=30,
        optimizer=dict(learning_rate=1e-2),
        tensorboard=False,
        plots=False,
    )
    train.train(config, root / "run")
    (root / "images" / "more").mkdir(parents=True)
    digits = (load_digits().images[:20] * 255 / 16).round().astype(np.uint8)
    for number, image in enumerate(digits):
        folder = root / "images" / ("more" if number % 2 else "")
        Image.fromarray(image).save(folder / f"digit_{number:02d}.png")
    return Trained(root / "run", patchnets.load(root / "run"), root / "images")
