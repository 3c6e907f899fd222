"""What README says of using a trained model is what happens: its lines are run as they stand."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from patchnets import train
from patchnets.config import common

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(language):
    """The code in a language of the section "Use a trained model"."""
    section = README.split("## Use a trained model\n")[1].split("\n## ")[0]
    (code,) = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    return code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with runs/mixer_digits, photo.png and photos/, in which README's lines are run."""
    root = tmp_path_factory.mktemp("readme")
    config = common.base(
        dataset=dict(name="digits", cache_dir=str(root)),
        image_size=8,
        model=dict(name="keras_mixer", patch_size=2, depth=1, hidden_dim=16, dropout_rate=0.0),
        batch_size=64,
        total_steps=20,
        tensorboard=False,
        plots=False,
    )
    train.train(config, root / "runs" / "mixer_digits")
    (root / "photos" / "more").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 30)).astype(np.uint8)
    Image.fromarray(pixels[0]).save(root / "photo.png")
    shutil.copy(root / "photo.png", root / "photos" / "a.png")
    Image.fromarray(pixels[1]).save(root / "photos" / "more" / "b.png")
    return root


def run(command, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{folder / 'bin'}:{environment['PATH']}"
    (folder / "bin").mkdir(exist_ok=True)
    python = folder / "bin" / "python"  # no link: an environment is recognized by where its interpreter lies
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    options = dict(cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return subprocess.run(["bash", "-euo", "pipefail", "-c", command], **options)


COMMANDS = [line for line in block("sh").splitlines() if "patchnets.demo" not in line]  # which tests/demo runs


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_carried_out(folder, command):
    done = run(command, folder)
    assert done.returncode == 0, done.stderr
    if output := re.search(r"--(?:output|explain)=(\S+)", command):
        assert (folder / output[1]).exists()


@pytest.mark.slow
def test_the_python_is_carried_out(folder):
    (folder / "readme.py").write_text(block("python"))
    done = run(f"{sys.executable} readme.py", folder)
    assert done.returncode == 0, done.stderr


def test_the_section_is_short():
    assert len(block("sh").splitlines()) == 8
    assert len([line for line in block("python").splitlines() if line]) == 6
    assert 130 <= len(README.splitlines()) <= 150
