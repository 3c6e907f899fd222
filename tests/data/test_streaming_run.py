"""A run whose images are read by worker processes leaves no processes or shared memory."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

REPOSITORY = pathlib.Path(__file__).parents[2]
CONFIG = """
from patchnets.config import common

def get_config():
    return common.base(
        dataset=dict(
            name="folder", path={path!r}, loader="streaming", num_workers=2, train_split="train", val_split="val",
            test_split="none",
        ),
        image_size=16,
        model=dict(name="mlp_mixer", patch_size=8, depth=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32),
        augment=dict(crop_scale_min=0.3, flip=True),
        normalize="symmetric",
        batch_size=16,
        total_steps=6,
        eval_every_steps=3,
        log_every_steps=3,
        schedule=dict(warmup_steps=1),
        mesh=dict(data=1),
        tensorboard=False,
        plots=False,
    )
"""


@pytest.fixture
def config(tmp_path):
    """Of 32 and 20 JPEGs of real photographs, in two classes."""
    pictures = datasets.load_sample_images().images
    for split, count in (("train", 32), ("val", 20)):
        for i in range(count):
            path = tmp_path / "images" / split / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(pictures[i % 2][i : i + 60, i : i + 80])).save(path)
    (tmp_path / "config.py").write_text(CONFIG.format(path=str(tmp_path / "images")))
    return tmp_path / "config.py"


@pytest.mark.slow
def test_a_run_with_workers_ends_in_good_order(config, tmp_path):
    command = [sys.executable, "-m", "patchnets.main", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    mark = f"of-{tmp_path.name}-{os.getpid()}"  # by which processes that the run started are known
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | {"STREAMING_RUN": mark}, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("val loss") == 2
    assert left(mark) == []


def left(mark):
    """Processes whose environment holds a word, where the system tells."""
    actual = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes():
                actual.append(path.name)
        except OSError:
            continue
    return actual
