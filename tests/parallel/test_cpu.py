"""CPU tuning: devices and microbatches, and equal gradients with and without microbatches."""

import functools
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from configs import convmixer_cifar10, mixer_cifar100, mixer_digits, vit_cifar100
from patchnets import config as config_lib
from patchnets import models
from patchnets.augment.preprocess import Preprocess
from patchnets.errors import UserError
from patchnets.models.layers import gelu_exact
from patchnets.parallel import cpu, mesh
from patchnets.step import gradients, losses, train_step
from patchnets.step.train_state import abstract_params

BATCH = 16


@pytest.mark.parametrize(
    "cores, batches, devices",
    [(2, {128}, 2), (2, {128, 7}, 1), (3, {128}, 2), (3, {96}, 3), (64, {128, 256}, 8), (1, {128}, 1), (8, {12}, 6)],
)
def test_devices_divide_every_batch(cores, batches, devices):
    assert cpu.devices_for(cores, batches) == devices


@pytest.mark.parametrize(
    "file, classes, devices, groups",
    [
        (mixer_cifar100, 100, 1, 8),  # 64 patches of 256 channels: 64 KiB an example, so 16 examples
        (mixer_cifar100, 100, 8, 8),
        (mixer_cifar100, 100, 3, 1),  # cannot be split over three
        (vit_cifar100, 100, 2, 16),  # 4 heads of 144 x 144 weights, 324 KiB: 16 examples are the fewest
        (mixer_digits, 10, 2, 1),  # all of it fits
        (convmixer_cifar10, 10, 1, 1),
        (convmixer_cifar10, 10, 2, 2),  # BatchNorm
    ],
)
def test_groups(file, classes, devices, groups):
    config = file.get_config()
    model = models.create_model(**config.model, num_classes=classes)
    shapes = abstract_params(model, config.image_size, 1 if classes == 10 and file is mixer_digits else 3)
    assert cpu.num_microbatches(model, shapes, config.image_size, config.batch_size, devices) == groups


@pytest.mark.parametrize("microbatch, groups", [(None, 8), (0, 1), (16, 8), (32, 4), (64, 2)])
def test_the_configuration_may_say_how_many_examples_a_microbatch_has(microbatch, groups):
    config = mixer_cifar100.get_config()
    config.cpu.microbatch = microbatch
    config_lib.validate(config)
    model = models.create_model(**config.model, num_classes=100)
    params = abstract_params(model, config.image_size, 3)
    count = functools.partial(cpu.num_microbatches, model, params, config.image_size, microbatch=config.cpu.microbatch)
    assert (count(config.batch_size, 2), count(config.batch_size, 2, train=False)) == (groups, groups)


@pytest.mark.parametrize("microbatch, words", [(24, "64 examples"), (128, "64 examples")])
def test_a_microbatch_that_does_not_divide_is_refused(microbatch, words):
    config = mixer_cifar100.get_config()
    model = models.create_model(**config.model, num_classes=100)
    with pytest.raises(UserError, match=f"config.cpu.microbatch={microbatch} .*{words}.* 2 devices"):
        cpu.num_microbatches(model, None, config.image_size, config.batch_size, 2, microbatch=microbatch)


def test_batch_norm_takes_only_whole_shares():
    model = models.create_model(**convmixer_cifar10.get_config().model, num_classes=10)
    count = functools.partial(cpu.num_microbatches, model, None, 32, 128, 2)
    assert (count(microbatch=64), count(microbatch=0), count(train=False, microbatch=16)) == (2, 1, 8)
    with pytest.raises(UserError, match=r"BatchNorm.* use 64"):
        count(microbatch=16)


def test_microbatches_and_accumulation_are_not_asked_for_together():
    config = mixer_cifar100.get_config()
    config.cpu.microbatch, config.grad_accum_steps = 16, 2
    with pytest.raises(UserError, match=r"cpu\.microbatch=16 and config\.grad_accum_steps=2"):
        config_lib.validate(config)
    config.cpu.microbatch = 0
    config_lib.validate(config)


def test_microbatches_are_part_of_what_a_run_computes_and_devices_are_not():
    config = mixer_cifar100.get_config()
    plain = config_lib.config_hash(config)
    config.cpu.devices = 1
    assert config_lib.config_hash(config) == plain
    config.cpu.microbatch = 0  # dropout draws other masks
    assert config_lib.config_hash(config) != plain
    before, after = (config_lib.flatten(c) for c in (mixer_cifar100.get_config(), config))
    assert config_lib.recipe_diff(before, after) == []


def test_the_largest_activation_of_a_vit_is_its_attention():
    config = vit_cifar100.get_config()
    model = models.create_model(**config.model, num_classes=100)
    actual = cpu.largest_activation(model, abstract_params(model, 72, 3), 72)
    assert actual == 4 * 144 * 144 * 4  # heads, queries, keys, bytes


@pytest.mark.parametrize("config, groups", [(mixer_cifar100.get_config(), 8), (convmixer_cifar10.get_config(), 8)])
def test_evaluation_goes_in_groups_with_batch_norm_too(config, groups):
    model = models.create_model(**config.model, num_classes=10)
    shapes = abstract_params(model, config.image_size, 3)
    assert cpu.num_microbatches(model, shapes, config.image_size, config.batch_size, 2, train=False) == groups


@pytest.mark.slow
@pytest.mark.parametrize("groups, devices", [(4, 1), (4, 2), (8, 8)])
def test_a_batch_is_evaluated_in_groups_as_at_once(groups, devices):
    network, _ = models.MODELS["convmixer"]
    model = network(num_classes=5, patch_size=2, depth=1, hidden_dim=8, kernel_size=3)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 8, 8, 3), np.uint8)
    preprocess = Preprocess(8, (127.5,) * 3, (64.0,) * 3)
    at_once = train_step.Task(model, optax.identity(), preprocess, 0).logits_fn
    grouped = cpu.per_device_microbatch_logits(at_once, groups, mesh_of(devices))
    actual, expected = (jax.jit(logits_fn)(variables, images) for logits_fn in (grouped, at_once))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def mesh_of(devices):
    return mesh.arrange_devices(jax.devices()[:devices], (devices, 1))


def a_batch(rows=12, classes=5):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, BATCH)
    mask = np.ones(BATCH, np.float32)
    mask[[3, 14, 15]] = 0
    images = rng.standard_normal((BATCH, rows, rows, 3), np.float32)
    return gradients.Inputs(jnp.asarray(images), losses.smooth_one_hot(jnp.asarray(labels), classes), jnp.asarray(mask))


def grad_fn_of(model):
    """The training step's own, of softmax cross-entropy."""
    task = train_step.Task(model, optax.identity(), Preprocess(8, (127.5,) * 3, (64.0,) * 3), 0)
    return jax.value_and_grad(task.loss_fn, has_aux=True)


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.fixture(scope="module")
def mixer():
    network, _ = models.MODELS["keras_mixer"]
    model = network(num_classes=5, patch_size=4, depth=1, hidden_dim=8, dropout_rate=0.0)
    init = jax.jit(functools.partial(model.init, train=False))
    return model, init(jax.random.key(1), jnp.zeros((1, 12, 12, 3)))["params"]


@pytest.mark.slow
@pytest.mark.parametrize("groups, devices", [(4, 1), (4, 2), (8, 8)])
def test_a_batch_in_groups_has_the_gradient_of_the_batch(mixer, groups, devices):
    model, params = mixer
    batch, key, grad_fn = a_batch(), jax.random.key(2), grad_fn_of(model)
    (loss, aux), expected = jax.jit(grad_fn)(params, {}, batch, key)
    grouped = jax.jit(cpu.per_device_microbatch_grads(grad_fn, groups, mesh_of(devices)))
    (loss_in_groups, actual), grads = grouped(params, {}, batch, key)
    close(grads, expected, rtol=1e-4, atol=1e-6)
    close((loss_in_groups, actual.losses, actual.logits), (loss, aux.losses, aux.logits), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_groups_and_sharpness_compose(mixer):
    """As many roundings as there are groups apart, SAM is that of the whole batch."""
    model, params = mixer
    batch, key, grad_fn = a_batch(), jax.random.key(2), grad_fn_of(model)
    grouped = cpu.per_device_microbatch_grads(grad_fn, 4, mesh_of(2))
    actual, expected = (jax.jit(gradients.sharpness_aware(f, 0.1))(params, {}, batch, key) for f in (grouped, grad_fn))
    close(actual[1], expected[1], rtol=1e-3, atol=1e-5)
    close(actual[0][0], expected[0][0], rtol=1e-5)


@pytest.mark.slow
def test_dropout_in_groups_is_the_same_on_any_number_of_devices(mixer):
    model, params = mixer
    model = model.clone(dropout_rate=0.5)
    batch, grad_fn = a_batch(), grad_fn_of(model)

    @functools.cache
    def grouped(devices):
        return jax.jit(cpu.per_device_microbatch_grads(grad_fn, 4, mesh_of(devices)))

    def grads_and_aux(batch, seed, devices):
        (_, aux), grads = grouped(devices)(params, {}, batch, jax.random.key(seed))
        return grads, aux

    first, four, other = (grads_and_aux(batch, seed, devices) for seed, devices in ((2, 1), (2, 4), (3, 1)))
    close(four, first, rtol=1e-4, atol=1e-6)
    assert np.abs(other[1].losses - first[1].losses).max() > 1e-3
    # Each group draws a mask of its own: the same image in two groups is dropped out otherwise.
    alike = batch._replace(images=jnp.tile(batch.images[:1], (BATCH, 1, 1, 1)))
    logits = grads_and_aux(alike, 2, 2)[1].logits
    assert np.unique(np.round(logits, 5), axis=0).shape[0] == BATCH


@pytest.mark.slow
def test_batch_norm_in_groups_looks_at_all_examples():
    network, _ = models.MODELS["convmixer"]
    model = network(num_classes=5, patch_size=2, depth=1, hidden_dim=8, kernel_size=3)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))
    params, stats = variables["params"], variables["batch_stats"]
    batch, key, grad_fn = a_batch(rows=8), jax.random.key(2), grad_fn_of(model)
    expected = jax.jit(grad_fn)(params, stats, batch, key)
    actual = jax.jit(cpu.per_device_microbatch_grads(grad_fn, 4, mesh_of(4)))(params, stats, batch, key)
    close(actual[1], expected[1], rtol=2e-3, atol=2e-5)
    close(actual[0], expected[0], rtol=1e-4, atol=1e-5)


def test_gelu_against_the_normal_distribution():
    x = np.concatenate([np.linspace(-12, 12, 4001), [-1e4, 1e4, 0.0]])
    cdf, density = special.ndtr(x), np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    wide = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(gelu_exact(wide), x * cdf, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu_exact))(wide), cdf + x * density, rtol=1e-6, atol=2e-6)
    narrow = wide.astype(jnp.bfloat16)
    assert gelu_exact(narrow).dtype == jnp.bfloat16
    plain = nn.gelu(narrow.astype(jnp.float32), approximate=False)
    np.testing.assert_allclose(gelu_exact(narrow).astype(jnp.float32), plain, rtol=2**-8, atol=1e-6)


PROGRAM = """
import jax
from configs import mixer_digits
from patchnets.experiment import use_cpu_cores
from patchnets.parallel import cpu
config = mixer_digits.get_config()
{change}
use_cpu_cores(config)
print(jax.device_count())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, flags, expected",
    [
        ("cpu.runtime.cores = lambda: 4", "", 4),
        ("cpu.runtime.cores = lambda: 4; config.mesh.data = 1", "", 1),
        ("cpu.runtime.cores = lambda: 4; config.cpu.devices = 2", "", 2),
        ("cpu.runtime.cores = lambda: 4; config.cpu.devices = 1", "", 1),
        ("cpu.runtime.cores = lambda: 4", "--xla_force_host_platform_device_count=3", 3),
    ],
)
def test_each_core_becomes_a_device_unless_told_otherwise(change, flags, expected):
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(change=change)], env=environment, capture_output=True, text=True
    )
    assert ran.stdout.split() == [str(expected)], ran.stderr
