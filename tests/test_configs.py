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

FOLDER = pathlib.Path(configs.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if "def get_config(" in path.read_text())


FAMILIES = ("mixer", "fnet", "gmlp", "vit", "convmixer")
IMAGENET = [f"{family}_imagenet" for family in FAMILIES if family != "fnet"]
# Every configuration that the files give: (name, argument).
EVERY = [(name, argument) for name in NAMES for argument in (["tutorial", "paper"], ["paper"])[name in IMAGENET]]


def load(name: str):
    return importlib.import_module(f"configs.{name}")


def get(name: str, argument: str | None = None):
    return load(name).get_config(*[argument] * (argument is not None))


def parameters(config, num_classes: int, channels: int = 3) -> int:
    model = models.create_model(config.model, num_classes)
    image = jnp.zeros((1, config.image_size, config.image_size, channels))
    shapes = jax.eval_shape(lambda key: model.init(key, image, train=False), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


def test_the_published_configurations_are_there():
    small = {f"{family}_{data}" for family in FAMILIES for data in ("digits", "cifar10", "cifar100")}
    assert set(NAMES) == small | set(IMAGENET)


@pytest.mark.parametrize(("name", "argument"), EVERY)
def test_configuration_passes_and_its_network_can_be_made(name, argument):
    config = get(name, argument)
    assert config_lib.check(config) is None
    assert parameters(config, num_classes=10) > 0


@pytest.mark.parametrize("name", [name for name in NAMES if name not in IMAGENET])
def test_the_tutorial_is_the_default_and_the_paper_the_other(name):
    family = name.split("_")[0]
    assert get(name) == get(name, "tutorial") == load(name).get_config("")
    assert get(name).model.name == f"keras_{family}"
    assert get(name, "paper").model.name == {"mixer": "mlp_mixer"}.get(family, family)
    with pytest.raises(UserError, match="no variant 'papre'; known: tutorial, paper"):
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
    given = config.optimizer
    assert (given.name, given.beta1, given.beta2, given.learning_rate) == ("adamw", 0.9, 0.999, 1e-3)
    assert (given.weight_decay, given.decay, given.clip_norm) == (0.1, "kernels", 1.0)
    schedule = config.schedule
    assert (schedule.name, schedule.warmup_steps, schedule.warmup_epochs) == ("linear", 10_000, None)
    assert schedule.end_factor == 0.0
    network = models.settings(config.model)
    assert network["stochastic_depth_rate"] == 0.1 and network.get("dropout_rate", 0.0) == 0.0
    assert network.get("gelu", "tanh") == "tanh" and config.label_smoothing == 0.0
    assert config.image_size == 224
    assert parameters(config, num_classes=1000) == 59_880_472


def has(config, **expected) -> bool:
    flat = config_lib.flatten(config)
    found = {key: flat.get(key.replace("__", ".")) for key in expected}
    assert found == expected
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
        assert has(config, optimizer__learning_rate=rate, optimizer__weight_decay=1e-4, optimizer__decay="all")
        assert has(config, optimizer__epsilon=1e-7, optimizer__beta1=0.9, optimizer__beta2=0.999)
        assert has(config, schedule__name="constant", schedule__plateau_factor=0.5, schedule__plateau_patience=5)
        assert has(config, stop_patience=10, checkpoint__best="loss", normalize="dataset", label_smoothing=0.0)
        assert has(config, augment__flip=True, augment__zoom=0.2, augment__rotation=0.0, augment__shift=0.0)
        network = models.settings(config.model)
        assert (network["patch_size"], network["depth"], network["hidden_dim"]) == (8, 4, 256)
        assert network.get("dropout_rate", 0.2) == 0.2


@pytest.mark.parametrize("argument", ["tutorial", "paper"])
def test_recipe_of_the_vit_example(argument):
    for data in ("cifar10", "cifar100"):
        config = get(f"vit_{data}", argument)
        assert has(config, dataset__name=data, dataset__val_split=None, image_size=72, batch_size=256, total_epochs=10)
        assert has(config, optimizer__learning_rate=1e-3, optimizer__weight_decay=1e-4, optimizer__decay="all")
        assert has(config, schedule__name="constant", schedule__plateau_factor=None, stop_patience=None)
        assert has(config, checkpoint__best="accuracy", normalize="dataset")
        assert has(config, augment__flip=True, augment__zoom=0.2, augment__rotation=0.02, augment__shift=0.0)
        network = models.settings(config.model)
        assert (network["patch_size"], network["depth"], network["hidden_dim"], network["num_heads"]) == (6, 8, 64, 4)


@pytest.mark.parametrize("argument", ["tutorial", "paper"])
def test_recipe_of_the_convmixer_example(argument):
    for data in ("cifar10", "cifar100"):
        config = get(f"convmixer_{data}", argument)
        assert has(config, dataset__train_split="train[5000:]", dataset__val_split="train[:5000]", image_size=32)
        assert has(config, batch_size=128, total_epochs=10, checkpoint__best="accuracy", normalize="unit")
        assert has(config, optimizer__learning_rate=1e-3, optimizer__weight_decay=1e-4, optimizer__decay="all")
        assert has(config, schedule__name="constant", augment__flip=True, augment__zoom=0.0, augment__rotation=0.0)
    network = models.create_model(get("convmixer_cifar10").model, 10)
    assert (network.batch_norm_epsilon, network.batch_norm_momentum) == (1e-3, 0.99)
    assert parameters(get("convmixer_cifar10", "paper"), 10) == 706_570


def test_imagenet_recipes_are_those_of_the_papers():
    """The rows of each paper's own training on ImageNet-1k, as far as they are about training."""
    gmlp, convmixer, vit = (get(f"{family}_imagenet") for family in ("gmlp", "convmixer", "vit"))
    for config in (gmlp, vit):
        assert has(config, total_epochs=300, batch_size=4096, schedule__name="cosine", schedule__warmup_steps=10_000)
    assert has(gmlp, optimizer__learning_rate=1e-3, optimizer__weight_decay=0.05, optimizer__epsilon=1e-6)
    assert has(gmlp, label_smoothing=0.1, optimizer__clip_norm=1.0, model__survival_probability=0.95)
    assert has(vit, optimizer__learning_rate=3e-3, optimizer__weight_decay=0.3, optimizer__clip_norm=1.0)
    assert has(vit, model__dropout_rate=0.1, label_smoothing=0.0)
    assert has(convmixer, total_epochs=150, batch_size=640, schedule__name="one_cycle", label_smoothing=0.1)
    assert has(convmixer, optimizer__learning_rate=0.01, optimizer__weight_decay=2e-5, optimizer__epsilon=1e-3)
    counts = [parameters(config, 1000) for config in (gmlp, convmixer, vit)]
    assert counts == [19_422_656, 51_625_960, 86_567_656]


@pytest.mark.parametrize("family", FAMILIES)
def test_on_the_digits_nothing_is_mirrored_or_turned(family):
    config = get(f"{family}_digits")
    assert has(config, dataset__name="digits", augment__flip=False, augment__rotation=0.0, image_size=8)
    assert has(config, dataset__train_split=None, dataset__val_split=None)
