"""Every architecture learns: one epoch on the digits, by the same steps as any run."""

import jax
import numpy as np
import optax
import pytest

from patchnets import models
from patchnets.augment.preprocess import Preprocess
from patchnets.config import default_config
from patchnets.data.on_device import OnDeviceLoader
from patchnets.data.sources.digits import Digits
from patchnets.step.metrics import TrainMetrics
from patchnets.step.multi_step import compile_train_steps
from patchnets.step.train_state import create_train_state
from patchnets.step.train_step import Task

COMMON = dict(patch_size=2, depth=2, hidden_dim=32)
SMALL = {
    "mlp_mixer": dict(tokens_mlp_dim=16, channels_mlp_dim=64),
    "fnet": dict(mlp_dim=64),
    "gmlp": dict(ffn_dim=64),
    "convmixer": dict(kernel_size=3),
    "vit": dict(mlp_dim=64, num_heads=2),
    "keras_mixer": dict(dropout_rate=0.1),
    "keras_fnet": dict(dropout_rate=0.1),
    "keras_gmlp": dict(dropout_rate=0.1),
    "keras_vit": dict(num_heads=2, mlp_dim=64, dropout_rate=0.1, head_dropout_rate=0.1),
    "keras_convmixer": dict(kernel_size=3),
    "blog_mixer_pytorch": dict(tokens_mlp_dim=16, channels_mlp_dim=64),
    "blog_mixer_keras": dict(tokens_mlp_dim=16, channels_mlp_dim=64),
}
# What is left of the first step's loss in the last ten steps of the epoch; two of them start slowly.
LEFT = dict.fromkeys(models.MODELS, 0.6) | {"fnet": 0.85, "vit": 0.9}


@pytest.fixture(scope="module")
def loader(mesh1):
    images, labels = zip(*Digits().records("train").examples(range(1438)))
    return OnDeviceLoader(np.stack(images), np.array(labels, np.int32), batch_size=16, mesh=mesh1, shuffle_seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_the_loss_falls_within_one_epoch(name, loader, mesh1):
    config = default_config(model=dict(name=name, **COMMON, **SMALL[name])).model
    model, optimizer = models.create_model(**config, num_classes=10), optax.adamw(5e-3)
    task = Task(model, optimizer, Preprocess(8, (127.5,), (127.5,)), seed=0)
    state = create_train_state(model, optimizer, image_size=8, channels=1, seed=0, mesh=mesh1)
    steps = compile_train_steps(task, loader.batch, mesh1)
    inputs, epoch = loader.step_inputs(0)
    losses = []
    for count in (1, epoch - 11, 10):
        state, finite, _ = steps(state.replace(metrics=TrainMetrics.empty()), inputs, count, 1.0)
        losses.append(float(state.metrics.compute()["loss"]))
        assert finite
    assert losses[-1] < LEFT[name] * losses[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
