"""Complete runs with every option of a recipe, on-device and streaming, interrupted and resumed; unreadable records."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from patchnets import train
from patchnets.errors import RunError, UserError

RECIPE = dict(
    augment=dict(
        rotation=0.05,
        crop_scale_min=0.6,
        policy="randaugment",
        randaugment_num_ops=1,
        random_erasing_prob=0.5,
        random_erasing_mode="pixel",
        mixup=0.4,
        cutmix=1.0,
    ),
    optimizer=dict(
        name="lamb", learning_rate=0.01, sam_rho=0.05, grad_clip_norm=1.0, lr_mults=(("head/.*", 2.0), (".*", 1.0))
    ),
    grad_accum_steps=2,
    ema_decay=0.9,
    loss="sigmoid",
    init_head_bias=-2.0,
    label_smoothing=0.1,
    total_steps=4,
    total_epochs=None,
    eval_every_steps=2,
    checkpoint=dict(save_interval_steps=1, max_to_keep=9),
)


def figures(workdir):
    """The rows of metrics.jsonl, without how fast they came."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def cut(finished, workdir, step):
    """A work directory as it would be after a kill, when the checkpoint of `step` was the last."""
    shutil.copytree(finished, workdir)
    (workdir / "summary.json").unlink()
    for path in (workdir / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > step:
            shutil.rmtree(path)
    shutil.rmtree(workdir / "checkpoints" / "best", ignore_errors=True)


@pytest.mark.slow
def test_a_run_with_the_whole_recipe_continues_as_if_never_cut(tiny_config, tmp_path):
    config = tiny_config
    config.update(RECIPE)
    config.model.update(depth=1, hidden_dim=8)
    straight = train.train(config, tmp_path / "straight")
    cut(tmp_path / "straight", tmp_path / "cut", 1)
    again = train.train(config, tmp_path / "cut")
    assert figures(tmp_path / "cut") == figures(tmp_path / "straight")
    assert again["test_loss"] == straight["test_loss"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two classes of JPEGs of realistic size and of several shapes, cut from two photographs."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for label, photograph in zip(("temple", "flower"), load_sample_images().images):
        for split, count in (("train", 13), ("val", 5)):
            path = root / split / label
            path.mkdir(parents=True)
            for i in range(count):
                height, width = (375, 500) if i % 2 else (427, 320)
                top, left = rng.integers(0, 427 - height + 1), rng.integers(0, 640 - width + 1)
                Image.fromarray(photograph[top : top + height, left : left + width]).save(path / f"{i}.jpg")
    return root


@pytest.fixture
def streamed(tiny_config, photographs):
    tiny_config.update(
        dataset=dict(
            name="folder",
            path=str(photographs),
            train_split="train",
            val_split="val",
            test_split="none",
            loader="streaming",
            num_workers=0,
        ),
        image_size=16,
        augment=dict(flip=True, crop_scale_min=0.3, saturation=0.4),
        batch_size=8,
        crop_pct=0.875,
        total_steps=10,
        total_epochs=None,
        eval_every_steps=5,
        checkpoint=dict(save_interval_steps=1, max_to_keep=20),
    )
    return tiny_config


@pytest.mark.slow
def test_a_streamed_run_learns_and_continues_as_if_never_cut(streamed, tmp_path, capsys):
    straight = train.train(streamed, tmp_path / "straight")
    assert "16 px, read while training" in capsys.readouterr().out
    assert straight["val_accuracy"] > 0.8  # the two photographs are easily told apart
    cut(tmp_path / "straight", tmp_path / "cut", 6)
    train.train(streamed, tmp_path / "cut")
    assert figures(tmp_path / "cut") == figures(tmp_path / "straight")


@pytest.mark.slow
def test_a_broken_record_stops_a_streamed_run_or_is_skipped_and_counted(streamed, photographs, tmp_path, capsys):
    root = tmp_path / "photographs"
    shutil.copytree(photographs, root)
    full = (root / "train" / "flower" / "3.jpg").read_bytes()
    (root / "train" / "flower" / "3.jpg").write_bytes(full[: len(full) // 2])
    streamed.dataset.path, streamed.total_steps = str(root), 4
    with pytest.raises(RunError, match=r"flower.3\.jpg"):
        train.train(streamed, tmp_path / "run")
    streamed.dataset.on_corrupt = "skip"
    assert train.train(streamed, tmp_path / "run")["skipped_records"] == 1  # the same run goes on
    printed = capsys.readouterr()
    assert "3.jpg" in printed.err and "1 records that could not be read" in printed.out
    cut(tmp_path / "run", tmp_path / "cut", 3)
    assert train.train(streamed, tmp_path / "cut")["skipped_records"] == 1
    assert figures(tmp_path / "cut") == figures(tmp_path / "run")


@pytest.mark.slow
def test_where_validation_cannot_be_read_nothing_trained_is_lost(streamed, photographs, tmp_path):
    root = tmp_path / "photographs"
    shutil.copytree(photographs, root)
    streamed.dataset.path, streamed.checkpoint.save_interval_steps = str(root), None
    train.train(streamed, tmp_path / "straight")
    broken = root / "val" / "flower" / "2.jpg"
    full = broken.read_bytes()
    broken.write_bytes(b"")
    with pytest.raises(RunError, match=r"2\.jpg"):
        train.train(streamed, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()] == ["5"]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    broken.write_bytes(full)
    train.train(streamed, tmp_path / "run")
    assert figures(tmp_path / "run") == figures(tmp_path / "straight")


@pytest.mark.slow
def test_a_streamed_run_does_not_continue_on_other_data(streamed, photographs, tmp_path):
    root = tmp_path / "photographs"
    shutil.copytree(photographs, root)
    streamed.dataset.path, streamed.total_steps = str(root), 3
    train.train(streamed, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    (root / "train" / "flower" / "7.jpg").rename(root / "train" / "flower" / "99.jpg")
    with pytest.raises(UserError, match="data have changed"):
        train.train(streamed, tmp_path / "run")
