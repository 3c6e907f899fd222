"""A run that is continued on another number of devices is the run that it was."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import patchnets
from patchnets import train
from patchnets.config import common
from patchnets.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 48 training and 16 test images of 12 x 9 pixels in two classes; in 8 x 8 pixels 9 KiB."""
    root, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 16)):
        for i in range(count):
            name = "dark" if i % 2 else "light"
            levels = generator.integers(0, 160, (9, 12, 3)) + (0 if i % 2 else 90)
            (root / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(levels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


def run(photos, path, steps, devices, cache, **values):
    """Train to a step on a number of devices; the images fit on the devices if there are at least two."""
    dataset = dict(name="folder", path=str(photos), num_workers=0, cache_dir=str(cache), on_device_sharding="sharded")
    settings = dict(
        image_size=8,
        model=dict(name="mlp_mixer", patch_size=4, depth=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32),
        batch_size=16,
        eval_every_steps=4,
        schedule=dict(name="constant"),
        optimizer=dict(learning_rate=1e-2),
        tensorboard=False,
        plots=False,
    )
    config = common.base(
        dataset=dataset | dict(max_on_device_gib=8000 / 2**30), total_steps=steps, mesh=dict(data=devices), **settings
    )
    config.update_from_flattened_dict(values)
    return train.train(config, path)


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(photos, tmp_path_factory):
    root = tmp_path_factory.mktemp("uninterrupted")
    run(photos, root / "run", 12, 2, root)
    return root / "run"


@pytest.mark.parametrize("meshes", [(1, 2, 8), (8, 1, 2)], ids=str)
def test_a_run_goes_on_where_auto_chooses_the_other_loader(meshes, photos, uninterrupted, tmp_path, capsys):
    for steps, devices in zip((4, 8, 12), meshes):
        summary = run(photos, tmp_path / "run", steps, devices, tmp_path)
        printed = capsys.readouterr().out
        assert ("read while training" in printed) == (devices == 1)
        assert steps == 4 or f"resuming from the checkpoint of step {steps - 4}" in printed
        assert summary["steps"] == steps
    expected = [row for row in rows(uninterrupted) if "test_loss" not in row]
    actual = [row for row in rows(tmp_path / "run") if "test_loss" not in row]
    for row, other in zip(actual, expected, strict=True):
        for name in row.keys() - {"images_per_second"}:
            assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
    images = sorted((photos / "test").rglob("*.png"))
    first, second = (patchnets.load(path, 12).probabilities(images) for path in (tmp_path / "run", uninterrupted))
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_changed_images_are_refused_all_the_same_on_another_mesh(photos, tmp_path):
    own = shutil.copytree(photos, tmp_path / "own")
    run(own, tmp_path / "run", 4, 8, tmp_path)
    for path in (own / "train").rglob("*.png"):
        Image.new("RGB", (12, 9)).save(path)
    with pytest.raises(UserError, match="the data have changed"):
        run(own, tmp_path / "run", 8, 1, tmp_path)
