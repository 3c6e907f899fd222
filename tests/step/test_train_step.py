"""Training and evaluation steps against NumPy, padding, the number of devices, and how a run is cut into dispatches."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from patchnets.augment import mixup
from patchnets.augment.preprocess import Augment, Preprocess
from patchnets.data.on_device import OnDeviceLoader
from patchnets.models.convmixer import ConvMixer
from patchnets.models.mlp_mixer import MlpMixer
from patchnets.parallel import sharding
from patchnets.step.metrics import EvalMetrics, TrainMetrics
from patchnets.step.multi_step import compile_eval_steps, compile_train_steps
from patchnets.step.train_state import TrainState, create_train_state
from patchnets.step.train_step import Task, train_step

CLASSES, EXAMPLES, BATCH, SMOOTHING = 7, 44, 8, 0.2
STEPS_PER_EPOCH = 6  # the last batch holds 4 examples and 4 of padding
SIZES = dict(num_classes=CLASSES, patch_size=4, depth=2, hidden_dim=8, tokens_mlp_dim=5, channels_mlp_dim=12)
PIXELS = dict(image_size=8, mean=(100.0, 120.0, 140.0), std=(50.0, 60.0, 70.0))


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (EXAMPLES, 8, 8, 3), np.uint8), rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)


def state_of(task: Task) -> TrainState:
    """A state on the host whose parameters are random and none of them zero, so that logits say something."""
    image, rng = jnp.zeros((1, 8, 8, 3)), np.random.default_rng(12)
    shapes = jax.eval_shape(lambda key: task.model.init(key, image, train=False), jax.random.key(0))["params"]
    scale = lambda leaf: 1 / np.sqrt(leaf.shape[0]) if leaf.ndim > 1 else 0.5
    params = jax.tree.map(lambda leaf: (scale(leaf) * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)
    opt_state = jax.jit(task.optimizer.init)(params)
    ema = {"params": params, "batch_stats": {}} if task.ema_decay else {}
    return host(TrainState(np.int32(0), params, {}, ema, opt_state, TrainMetrics.empty()))


def host(tree):
    """Copies, which outlive the buffers that the next dispatch takes."""
    return jax.tree.map(np.array, tree)


def assert_same_bits(first, other) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(other)
    for (path, a), (_, b) in zip(jax.tree.leaves_with_path(first), jax.tree.leaves_with_path(other)):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def smoothed(labels: np.ndarray, smoothing: float) -> np.ndarray:
    return (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES


def evaluation_reference(task: Task, params, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of a whole split at once, in float64, from the network's logits."""
    inputs = (images.astype(np.float64) - PIXELS["mean"]) / PIXELS["std"]
    logits = np.asarray(task.model.apply({"params": params}, jnp.asarray(inputs, jnp.float32), train=False))
    ranks = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(axis=-1)
    losses = -log_softmax(logits)[np.arange(len(labels)), labels]
    return {"loss": losses.mean(), "accuracy": (ranks < 1).mean(), "top5_accuracy": (ranks < 5).mean()}


# --- one step ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain() -> Task:
    """Nothing random, and an optimizer that takes exactly the gradient off the parameters."""
    return Task(
        MlpMixer(**SIZES | dict(depth=1)), optax.sgd(1.0), Preprocess(**PIXELS), seed=0, label_smoothing=SMOOTHING
    )


@pytest.fixture(scope="module")
def plain_step(plain):
    return jax.jit(lambda state, batch: train_step(plain, state, batch))


def batch_fn(data, real: int, size: int) -> dict[str, np.ndarray]:
    """The first `real` examples, then others, mirrored and with other labels, that are masked out."""
    images, labels = data[0][:size].copy(), data[1][:size].copy()
    images[real:], labels[real:] = 255 - images[real:], (labels[real:] + 1) % CLASSES
    return {"image": images, "label": labels, "mask": (np.arange(size) < real).astype(np.float32)}


def test_training_step_measures_and_descends_what_numpy_computes_from_the_logits(plain, plain_step, data):
    state, batch = state_of(plain), batch_fn(data, 6, 6)
    images, labels = batch["image"], batch["label"]
    after, finite = plain_step(state, batch)

    inputs = jnp.asarray((images - np.array(PIXELS["mean"])) / np.array(PIXELS["std"]), jnp.float32)
    logits = np.asarray(plain.model.apply({"params": state.params}, inputs, train=False))
    losses = -(smoothed(labels, SMOOTHING) * log_softmax(logits)).sum(axis=-1)
    ranks = (logits > logits[np.arange(6), labels][:, None]).sum(axis=-1)
    actual = after.metrics.compute()
    np.testing.assert_allclose(actual["loss"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(actual["accuracy"], (ranks < 1).mean(), rtol=1e-6)
    np.testing.assert_allclose(actual["top5_accuracy"], (ranks < 5).mean(), rtol=1e-6)
    assert bool(finite) and int(after.step) == 1

    # The head's gradient has a closed form: the mean over examples of (softmax - target), and its product with what
    # the head is given, here recovered from two sets of logits.
    error = (np.exp(log_softmax(logits)) - smoothed(labels, SMOOTHING)) / 6
    gradient = jax.tree.map(lambda old, new: np.asarray(old) - np.asarray(new), state.params, after.params)
    np.testing.assert_allclose(gradient["head"]["bias"], error.sum(axis=0), atol=1e-5)
    kernel = np.asarray(state.params["head"]["kernel"], np.float64)
    settings = (logits - np.asarray(state.params["head"]["bias"])) @ np.linalg.pinv(kernel)
    projected = kernel.T @ gradient["head"]["kernel"]  # the kernel has more rows than columns: compare in its span
    np.testing.assert_allclose(projected, kernel.T @ settings.T @ error, atol=1e-4)
    norm = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(actual["grad_norm"], norm, rtol=1e-4)


def test_padding_changes_neither_loss_nor_gradient_nor_metrics(plain, plain_step, data):
    state = state_of(plain)
    alone, _ = plain_step(state, batch_fn(data, 6, 6))
    padded, _ = plain_step(state, batch_fn(data, 6, 8))
    for (path, a), (_, b) in zip(jax.tree.leaves_with_path(alone.params), jax.tree.leaves_with_path(padded.params)):
        np.testing.assert_allclose(a, b, atol=2e-6, err_msg=jax.tree_util.keystr(path))
    expected, actual = host(alone.metrics.compute()), host(padded.metrics.compute())
    assert actual == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}
    assert int(padded.metrics.loss.count) == 6

    counted, _ = plain_step(state, batch_fn(data, 6, 8) | {"mask": np.ones(8, np.float32)})
    assert abs(counted.metrics.compute()["loss"] - expected["loss"]) > 1e-3, "the padding would not have shown"


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
def test_padding_is_left_out_of_the_statistics_of_batch_norm(data, scan):
    model = ConvMixer(num_classes=CLASSES, patch_size=4, depth=2, hidden_dim=8, kernel_size=3, scan=scan, remat=scan)
    task = Task(model, optax.sgd(1.0), Preprocess(**PIXELS), seed=0)
    step = jax.jit(lambda state, batch: train_step(task, state, batch))
    init = jax.jit(functools.partial(model.init, train=False))
    batch_stats = init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["batch_stats"]
    state = state_of(task).replace(batch_stats=host(batch_stats))
    (alone, _), (padded, _) = (step(state, batch_fn(data, 6, size)) for size in (6, 8))
    changed = jax.tree.map(lambda new, old: float(np.abs(new - old).max()), alone.batch_stats, state.batch_stats)
    assert min(jax.tree.leaves(changed)) > 1e-4
    for tree in ("params", "batch_stats"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), getattr(alone, tree), getattr(padded, tree)
        )
    counted, _ = step(state, batch_fn(data, 6, 8) | {"mask": np.ones(8, np.float32)})
    shown = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), alone.batch_stats, counted.batch_stats)
    assert max(jax.tree.leaves(shown)) > 1e-3, "the padding would not have shown"


def test_gradient_that_overflows_is_noticed_though_the_loss_is_finite(plain, plain_step, data):
    state = state_of(plain)
    scale, head = state.params["pre_head_layer_norm"]["scale"], state.params["head"]
    params = {
        **state.params,
        "pre_head_layer_norm": {"scale": 1e25 * scale, "bias": 0 * scale},
        "head": {**head, "kernel": 1e-25 * head["kernel"]},
    }
    after, finite = plain_step(state.replace(params=params), batch_fn(data, 6, 6))
    assert np.isfinite(after.metrics.compute()["loss"]) and not finite


def test_loss_that_overflows_is_noticed_though_the_gradient_is_finite(plain, plain_step, data):
    state = state_of(plain)
    bias = np.full(CLASSES, -3e38, np.float32)
    bias[0] = 3e38
    params = {**state.params, "head": {**state.params["head"], "bias": bias}}
    after, finite = plain_step(state.replace(params=params), batch_fn(data, 6, 6))
    assert np.isfinite(after.metrics.compute()["grad_norm"]) and not finite


def test_images_are_prepared_then_mixed_then_erased_each_with_a_key_of_its_own(plain, data):
    calls = []

    def mix(key, images, targets, mask):
        calls.append(("mix", key, float(images.max()), mask))
        return images + 100, targets[::-1]

    def erase(key, images):
        calls.append(("erase", key, float(images.max())))
        return -images

    task = dataclasses.replace(plain, mix=mix, erase=erase)
    batch = batch_fn(data, 5, 8)
    inputs, untouched = task.inputs(batch, jnp.int32(3)), plain.inputs(batch, jnp.int32(3))
    assert [call[0] for call in calls] == ["mix", "erase"] and calls[1][2] > 90 > calls[0][2]
    np.testing.assert_array_equal(calls[0][3], batch["mask"])
    assert not (jax.random.key_data(calls[0][1]) == jax.random.key_data(calls[1][1])).all()
    np.testing.assert_allclose(inputs.images, -(untouched.images + 100), rtol=1e-6)
    np.testing.assert_array_equal(inputs.targets, untouched.targets[::-1])
    np.testing.assert_allclose(untouched.targets, smoothed(batch["label"], SMOOTHING), atol=1e-6)


# --- many steps, on one device and on eight ---------------------------------------------------------------------------


class Training:
    """One compiled program on one mesh, with everything random turned on."""

    def __init__(self, mesh, data):
        self.mesh = mesh
        # The learning rate lies in the state, so that one program serves for several.
        optimizer = optax.inject_hyperparams(optax.adamw)(learning_rate=0.01, weight_decay=0.1)
        model = MlpMixer(**SIZES, dropout_rate=0.2, drop_path_rate=0.2)
        preprocess = Preprocess(**PIXELS, augment=Augment(flip=True, zoom=0.2, translate=0.1))
        mix = functools.partial(mixup.mix, mixup=0.4, cutmix=1.0, mode="example")
        self.task = Task(model, optimizer, preprocess, seed=5, mix=mix, ema_decay=0.9)
        self.loader = OnDeviceLoader(*data, batch_size=BATCH, mesh=mesh, shuffle_seed=5)
        self.train_steps = compile_train_steps(self.task, self.loader.batch, mesh)
        self.start = state_of(self.task)

    def put(self, tree):
        return jax.device_put(tree, sharding.replicated(self.mesh))

    def run(self, *counts: int, learning_rate: float | None = None, params=None) -> tuple[TrainState, bool, float]:
        """The state after dispatches of so many steps each, whether all was finite, and the parameters' norm."""
        state = self.start if params is None else self.start.replace(params=params)
        if learning_rate is not None:
            settings = {**state.opt_state.hyperparams, "learning_rate": np.float32(learning_rate)}
            state = state.replace(opt_state=state.opt_state._replace(hyperparams=settings))
        state, finite, norm = self.put(state), None, None
        for count in counts:
            inputs, available = self.loader.step_inputs(int(state.step))
            assert count <= available
            state, finite, norm = self.train_steps(state, inputs, count, 1.0)
        return host(state), bool(finite), float(norm)


@pytest.fixture(scope="module")
def on1(mesh1, data) -> Training:
    return Training(mesh1, data)


@pytest.fixture(scope="module")
def on8(mesh8, data) -> Training:
    return Training(mesh8, data)


@pytest.mark.slow
def test_an_epoch_measures_the_same_on_one_device_and_on_eight(on1, on8):
    (first, *_, norm1), (eight, *_, norm8) = on1.run(STEPS_PER_EPOCH), on8.run(STEPS_PER_EPOCH)
    assert first.step == eight.step == STEPS_PER_EPOCH
    assert first.metrics.loss.count == eight.metrics.loss.count == EXAMPLES
    expected, actual = first.metrics.compute(), eight.metrics.compute()
    for name in ("loss", "accuracy", "top5_accuracy", "grad_norm"):
        np.testing.assert_allclose(actual[name], expected[name], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(norm8, norm1, rtol=1e-4)
    for (path, a), (_, b) in zip(jax.tree.leaves_with_path(first.params), jax.tree.leaves_with_path(eight.params)):
        name = jax.tree_util.keystr(path)
        if "token_mixing']['Dense_1']['bias" not in name:  # has no gradient but rounding, which Adam blows up
            np.testing.assert_allclose(a, b, atol=2e-4, err_msg=name)


def test_augmentation_and_dropout_are_on_in_training(on1, data):
    """Else the tests around this one would compare less than they say."""
    state, *_ = on1.run(STEPS_PER_EPOCH, learning_rate=0.0)
    assert_same_bits(state.params, on1.start.params)
    actual, expected = state.metrics.compute(), evaluation_reference(on1.task, state.params, *data)
    assert abs(actual["loss"] - expected["loss"]) > 1e-3


@pytest.mark.parametrize("what", ["augmentation", "dropout"])
def test_randomness_is_drawn_anew_each_step_and_again_alike_for_the_same_step(on1, what):
    """The same parameters and the same examples: the first batch, at step 0, an epoch later, and two."""
    inputs, _ = on1.loader.step_inputs(0)
    params = on1.start.params
    if what == "dropout":  # images of one color look alike however they are moved
        images = np.array(inputs.images)
        inputs = inputs._replace(images=on1.put(np.broadcast_to(images[:, :1, :1], images.shape).copy()))
    else:  # branches that are zero stay zero whatever is dropped
        clear = lambda path, leaf: 0 * leaf if "Dense_1" in jax.tree_util.keystr(path) else leaf
        params = jax.tree_util.tree_map_with_path(clear, params)

    def loss(step: int) -> float:
        state = on1.put(on1.start.replace(step=np.int32(step), params=params))
        return float(on1.train_steps(state, inputs, 1, 1.0)[0].metrics.compute()["loss"])

    losses = [loss(epoch * STEPS_PER_EPOCH) for epoch in (0, 1, 2, 0)]
    assert losses[0] == losses[3]
    assert min(abs(losses[0] - losses[1]), abs(losses[1] - losses[2]), abs(losses[2] - losses[0])) > 1e-4


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("counts", [(1, 1, 1, 1, 1), (2, 3)])
def test_cutting_the_same_steps_into_other_dispatches_changes_no_bit(on1, on8, devices, counts):
    training = {1: on1, 8: on8}[devices]
    full, cut = training.run(5)[0], training.run(*counts)[0]
    assert full.step == cut.step == 5
    assert_same_bits(full, cut)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), full.params, training.start.params)
    assert all(change > 1e-3 for change in jax.tree.leaves(moved)), "nothing moved"


def test_cutting_differs_neither_across_epochs(on1):
    assert_same_bits(on1.run(6, 3)[0], on1.run(4, 2, 1, 2)[0])


@pytest.mark.parametrize("devices", [1, 8])
def test_content_of_padding_changes_no_bit_with_augmentation_and_dropout(on1, on8, devices):
    """The last batch of an epoch is filled up with the epoch's first examples: other ones must make no difference."""
    training = {1: on1, 8: on8}[devices]
    inputs, _ = training.loader.step_inputs(0)
    order = np.array(inputs.order)
    order[:16] = np.roll(order[:16], 8)  # the first and the second batch of 8 change places
    exchanged = inputs._replace(order=training.put(order))

    def step(number: int, inputs) -> TrainState:
        state = training.put(training.start.replace(step=np.int32(number)))
        return host(training.train_steps(state, inputs, 1, 1.0)[0])

    assert_same_bits(step(STEPS_PER_EPOCH - 1, exchanged), step(STEPS_PER_EPOCH - 1, inputs))
    losses = [float(step(0, settings).metrics.compute()["loss"]) for settings in (exchanged, inputs)]
    assert abs(losses[0] - losses[1]) > 1e-3, "the examples that changed places are not told apart"


def test_norm_of_the_parameters_is_that_after_the_last_step(on1):
    state, _, norm = on1.run(3)
    expected = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in jax.tree.leaves(state.params)))
    np.testing.assert_allclose(norm, expected, rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_parameters_that_are_not_numbers_stop_the_dispatch_after_one_step(on1, on8, devices):
    training = {1: on1, 8: on8}[devices]
    head = training.start.params["head"]
    broken = {**training.start.params, "head": {**head, "bias": np.full(CLASSES, np.nan, np.float32)}}
    state, finite, _ = training.run(5, params=broken)
    assert not finite and state.step == 1


def test_learning_rate_that_breaks_the_first_update_stops_the_dispatch_after_the_second_step(on1):
    """The first loss is still finite; the one after the update is the first that is not."""
    state, finite, _ = on1.run(1, learning_rate=np.inf)
    assert finite and state.step == 1
    state, finite, norm = on1.run(5, learning_rate=np.inf)
    assert not finite and state.step == 2 and not np.isfinite(norm)
    assert on1.run(5)[1], "the same program, at a learning rate that does no harm"


def test_buffers_of_the_old_state_are_donated(on1):
    state, *_ = on1.train_steps(on1.put(on1.start), on1.loader.step_inputs(0)[0], 1, 1.0)
    old = jax.tree.leaves(state)
    new, *_ = on1.train_steps(state, on1.loader.step_inputs(1)[0], 1, 1.0)
    assert all(leaf.is_deleted() for leaf in old)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


# --- the start, and evaluation ----------------------------------------------------------------------------------------


class Bare(nn.Module):
    """The smallest network with random parameters."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(CLASSES)(images.reshape(len(images), -1))


def test_initial_state_is_the_same_on_one_device_and_on_eight_and_whole_on_each(mesh1, mesh8):
    make = lambda mesh, seed: create_train_state(
        Bare(), optax.adam(0.1), image_size=4, channels=3, seed=seed, mesh=mesh
    )
    eight = make(mesh8, 7)
    assert_same_bits(host(eight), host(make(mesh1, 7)))
    for leaf in jax.tree.leaves(eight):
        assert leaf.sharding.is_fully_replicated and len(leaf.addressable_shards) == 8
    assert eight.step == 0 and eight.metrics.loss.count == 0
    assert eight.params["Dense_0"]["kernel"].shape == (48, CLASSES)
    kernels = [np.asarray(make(mesh1, seed).params["Dense_0"]["kernel"]) for seed in (7, 8)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01


@pytest.mark.parametrize("devices", [1, 8])
def test_evaluation_counts_every_example_once(on1, on8, data, devices):
    training = {1: on1, 8: on8}[devices]
    loader = OnDeviceLoader(*data, batch_size=BATCH, mesh=training.mesh)
    eval_steps = compile_eval_steps(training.task, loader.batch, training.mesh)
    inputs, available = loader.step_inputs(0)
    assert available == loader.steps_per_epoch == STEPS_PER_EPOCH
    state, nothing = training.put(training.start), training.put(EvalMetrics.empty())
    at_once = eval_steps(state, nothing, inputs, 0, STEPS_PER_EPOCH)
    assert int(at_once.loss.count) == int(at_once.accuracy.count) == EXAMPLES
    expected = evaluation_reference(training.task, training.start.params, *data)
    actual = host(at_once.compute())
    assert actual == {name: pytest.approx(value, abs=1e-5) for name, value in expected.items()}
    assert 0 < actual["accuracy"] < actual["top5_accuracy"] < 1

    in_two = eval_steps(state, eval_steps(state, nothing, inputs, 0, 2), inputs, 2, STEPS_PER_EPOCH - 2)
    assert_same_bits(host(in_two), host(at_once))
