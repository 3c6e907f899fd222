"""Losses against their formulas, accumulated gradients against the whole batch's, SAM and running means by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from patchnets.augment.preprocess import Preprocess
from patchnets.models.convmixer import ConvMixer
from patchnets.models.mlp_mixer import MlpMixer
from patchnets.step import gradients, losses
from patchnets.step.train_state import create_train_state
from patchnets.step.train_step import Task, train_step, update_ema

CLASSES, BATCH = 5, 8
MIXER = MlpMixer(CLASSES, patch_size=4, depth=2, hidden_dim=8, tokens_mlp_dim=5, channels_mlp_dim=12)
CONVMIXER = ConvMixer(CLASSES, patch_size=4, depth=1, hidden_dim=6, kernel_size=3, batch_norm_momentum=0.9)


@pytest.fixture(scope="module")
def batch() -> gradients.Inputs:
    """Images, targets that are mixed, and a mask that leaves one part of four with fewer examples than the others."""
    rng = np.random.default_rng(0)
    targets = rng.dirichlet(np.ones(CLASSES), BATCH).astype(np.float32)
    mask = np.array([1, 1, 1, 0, 1, 1, 1, 0], np.float32)
    return gradients.Inputs(rng.standard_normal((BATCH, 8, 8, 3)).astype(np.float32), targets, mask)


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.log1p(np.exp(-x))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_softmax_cross_entropy_of_smoothed_targets_equals_its_formula(smoothing):
    rng = np.random.default_rng(8)
    logits, labels = 3 * rng.standard_normal((20, CLASSES)), rng.integers(0, CLASSES, 20)
    shares = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
    expected = -(shares * (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))).sum(axis=-1)
    actual = losses.LOSSES["softmax"](logits.astype(np.float32), losses.smooth_one_hot(labels, CLASSES, smoothing))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_sigmoid_cross_entropy_sums_a_question_a_class():
    rng = np.random.default_rng(9)
    logits, targets = 3 * rng.standard_normal((20, CLASSES)), rng.random((20, CLASSES))
    expected = -(targets * log_sigmoid(logits) + (1 - targets) * log_sigmoid(-logits)).sum(axis=-1)
    actual = losses.LOSSES["sigmoid"](logits.astype(np.float32), targets.astype(np.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def params_of(model: nn.Module, **kwargs):
    """Random parameters, none of them zero, and statistics."""
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p + 0.3 * rng.standard_normal(p.shape).astype(np.float32), variables["params"])
    return params, variables.get("batch_stats", {})


def assert_close(first, other, **tolerance) -> None:
    for (path, a), (_, b) in zip(jax.tree.leaves_with_path(first), jax.tree.leaves_with_path(other), strict=True):
        np.testing.assert_allclose(a, b, **tolerance, err_msg=jax.tree_util.keystr(path))


def grad_fn_of(model: nn.Module):
    """The training step's own, of softmax cross-entropy."""
    task = Task(model, optax.identity(), Preprocess(8, (127.5,) * 3, (127.5,) * 3), seed=0)
    return jax.value_and_grad(task.loss_fn, has_aux=True)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(batch, parts):
    params, stats = params_of(MIXER)
    grad_fn, key = grad_fn_of(MIXER), jax.random.key(0)
    (loss, aux), grads = jax.jit(grad_fn)(params, stats, batch, key)
    accumulated = jax.jit(gradients.accumulate_grads(grad_fn, parts))
    (loss_of_parts, aux_of_parts), grads_of_parts = accumulated(params, stats, batch, key)
    assert_close(grads_of_parts, grads, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(loss_of_parts, loss, rtol=1e-5)
    np.testing.assert_allclose(loss, np.sum(aux.losses * batch.mask) / batch.mask.sum(), rtol=1e-5)
    np.testing.assert_allclose(aux_of_parts.losses, aux.losses, rtol=1e-5)  # in the order of the batch
    np.testing.assert_allclose(aux_of_parts.logits, aux.logits, rtol=1e-4, atol=1e-5)


def test_one_part_is_the_whole_batch():
    grad_fn = grad_fn_of(MIXER)
    assert gradients.accumulate_grads(grad_fn, 1) is grad_fn


@pytest.mark.slow
def test_batch_norm_sees_the_parts_one_after_the_other(batch):
    model = CONVMIXER
    params, stats = params_of(model)
    key, parts = jax.random.key(0), 2
    (_, aux), _ = jax.jit(gradients.accumulate_grads(grad_fn_of(model), parts))(params, stats, batch, key)
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    expected = stats
    for j in range(parts):
        part = jax.tree.map(lambda x: x[j::parts], batch)  # noqa: B023
        variables = {"params": params, "batch_stats": expected}
        _, updated = train(variables, part.images, mask=part.mask)
        expected = updated["batch_stats"]
    assert_close(aux.batch_stats, expected, rtol=1e-5, atol=1e-6)
    assert any(not np.allclose(a, b) for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(stats)))


@pytest.mark.parametrize("model", [MIXER, CONVMIXER], ids=["mlp_mixer", "convmixer"])
def test_a_batch_of_nothing_but_padding_changes_nothing(batch, model):
    params, stats = params_of(model)
    none = batch._replace(mask=np.zeros(BATCH, np.float32))
    accumulated = jax.jit(gradients.accumulate_grads(grad_fn_of(model), 2))
    (_, aux), grads = accumulated(params, stats, none, jax.random.key(0))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))
    assert_close(aux.batch_stats, stats)


def test_sharpness_aware_gradient_is_taken_uphill_by_the_radius():
    """On the quadratic 1/2 x'Ax, whose gradient is Ax everywhere."""
    matrix = np.diag([1.0, 4.0, 9.0])
    at = np.array([3.0, -1.0, 0.5])
    measured = gradients.Aux(np.zeros(1), np.zeros((1, 1)), {"of": "the first pass"})
    visited = []

    def grad_fn(x, factor):
        visited.append(np.asarray(x))
        loss = factor * x @ matrix @ x / 2
        return (loss, measured if len(visited) == 1 else None), factor * matrix @ x

    (loss, aux), actual = gradients.sharpness_aware(grad_fn, 0.25)(jnp.asarray(at, jnp.float32), 1.0)
    uphill = at + 0.25 * (matrix @ at) / np.linalg.norm(matrix @ at)
    np.testing.assert_allclose(visited[1], uphill, rtol=1e-5)
    np.testing.assert_allclose(actual, matrix @ uphill, rtol=1e-5)
    np.testing.assert_allclose(loss, at @ matrix @ at / 2, rtol=1e-5)
    assert aux is measured


@pytest.mark.slow
def test_accumulation_and_sharpness_compose(batch):
    """SAM of accumulated gradients: both passes go over the whole batch in parts, and their norm is the batch's."""
    params, stats = params_of(MIXER)
    grad_fn, key, rho = grad_fn_of(MIXER), jax.random.key(0), 0.3
    (loss, aux), grads = jax.jit(grad_fn)(params, stats, batch, key)
    norm = np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(grads)))
    uphill = jax.tree.map(lambda p, g: p + rho / norm * g, params, grads)
    _, expected = jax.jit(grad_fn)(uphill, stats, batch, key)
    composed = gradients.sharpness_aware(gradients.accumulate_grads(grad_fn, 4), rho)
    (composed_loss, composed_aux), actual = jax.jit(composed)(params, stats, batch, key)
    assert_close(actual, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(composed_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(composed_aux.losses, aux.losses, rtol=1e-5)
    apart = max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(grads), strict=True))
    assert apart > 1e-3, "the radius would not have shown"


@pytest.mark.slow
def test_frozen_parameters_have_no_gradient_nor_a_part_in_the_radius(batch):
    params, stats = params_of(MIXER)
    grad_fn, key, rho = grad_fn_of(MIXER), jax.random.key(0), 0.3
    frozen = {name: jax.tree.map(lambda _, name=name: name != "head", tree) for name, tree in params.items()}
    actual = jax.jit(gradients.sharpness_aware(gradients.zero_frozen_grads(grad_fn, frozen), rho))
    _, grads = actual(params, stats, batch, key)
    assert all(not np.any(leaf) for name, tree in grads.items() if name != "head" for leaf in jax.tree.leaves(tree))
    head = jax.jit(grad_fn)(params, stats, batch, key)[1]["head"]
    norm = np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(head)))
    uphill = params | {"head": jax.tree.map(lambda p, g: p + rho / norm * g, params["head"], head)}
    assert_close(grads["head"], jax.jit(grad_fn)(uphill, stats, batch, key)[1]["head"], rtol=1e-3, atol=1e-5)


def test_running_mean_grows_its_decay_up_to_the_one_given():
    value, expected = np.float32(0.0), 0.0
    for step in range(200):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        value = update_ema({"w": value}, {"w": np.float32(step)}, 0.9, jnp.int32(step))["w"]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert 150 < expected < 199


@pytest.fixture(scope="module")
def averaging(mesh1):
    """A task that keeps a running mean, its state after two steps, and the parameters on the way."""
    task = Task(MIXER, optax.sgd(0.5), Preprocess(8, (127.5,) * 3, (127.5,) * 3), seed=0, ema_decay=0.5)
    rng = np.random.default_rng(5)
    batch = {
        "image": rng.integers(0, 256, (BATCH, 8, 8, 3), np.uint8),
        "label": rng.integers(0, CLASSES, BATCH),
        "mask": np.ones(BATCH, np.float32),
    }
    state = create_train_state(
        MIXER, task.optimizer, image_size=8, channels=3, seed=0, mesh=mesh1, init_head_bias=-2.5, ema=True
    )
    step = jax.jit(lambda state, batch: train_step(task, state, batch)[0])
    states = [state]
    for _ in range(2):
        states.append(step(states[-1], batch))
    return states


@pytest.mark.slow
def test_evaluation_takes_the_running_mean_of_the_parameters(averaging):
    first, second, third = averaging
    mean = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, first.params, second.params)
    expected = jax.tree.map(lambda m, c: 2 / 11 * m + 9 / 11 * c, mean, third.params)
    assert_close(third.eval_variables["params"], expected, rtol=1e-4, atol=1e-6)
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), third.eval_variables["params"], third.params)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_head_starts_at_the_bias_that_is_given(averaging):
    np.testing.assert_array_equal(averaging[0].params["head"]["bias"], np.full(CLASSES, -2.5, np.float32))
    assert not np.any(averaging[0].params["stem"]["bias"])
