"""Runs that train the head alone: on features computed once, or in every step with the same results."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import patchnets
from patchnets import train
from patchnets.augment.preprocess import Augment
from patchnets.data import sources
from patchnets.errors import UserError
from patchnets.experiment import build_experiment
from patchnets.models import create_model
from patchnets.run import frozen_features
from patchnets.run.features import SplitFeatures
from patchnets.run.frozen_features import FrozenFeatures, keeps_features

FROZEN = (("head/.*", False), (".*", True))
NETWORKS = {
    "vit": dict(patch_size=4, depth=1, hidden_dim=16, mlp_dim=16, num_heads=2),
    "convmixer": dict(patch_size=4, depth=1, hidden_dim=16, kernel_size=3),
    "gmlp": dict(patch_size=4, depth=1, hidden_dim=16, ffn_dim=16),
    "mlp_mixer": dict(patch_size=4, depth=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=16),
}


def configuration(cache, name="vit", **changes):
    from patchnets.config import common

    model = NETWORKS[name] | changes.pop("model", {})
    values = dict(
        dataset=dict(
            name="digits",
            train_split="train[:150]",
            val_split="train[150:190]",
            test_split="test[:50]",
            cache_dir=str(cache),
        ),
        image_size=8,
        model=dict(name=name, **model),
        batch_size=32,
        total_steps=12,
        eval_every_steps=4,
        mesh=dict(data=1),
        optimizer=dict(learning_rate=3e-2, frozen=FROZEN, weight_decay=0.01, grad_clip_norm=1.0),
        ema_decay=0.9,
        tensorboard=False,
        plots=False,
        steps_per_call=2,
        checkpoint=dict(save_interval_steps=2, max_to_keep=9),
    )
    return common.base(**values | changes)


def rows(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on features computed once: (its folder, its cache)."""
    root = tmp_path_factory.mktemp("finished")
    train.train(configuration(root / "cache"), root / "run")
    return root / "run", root / "cache"


@pytest.mark.slow
def test_metrics_are_those_of_features_computed_in_every_step(finished, tmp_path):
    train.train(configuration(tmp_path / "cache", frozen_features="never"), tmp_path / "run")
    assert not (tmp_path / "cache" / "features").exists()
    once, never = rows(finished[0]), rows(tmp_path / "run")
    assert len(once) == len(never) == 4
    for row, other in zip(once, never):
        assert row == pytest.approx(other, rel=2e-4)
    assert once[0]["train_loss"] > once[2]["train_loss"]


@pytest.mark.slow
def test_the_checkpoint_holds_the_network_and_only_its_head_has_changed(finished):
    experiment = build_experiment(configuration(finished[1]))
    start = jax.device_get(experiment.init_state().params)
    model = patchnets.load(finished[0], "latest")
    for name, tree in model.variables["params"].items():
        same = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(start[name])))
        assert same == (name != "head")
    best = patchnets.load(finished[0])
    summary = json.loads((finished[0] / "summary.json").read_text())
    records = sources.open_source("digits").records("test")
    images, labels = (np.stack(column) for column in zip(*records.examples(range(50))))
    assert np.mean(best.logits(images).argmax(-1) == labels) == pytest.approx(summary["test_accuracy"])


@pytest.mark.slow
def test_an_interrupted_run_continues_bit_for_bit_on_features_computed_again(finished, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(finished[0], cut)
    (cut / "summary.json").unlink()
    for step in (8, 10, 12):
        shutil.rmtree(cut / "checkpoints" / str(step))
    train.train(configuration(tmp_path / "cache"), cut)
    assert rows(cut) == rows(finished[0])
    a, b = (patchnets.load(path, "latest").variables for path in (cut, finished[0]))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [dict(data=8), dict(data=2, fsdp=4)], ids=["eight", "parameters split"])
def test_several_devices_give_the_same_metrics(finished, tmp_path, mesh):
    train.train(configuration(tmp_path / "cache", mesh=mesh), tmp_path / "run")
    for row, other in zip(rows(tmp_path / "run"), rows(finished[0])):
        assert row == pytest.approx(other, rel=2e-4)


@pytest.mark.slow
def test_features_of_the_cache_are_used_again_and_damaged_ones_are_not(finished, tmp_path, capsys):
    cache = tmp_path / "cache"
    shutil.copytree(finished[1], cache)
    config = configuration(cache, optimizer=dict(learning_rate=0.1, frozen=FROZEN))
    train.train(config, tmp_path / "run")
    assert capsys.readouterr().out.count(f"from {cache / 'features'}") == 3
    damaged, *_ = sorted((cache / "features").iterdir())
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    again = train.train(config, tmp_path / "again")
    printed = capsys.readouterr()
    assert printed.out.count(f"from {cache / 'features'}") == 2 and f"{damaged} is damaged" in printed.err
    assert again["test_loss"] == json.loads((tmp_path / "run" / "summary.json").read_text())["test_loss"]
    other = configuration(cache, seed=1)  # other weights
    train.train(other, tmp_path / "other")
    assert f"from {cache / 'features'}" not in capsys.readouterr().out


@pytest.mark.slow
def test_batch_norm_takes_its_running_statistics_where_features_are_computed_once(tmp_path):
    config = configuration(tmp_path / "cache", "convmixer", frozen_features="once")
    train.train(config, tmp_path / "run")
    start = jax.device_get(build_experiment(config).init_state().batch_stats)
    jax.tree.map(
        np.testing.assert_array_equal, patchnets.load(tmp_path / "run", "latest").variables["batch_stats"], start
    )


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["streaming", "on_device"])
def test_images_of_a_folder_are_in_the_same_order_and_broken_ones_do_not_count(tmp_path, loader):
    random = np.random.default_rng(0)
    for split, count in (("train", 21), ("val", 6)):
        for name in "abc":
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{i}.png")
    (tmp_path / "images" / "train" / "b" / "5.png").write_bytes(b"broken")
    dataset = dict(
        name="folder",
        path=str(tmp_path / "images"),
        loader=loader,
        num_workers=0,
        on_corrupt="skip",
        cache_dir=str(tmp_path / "cache"),
    )
    results = {}
    for choice in ("once", "never"):
        config = configuration(tmp_path, dataset=dataset, batch_size=16, frozen_features=choice, total_steps=8)
        results[choice] = train.train(config, tmp_path / choice)
        assert results[choice]["skipped_records"] == 1
    for row, other in zip(rows(tmp_path / "once"), rows(tmp_path / "never")):
        assert row == pytest.approx(other, rel=2e-4)
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 1  # of val: the broken image may be repaired


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return build_experiment(configuration(tmp_path_factory.mktemp("cache")))


def test_a_file_of_features_serves_no_other_version_of_a_data_set(experiment):
    assert experiment.data.version == sources.open_source("digits").version
    prepared_again = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, version="2"))
    variables = {"params": {"stem": np.ones(2)}, "batch_stats": {}}
    files = [FrozenFeatures(run, variables, lambda: None)._cache_path("val") for run in (experiment, prepared_again)]
    assert files[0] != files[1]


@pytest.mark.slow
def test_whatever_byte_of_kept_features_is_damaged_they_are_not_used(tmp_path, capsys):
    split = SplitFeatures(np.eye(2, dtype=np.float32), np.zeros(2, np.int32), np.ones(2, bool))
    path = tmp_path / "features.npz"
    frozen_features._write(path, split)
    content = path.read_bytes()
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 8]) + content[i + 1 :])
        if (read := frozen_features._read(path)) is not None:  # a byte that says nothing, such as a date
            jax.tree.map(np.testing.assert_array_equal, read, split)
    assert f"{path} is damaged; computing the features again" in capsys.readouterr().err


AUGMENTS = {
    "flip": (dict(flip=True), {}),
    "mixup 0.2": (dict(mixup=0.2), dict(mix=lambda *_: None)),
    "random_erasing_prob 0.1": (dict(random_erasing_prob=0.1), dict(erase=lambda *_: None)),
}


def with_choice(experiment, choice, **keys):
    config = experiment.config.copy_and_resolve_references()
    config.frozen_features = choice
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in keys.items()})
    return dataclasses.replace(experiment, config=config)


@pytest.mark.parametrize("text", [*AUGMENTS, "memory"])
def test_why_features_are_computed_in_every_step_is_a_line(experiment, capsys, text):
    augment, task = AUGMENTS.get(text, ({}, {}))
    preprocess = dataclasses.replace(experiment.data.preprocess, augment=Augment(**augment))
    data = dataclasses.replace(experiment.data, preprocess=preprocess)
    changed = dataclasses.replace(experiment, data=data, task=dataclasses.replace(experiment.task, **task))
    keys = dict(dataset__max_on_device_gib=1e-6) if text == "memory" else {}
    expected = "config.dataset.max_on_device_gib allows" if text == "memory" else f"changes the images ({text})"
    assert not keeps_features(with_choice(changed, "auto", **keys))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("features of the frozen layers are computed in every step: ") and expected in line
    with pytest.raises(UserError) as error:
        keeps_features(with_choice(changed, "once", **keys))
    assert str(error.value).startswith("config.frozen_features=once: ") and expected in str(error.value)
    assert not keeps_features(with_choice(changed, "never", **keys)) and not capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "fields", "text"),
    [
        ("vit", dict(dropout_rate=0.1), "with config.model.dropout_rate=0.1 they are random"),
        ("mlp_mixer", dict(drop_path_rate=0.1), "with config.model.drop_path_rate=0.1 they are random"),
        ("gmlp", dict(survival_probability=0.9), "with config.model.survival_probability=0.9 they are random"),
        ("convmixer", {}, "BatchNorm normalizes them by the batch"),
    ],
)
def test_layers_that_differ_in_training_are_taken_as_in_evaluation_only_if_the_user_says_so(
    experiment, capsys, name, fields, text
):
    other = dataclasses.replace(experiment, model=create_model(name, num_classes=10, **NETWORKS[name] | fields))
    assert not keeps_features(with_choice(other, "auto"))
    assert f"{text}; config.frozen_features=once takes them as in evaluation" in capsys.readouterr().out
    if name == "vit":
        assert keeps_features(with_choice(other, "once")) and keeps_features(with_choice(experiment, "auto"))


@pytest.mark.parametrize(
    "frozen",
    [
        (),
        (("VitBlock_0/.*", False), ("head/.*", False), (".*", True)),
        (("stem/.*", True), (".*", False)),
        (("head/bias", True), ("head/.*", False), (".*", True)),
    ],
)
def test_other_runs_compute_no_features(experiment, capsys, frozen):
    assert not keeps_features(with_choice(experiment, "auto", optimizer__frozen=frozen))
    assert not capsys.readouterr().out
    with pytest.raises(UserError, match=r"^config\.frozen_features=once needs config\.optimizer\.frozen="):
        keeps_features(with_choice(experiment, "once", optimizer__frozen=frozen))
