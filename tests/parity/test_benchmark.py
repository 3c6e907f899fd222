"""The benchmark's Keras and timm networks equal ours in parameters and multiply-accumulates."""

import math
import re

import keras_models  # Keras with JAX, or the whole file is skipped
import numpy as np
import pytest

from experiments.benchmark import keras_tutorials, workloads
from experiments.micro import keras_accuracy
from patchnets import models
from patchnets.models.flops import cost
from patchnets.models.published_sizes import PUBLISHED

torch = pytest.importorskip("torch")
with_timm = pytest.importorskip("experiments.benchmark.bench_timm")  # which needs timm

TIMM = [name for name, workload in workloads.WORKLOADS.items() if workload.timm]
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # PyTorch's
# The paper's networks at the tutorials' sizes, which is what timm's classes make.
AT_SIZE = {
    "mixer": ("mlp_mixer", dict(patch_size=8, depth=4, hidden_dim=256, tokens_mlp_dim=64, channels_mlp_dim=64)),
    "gmlp": ("gmlp", dict(patch_size=8, depth=4, hidden_dim=256, ffn_dim=512)),
}


@pytest.mark.parametrize("name", workloads.TUTORIALS)
def test_keras_has_as_many_parameters_as_published(name):
    model = keras_tutorials.build(name, np.zeros((2, 32, 32, 3), np.uint8))
    count = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    assert count == PUBLISHED[workloads.TUTORIALS[name].model].params
    assert model.output_shape == (None, workloads.TUTORIALS[name].classes)
    assert isinstance(model, keras_models.keras.Model)


def test_keras_is_trained_and_tested_on_the_images_of_the_splits(monkeypatch, capsys):
    """Images that say their class by their brightness are learned in a few epochs; by chance, 1 % are right."""
    rng = np.random.default_rng(0)

    def sample(count):
        labels = rng.integers(0, 2, count)
        images = rng.integers(0, 50, (count, 32, 32, 3)) + 200 * labels[:, None, None, None]
        return images.astype(np.uint8), labels

    monkeypatch.setattr(
        keras_accuracy, "arrays", lambda config: {"train": sample(64), "val": sample(64), "test": sample(64)}
    )
    assert keras_accuracy.main(["keras_accuracy", "--model=mixer", "--epochs=4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == [*(f"seed 0, epoch {n}" for n in (1, 2, 3, 4)), "seed 0"]
    assert float(re.search(r"test top-1 ([\d.]+)%, top-5 [\d.]+%; ", lines[-1])[1]) > 80


@pytest.mark.parametrize("name", [name for name in TIMM if name != "vit"])
def test_timm_has_as_many_parameters_and_operations_as_ours(name):
    workload = workloads.WORKLOADS[name]
    kind, fields = AT_SIZE.get(name) or (workload.model[0], models.MODELS[workload.model[0]][1][workload.model[1]])
    actual = cost(models.MODELS[kind][0](num_classes=workload.classes, **fields), workload.image_size)
    with torch.device("meta"):
        network = with_timm.build(name)
    assert sum(value.numel() for value in network.parameters()) == actual.params
    # Where the class token goes through the last head, and where timm pads, both count alike to a thousandth.
    assert with_timm.forward_flops(name) / 2 == pytest.approx(actual.macs, rel=1e-3)


def test_timm_s_vit_is_the_tutorial_s_up_to_its_head():
    with torch.device("meta"):
        network = with_timm.build("vit")
    actual = cost(models.MODELS["keras_vit"][0](num_classes=100, **models.MODELS["keras_vit"][1]["cifar100"]), 72)
    hidden = 9216 * 2048 + 2048 * 1024  # and their biases; the tutorial's last layer sees 1024 units, timm's 64
    ours = actual.params - (hidden + 2048 + 1024) - (1024 - 64) * 100
    assert sum(value.numel() for value in network.parameters()) == ours
    assert with_timm.forward_flops("vit") / 2 == pytest.approx(actual.macs - hidden - (1024 - 64) * 100, rel=1e-3)
