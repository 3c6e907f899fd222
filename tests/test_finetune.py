"""configs/finetune.py: recipes as published, and each of them run on a small network."""

import json

import jax
import numpy as np
import pytest
from small_models import NETWORKS, make_model

import patchnets
from configs import finetune
from patchnets import config as config_lib
from patchnets import train
from patchnets.config.flags import parse_flags, print_help
from patchnets.errors import UserError
from patchnets.experiment import build_schedule

FAMILIES = {"vit": "vit", "mixer": "mlp_mixer", "gmlp": "gmlp", "convmixer": "convmixer"}


def parse(variant, *arguments):
    return parse_flags(["test", f"--config=configs/finetune.py:{variant}", *arguments])[0]


def test_what_a_configuration_leaves_to_the_user_is_a_line():
    with pytest.raises(UserError, match=r"^config\.init\.weights is not set, and this configuration needs it: trained"):
        parse("vit-B/16,cifar10")
    with pytest.raises(UserError, match=r"^config\.dataset\.name is not set, and this configuration needs it: digits,"):
        parse("vit-B/16", "--config.init.weights=w.npz")
    with pytest.raises(UserError, match=r"config\.init\.weights is not set"):
        parse("linear", "--config.dataset.name=digits", "--config.init.weights=")


def test_help_shows_a_configuration_that_is_not_complete(capsys):
    print_help(["main", "--config=configs/finetune.py:linear", "--help"], "usage")
    lines = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines() if "--config." in line}
    assert lines["--config.frozen_features"] == "once" and lines["--config.batch_size"] == "512"


def test_weights_that_were_to_be_set_leave_the_run_comparable_and_other_changes_do_not():
    weights = "--config.init.weights=w.npz"
    assert parse("vit-B/16,cifar10", weights).published.incomparable is None
    changed = parse("vit-B/16,cifar10", weights, "--config.batch_size=256")
    assert changed.published.incomparable == "config.batch_size was changed"


@pytest.mark.parametrize("name", finetune.NETWORKS)
def test_the_official_recipe(name):
    config = finetune.get_config(name)
    optimizer, augment = config.optimizer, config.augment
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 0.0)
    assert (optimizer.grad_clip_norm, config.batch_size, config.total_steps) == (1.0, 512, 10_000)
    assert (config.schedule.name, config.schedule.warmup_steps, config.init.head) == ("cosine", 500, "zeros")
    full = round(config.image_size / augment.crop_share)
    assert (config.image_size, full) == {"vit": (384, 448), "convmixer": (385, 449)}.get(name.split("-")[0], (224, 256))


def test_few_images_are_trained_on_by_the_rule_of_bit():
    config = finetune.get_config("vit-B/16,small")
    schedule = build_schedule(config, config.total_steps, 10)
    rates = [float(schedule(int(config.total_steps * share))) for share in (0.0, 0.29, 0.3, 0.6, 0.9)]
    np.testing.assert_allclose(rates, [3e-3, 3e-3, 3e-4, 3e-5, 3e-6], rtol=1e-4)


@pytest.mark.parametrize(
    ("variant", "accuracy", "steps", "rate"),
    [
        ("vit-B/16,cifar10", 0.9902, 10_000, 0.03),
        ("vit-B/16,cifar100", 0.9206, 10_000, 0.03),
        ("vit-B/32,cifar10", 0.9855, 10_000, 0.003),
        ("vit-B/32,cifar100", 0.9135, 10_000, 0.01),
        ("vit-B/32,pets", 0.9378, 500, 0.003),
        ("vit-B/32,flowers", 0.9943, 500, 0.003),
    ],
)
def test_published_runs(variant, accuracy, steps, rate):
    config = finetune.get_config(variant)
    assert (config.published.accuracy, config.total_steps, config.optimizer.learning_rate) == (accuracy, steps, rate)
    assert config.image_size == 384 and config.dataset.name


def tiny(config, source, **changes):
    """The configuration with everything small but what it is about: four steps on the digits, of 8 px."""
    config.update(
        dataset=dict(name="digits", train_split="train[:96]", val_split="train[96:128]", test_split="test[:32]"),
        image_size=8,
        total_steps=4,
        total_epochs=None,
        eval_every_steps=1,
        batch_size=32,
        mesh=dict(data=1),
        tensorboard=False,
        plots=False,
        **changes,
    )
    config.init.weights = str(source)
    config.augment.crop_scale_min = 1.0  # the digits are stored as arrays, which are not streamed
    if config.schedule.warmup_steps:
        config.schedule.warmup_steps = 1
    if config.model.variant:
        config.model.update(NETWORKS[config.model.name])
    return config


def layers(source):
    """{"stem": ..., "head": ...}, flat arrays of a model's parameters."""
    kept = "latest" if (source / "checkpoints").exists() else "best"
    params = patchnets.load(source, kept).variables["params"]
    return {name: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for name, tree in params.items()}


@pytest.mark.slow
@pytest.mark.parametrize("variant", [*finetune.NETWORKS, "vit-S/16,small", "vit-B/16,cifar10", "vit-B/32,pets"])
def test_every_recipe_runs_from_weights_in_timms_layout(variant, tmp_path):
    name = FAMILIES[variant.split("-")[0]]
    model = make_model(name, dict(activation="relu") if name == "convmixer" else None)
    model.export(tmp_path / "weights", "timm", verified=False)
    config = tiny(finetune.get_config(variant), tmp_path / "weights")
    summary = train.train(config, tmp_path / "run")
    account = json.loads((tmp_path / "run" / "init.json").read_text())
    assert set(account["new"]) == {"params/head/kernel", "params/head/bias"}
    assert np.isfinite(summary["test_loss"]) and summary["steps"] == 4
    before, after = layers(tmp_path / "weights"), layers(tmp_path / "run")
    inner = next(layer for layer in before if layer.endswith("Block_0"))
    assert np.abs(after["head"]).max() > 0  # it started at zeros
    if before[inner].shape == after[inner].shape:  # the weights of a Mixer are of another number of patches
        assert 0 < np.abs(after[inner] - before[inner]).max() < 0.1


@pytest.mark.slow
def test_linear_probing_and_then_fine_tuning(tmp_path):
    make_model("vit").export(tmp_path / "weights", "timm", verified=False)
    first = tiny(finetune.get_config("linear"), tmp_path / "weights")
    train.train(first, tmp_path / "linear")
    second = tiny(finetune.get_config("lp_ft"), tmp_path / "linear")
    train.train(second, tmp_path / "lp_ft")
    account = json.loads((tmp_path / "lp_ft" / "init.json").read_text())
    assert account["new"] == account["left_out"] == account["adapted"] == {}
    weights, linear, tuned = (layers(tmp_path / name) for name in ("weights", "linear", "lp_ft"))
    np.testing.assert_array_equal(linear["VitBlock_1"], weights["VitBlock_1"])
    assert np.abs(linear["head"]).max() > 0
    assert np.abs(tuned["VitBlock_1"] - weights["VitBlock_1"]).max() > 0
    start = config_lib.flatten(second)["init.head"]
    assert start == "keep" and np.abs(tuned["head"] - linear["head"]).max() < np.abs(linear["head"]).max()
