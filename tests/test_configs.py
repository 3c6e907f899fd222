"""Every file in configs/ describes a network that can be made, and the published recipes are those of their sources."""

import importlib
import math
import pathlib

import jax
import jax.numpy as jnp
import pytest

import configs
from patchnets import config as config_lib
from patchnets import models
from patchnets.errors import UserError
from patchnets.experiment import build_schedule

FOLDER = pathlib.Path(configs.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if "def get_config(" in path.read_text())


FAMILIES = ("mixer", "fnet", "gmlp", "vit", "convmixer")
IMAGENET = [f"{family}_imagenet" for family in FAMILIES if family != "fnet"]


def load(name: str):
    return importlib.import_module(f"configs.{name}")


def arguments(name: str) -> list[str]:
    """The variants of a file, as it names them itself where one is asked for that is not there."""
    with pytest.raises(UserError) as caught:
        load(name).get_config("no such variant")
    return str(caught.value).split("known: ")[1].split(", ")


# Every configuration that the files give: (name, argument).
EVERY = [(name, argument) for name in NAMES for argument in arguments(name)]


def get(name: str, argument: str | None = None):
    return load(name).get_config(*[argument] * (argument is not None))


def complete(name: str, argument: str | None = None):
    """The configuration with what it leaves to the command line."""
    config = get(name, argument)
    if name == "finetune":
        config.init.weights, config.dataset.name = "weights.npz", config.dataset.name or "cifar10"
    return config


def parameters(config, num_classes: int, channels: int = 3) -> int:
    model = models.create_model(**config.model, num_classes=num_classes)
    image = jnp.zeros((1, config.image_size, config.image_size, channels))
    shapes = jax.eval_shape(lambda key: model.init(key, image, train=False), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


def test_the_published_configurations_are_there():
    small = {f"{family}_{data}" for family in FAMILIES for data in ("digits", "cifar10", "cifar100")}
    assert set(NAMES) == small | set(IMAGENET) | {"compare", "finetune"}


@pytest.mark.parametrize(("name", "argument"), EVERY)
def test_configuration_passes_and_can_be_scheduled(name, argument):
    config = complete(name, argument)
    assert config_lib.validate(config) is None
    peak = build_schedule(config, 100_000, 1_000)(40_000)
    assert 0 < peak <= config.optimizer.learning_rate


@pytest.mark.parametrize("name", [name for name in NAMES if name not in [*IMAGENET, "compare", "finetune"]])
def test_the_tutorial_is_the_default_and_the_paper_the_other(name):
    family = name.split("_")[0]
    assert get(name) == get(name, "tutorial") == load(name).get_config("")
    assert get(name).model.name == f"keras_{family}"
    assert get(name, "paper").model.name == {"mixer": "mlp_mixer"}.get(family, family)
    with pytest.raises(UserError, match=r"no variant 'papre'; known: tutorial, .*paper"):
        get(name, "papre")


@pytest.mark.parametrize("name", NAMES)
def test_docstring_holds_the_command_that_runs_the_file(name):
    text = load(name).__doc__
    assert f"python -m patchnets.main --config=configs/{name}.py" in text
    named = {word.split("=")[0].removeprefix("--config.") for word in text.split() if word.startswith("--config.")}
    assert named <= set(config_lib.known_keys()), "the docstring names keys that there are not"


@pytest.mark.parametrize("name", NAMES)
def test_configuration_is_locked_and_made_anew_each_time(name):
    module = load(name)
    config = module.get_config()
    with pytest.raises((AttributeError, KeyError)):
        config.no_such_key = 1
    with pytest.raises((AttributeError, KeyError)):
        config.model.no_such_key = 1
    config.seed = 12345
    assert module.get_config().seed != 12345


def test_imagenet_recipe_is_that_of_the_mixer_paper():
    """arXiv 2105.01601, section 3 and appendix B: Mixer-B/16 trained on ImageNet-1k from scratch."""
    config = load("mixer_imagenet").get_config()
    assert (config.total_epochs, config.total_steps, config.batch_size) == (300, None, 4096)
    settings = config.optimizer
    assert (settings.name, settings.beta1, settings.beta2, settings.learning_rate) == ("adamw", 0.9, 0.999, 1e-3)
    assert (settings.weight_decay, settings.wd_mask, settings.grad_clip_norm) == (0.1, "kernels", 1.0)
    schedule = config.schedule
    assert (schedule.name, schedule.warmup_steps, schedule.warmup_epochs) == ("linear", 10_000, None)
    assert schedule.end_factor == 0.0
    network = models.resolve_fields(**config.model)
    assert not network["drop_path_scale_by_keep"]  # as the authors' code
    assert network["drop_path_rate"] == 0.1 and network.get("dropout_rate", 0.0) == 0.0
    assert network.get("gelu", "tanh") == "tanh" and config.label_smoothing == 0.0
    assert config.image_size == 224
    assert parameters(config, num_classes=1000) == 59_880_472


def has(config, **expected) -> bool:
    flat = config_lib.flatten(config)
    actual = {key: flat.get(key.replace("__", ".")) for key in expected}
    assert actual == expected
    return True


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("mixer_cifar100", 100, 242_788),
        ("fnet_cifar100", 100, 621_924),
        ("gmlp_cifar100", 100, 885_348),
        ("vit_cifar100", 100, 21_759_012),
        ("convmixer_cifar10", 10, 594_186),
    ],
)
def test_networks_of_the_tutorials_have_their_published_sizes(name, classes, count):
    assert parameters(get(name), classes) == count


@pytest.mark.parametrize(("family", "rate"), [("mixer", 0.005), ("fnet", 0.001), ("gmlp", 0.003)])
@pytest.mark.parametrize("argument", ["tutorial", "paper"])
def test_recipe_of_the_mlp_example(family, rate, argument):
    """64 px, batch 128, AdamW with Keras's decay, plateau x.5 (5), stop (10), best weights by validation loss."""
    for data in ("cifar10", "cifar100"):
        config = get(f"{family}_{data}", argument)
        assert has(config, dataset__name=data, dataset__val_split=None, image_size=64, batch_size=128, total_epochs=50)
        assert has(config, optimizer__learning_rate=rate, optimizer__weight_decay=1e-4, optimizer__wd_mask="all")
        assert has(config, optimizer__epsilon=1e-7, optimizer__beta1=0.9, optimizer__beta2=0.999)
        assert has(config, schedule__name="constant", reduce_on_plateau__factor=0.5, reduce_on_plateau__patience=5)
        assert has(
            config,
            early_stopping__patience=10,
            checkpoint__best_metric="loss",
            normalize="dataset",
            label_smoothing=0.0,
        )
        assert has(config, augment__flip=True, augment__zoom=0.2, augment__rotation=0.0, augment__translate=0.0)
        network = models.resolve_fields(**config.model)
        assert (network["patch_size"], network["depth"], network["hidden_dim"]) == (8, 4, 256)
        assert network.get("dropout_rate", 0.2) == 0.2


@pytest.mark.parametrize("argument", ["tutorial", "paper"])
def test_recipe_of_the_vit_example(argument):
    for data in ("cifar10", "cifar100"):
        config = get(f"vit_{data}", argument)
        assert has(config, dataset__name=data, dataset__val_split=None, image_size=72, batch_size=256, total_epochs=10)
        assert has(config, optimizer__learning_rate=1e-3, optimizer__weight_decay=1e-4, optimizer__wd_mask="all")
        assert has(config, schedule__name="constant", reduce_on_plateau__factor=None, early_stopping__patience=None)
        assert has(config, checkpoint__best_metric="accuracy", normalize="dataset")
        assert has(config, augment__flip=True, augment__zoom=0.2, augment__rotation=0.02, augment__translate=0.0)
        network = models.resolve_fields(**config.model)
        assert (network["patch_size"], network["depth"], network["hidden_dim"], network["num_heads"]) == (6, 8, 64, 4)


def test_recipe_of_the_convmixer_example():
    for data in ("cifar10", "cifar100"):
        config = get(f"convmixer_{data}")
        assert has(config, dataset__train_split="train[5000:]", dataset__val_split="train[:5000]", image_size=32)
        assert has(config, batch_size=128, total_epochs=10, checkpoint__best_metric="accuracy", normalize="unit")
        assert has(config, optimizer__learning_rate=1e-3, optimizer__weight_decay=1e-4, optimizer__wd_mask="all")
        assert has(config, schedule__name="constant", augment__flip=True, augment__zoom=0.0, augment__rotation=0.0)
    network = models.create_model(**get("convmixer_cifar10").model, num_classes=10)
    assert (network.batch_norm_epsilon, network.batch_norm_momentum) == (1e-3, 0.99)


# CIFAR from scratch: file, variant, parameters with 10 classes, test accuracy, and what is published of the recipe.
ALL_TRAIN = dict(dataset__train_split="train", dataset__val_split="none", image_size=32)
LOCUSLAB = dict(
    batch_size=512, optimizer__name="adamw", optimizer__learning_rate=0.05, optimizer__weight_decay=0.005,
    schedule__name="one_cycle", augment__policy="randaugment", augment__randaugment_num_ops=2, augment__magnitude=12,
    augment__randaugment_variant="torchvision",
)  # fmt: skip
OMIHUB777 = dict(
    augment__policy="autoaugment_cifar10", label_smoothing=0.1, optimizer__name="adam", optimizer__learning_rate=1e-3,
    schedule__name="cosine", batch_size=128, schedule__warmup_epochs=5, optimizer__weight_decay=5e-5,
)  # fmt: skip
FROM_SCRATCH = [
    ("convmixer_cifar10", "paper", 706_570, 0.9603, dict(
        total_epochs=200, batch_size=64, optimizer__learning_rate=0.01, schedule__name="one_cycle",
        optimizer__weight_decay=0.01, optimizer__epsilon=1e-3, augment__policy="randaugment", augment__magnitude=9,
        augment__mixup=0.5, augment__cutmix=0.5, augment__random_erasing_prob=0.25, augment__crop_scale_min=0.75,
        optimizer__grad_clip_norm=1)),
    ("convmixer_cifar10", "locuslab", 594_186, 0.926, LOCUSLAB | dict(
        total_epochs=25, augment__random_erasing_prob=0.0, augment__brightness=0.0)),
    ("convmixer_cifar10", "locuslab-100", 594_186, 0.94, LOCUSLAB | dict(
        total_epochs=100, augment__random_erasing_prob=0.2, augment__brightness=0.2, augment__contrast=0.2,
        augment__saturation=0.2)),
    ("mixer_cifar10", "nano", 1_132_170, 0.9083, OMIHUB777 | dict(
        total_epochs=300, augment__cutmix=1.0, augment__mix_prob=0.5, schedule__end_factor=1e-3)),
    ("mixer_cifar100", "nano", 1_132_170, 0.6751, OMIHUB777 | dict(total_epochs=300)),
    ("vit_cifar10", "omihub777", 6_268_810, 0.9092, OMIHUB777 | dict(
        total_epochs=200, augment__cutmix=0.0, model__num_heads=12)),
    ("vit_cifar100", "omihub777", 6_268_810, 0.6654, OMIHUB777 | dict(total_epochs=200)),
    ("vit_cifar10", "kentaroy47-200", None, 0.80, dict(
        total_epochs=200, model__depth=6, model__num_heads=8, batch_size=512, optimizer__learning_rate=1e-4,
        augment__crop_padding=4, augment__magnitude=14 / 3)),
    ("vit_cifar10", "kentaroy47-500", None, 0.85, dict(total_epochs=500, model__hidden_dim=512)),
    ("vit_cifar10", "kentaroy47-1000", None, 0.89, dict(total_epochs=1000, model__patch_size=4)),
    ("vit_cifar100", "kentaroy47", None, 0.52, dict(model__depth=6, model__num_heads=8)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "argument", "count", "accuracy", "recipe"), FROM_SCRATCH)
def test_recipes_for_cifar_from_scratch_are_those_published(name, argument, count, accuracy, recipe):
    config = get(name, argument)
    assert has(config, **ALL_TRAIN | recipe)
    assert count is None or parameters(config, 10) == count
    assert config.published.accuracy == accuracy and len(config.published.source) > 10


@pytest.mark.parametrize(
    ("name", "argument", "epochs", "top1", "top5"),
    [
        ("mixer_cifar100", "one_epoch", 1, 0.0976, 0.308),
        ("fnet_cifar100", "one_epoch", 1, 0.1382, 0.3615),
        ("gmlp_cifar100", "one_epoch", 1, 0.1705, 0.4257),
        ("mixer_cifar100", "tutorial", 50, 0.4758, 0.7718),
        ("fnet_cifar100", "tutorial", 50, 0.4663, 0.7647),
        ("gmlp_cifar100", "tutorial", 50, 0.5064, 0.7828),
        ("vit_cifar100", "tutorial", 10, 0.1061, 0.3151),
        ("vit_cifar100", "hundred_epochs", 100, 0.55, 0.82),
        ("convmixer_cifar10", "tutorial", 10, 0.8369, None),
    ],
)
def test_tutorials_claim_what_they_publish(name, argument, epochs, top1, top5):
    config = get(name, argument)
    assert has(config, total_epochs=epochs, published__accuracy=top1, published__top5_accuracy=top5)
    assert 0 < config.published.tolerance <= 0.02 and "Keras example" in config.published.source


CLUSTER = dict(batch_size=4096, total_epochs=300, optimizer__grad_clip_norm=1, schedule__warmup_steps=10_000)
IMAGENET_ROWS = [
    ("mixer", "B/16", 59_880_472, 0.7644, CLUSTER | dict(schedule__name="linear", augment__magnitude=15)),
    ("mixer", "L/16", 208_196_168, 0.7176, CLUSTER | dict(augment__randaugment_num_ops=2, augment__mixup=0.5)),
    ("gmlp", "Ti/16", 5_867_328, 0.723, CLUSTER | dict(augment__mixup=0.8)),
    ("gmlp", "S/16", 19_422_656, 0.796, CLUSTER | dict(
        schedule__name="cosine", augment__policy="autoaugment_imagenet", augment__cutmix=1.0,
        augment__mix_switch_prob=0.5,
        label_smoothing=0.1, optimizer__weight_decay=0.05, optimizer__epsilon=1e-6)),
    ("gmlp", "B/16", 73_075_392, 0.816, CLUSTER | dict(optimizer__learning_rate=1e-3)),
    ("convmixer", "1536/20", 51_625_960, 0.8137, dict(
        total_epochs=150, batch_size=640, schedule__name="one_cycle", label_smoothing=0.1, augment__magnitude=9,
        optimizer__learning_rate=0.01, optimizer__weight_decay=2e-5, optimizer__epsilon=1e-3, augment__mixup=0.5,
        augment__magnitude_std=0.5, augment__cutmix=0.5, augment__random_erasing_prob=0.25, augment__brightness=0.4,
        augment__contrast=0.4, augment__saturation=0.4, optimizer__grad_clip_norm=1)),
    ("convmixer", "768/32", 21_110_248, 0.8016, dict(total_epochs=300)),
    ("convmixer", "1024/20", 24_383_464, 0.7694, dict(total_epochs=150)),
    ("convmixer", "1024/12", 14_621_672, 0.778, dict(total_epochs=150)),
    ("convmixer", "512/16", 5_357_544, 0.738, dict(total_epochs=150)),
    ("vit", "paper", 86_567_656, None, CLUSTER | dict(
        schedule__name="cosine", optimizer__learning_rate=3e-3, optimizer__weight_decay=0.3, model__dropout_rate=0.1,
        label_smoothing=0.0, augment__policy="none")),
    ("vit", "plain-90", 22_122_472, 0.765, dict(
        total_epochs=90, batch_size=1024, optimizer__learning_rate=1e-3, schedule__name="cosine",
        schedule__warmup_steps=10_000, augment__randaugment_num_ops=2, augment__magnitude=10, augment__mixup=0.2,
        model__pool_type="gap", model__posemb="sincos2d", optimizer__grad_clip_norm=1)),
    ("vit", "plain-150", None, 0.785, dict(total_epochs=150)),
    ("vit", "plain-300", None, 0.80, dict(total_epochs=300)),
    ("vit", "augreg-S/16", 22_050_664, 0.7884, CLUSTER),
    ("vit", "augreg-B/32", 88_224_232, 0.7491, CLUSTER),
    ("vit", "augreg-B/16", 86_567_656, 0.7915, CLUSTER | dict(augment__magnitude=15, augment__mixup=0.5)),
    ("vit", "augreg-B/16-none", None, None, dict(augment__policy="none", augment__mixup=0.0)),
    ("vit", "augreg-B/16-light1", None, None, dict(augment__magnitude=0, augment__mixup=0.0)),
    ("vit", "augreg-B/16-light2", None, None, dict(augment__magnitude=10, augment__mixup=0.2)),
    ("vit", "augreg-B/16-medium1", None, None, dict(augment__magnitude=15, augment__mixup=0.2)),
    ("vit", "augreg-B/16-strong1", None, None, dict(augment__magnitude=20, augment__mixup=0.5)),
    ("vit", "augreg-B/16-strong2", None, None, dict(augment__magnitude=20, augment__mixup=0.8)),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("family", "argument", "count", "accuracy", "recipe"), IMAGENET_ROWS)
def test_recipes_for_imagenet_are_those_of_the_papers(family, argument, count, accuracy, recipe):
    config = get(f"{family}_imagenet", argument)
    assert has(config, image_size=224, dataset__test_split="validation", published__accuracy=accuracy, **recipe)
    assert count is None or parameters(config, 1000) == count
    survival = models.resolve_fields(**config.model).get("survival_probability")
    assert survival == {"Ti/16": 1.0, "S/16": 0.95, "B/16": 0.8}.get(argument) or family != "gmlp"


@pytest.mark.parametrize("family", FAMILIES)
def test_on_the_digits_nothing_is_mirrored_or_turned(family):
    config = get(f"{family}_digits")
    assert has(config, dataset__name="digits", augment__flip=False, augment__rotation=0.0, image_size=8)
    assert has(config, dataset__train_split=None, dataset__val_split=None)
