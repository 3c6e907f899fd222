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

FOLDER = pathlib.Path(configs.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if "def get_config(" in path.read_text())


def load(name: str):
    return importlib.import_module(f"configs.{name}")


def parameters(config, num_classes: int, channels: int = 3) -> int:
    model = models.create_model(config.model, num_classes)
    image = jnp.zeros((1, config.image_size, config.image_size, channels))
    shapes = jax.eval_shape(lambda key: model.init(key, image, train=False), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


def test_the_published_configurations_are_there():
    assert {"mixer_digits", "mixer_cifar10", "mixer_cifar100", "mixer_imagenet"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_configuration_passes_and_its_network_can_be_made(name):
    config = load(name).get_config()
    assert config_lib.check(config) is None
    assert parameters(config, num_classes=10) > 0


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


def test_cifar_recipe_is_that_of_the_keras_example():
    """64 px, patch 8, 4 blocks, width 256, both MLPs 64, dropout 0.2, AdamW(0.005, 1e-4) on all weights, batch 128."""
    for name in ("mixer_cifar10", "mixer_cifar100"):
        config = load(name).get_config()
        assert config.dataset.name == name.removeprefix("mixer_")
        assert (config.image_size, config.batch_size, config.total_epochs) == (64, 128, 50)
        assert models.settings(config.model) == dict(
            patch_size=8,
            depth=4,
            hidden_dim=256,
            tokens_mlp_dim=64,
            channels_mlp_dim=64,
            dropout_rate=0.2,
            gelu="exact",
        )
        given = config.optimizer
        assert (given.learning_rate, given.weight_decay, given.decay) == (0.005, 1e-4, "all")
        assert (given.beta1, given.beta2, given.epsilon, given.clip_norm) == (0.9, 0.999, 1e-7, None)
        assert (config.schedule.name, config.schedule.warmup_epochs) == ("constant", None)
        assert (config.augment.flip, config.augment.zoom, config.augment.shift) == (True, 0.2, 0.0)
        assert config.normalize == "dataset"
