"""Training and evaluation steps against NumPy, padding, the number of devices, and how a run is cut into dispatches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from patchnets.data.preprocess import Augment, Preprocess
from patchnets.data.resident import ResidentFeed
from patchnets.metrics import EvalMetrics
from patchnets.models.mlp_mixer import MlpMixer
from patchnets.steps import Task, compile_eval_steps, compile_train_steps, cross_entropy, train_step
from patchnets.train_state import TrainState, create_train_state

CLASSES, EXAMPLES, BATCH, SMOOTHING = 7, 44, 8, 0.2
STEPS_PER_EPOCH = 6  # the last batch holds 4 examples and 4 of padding
SIZES = dict(num_classes=CLASSES, patch_size=4, depth=2, hidden_dim=8, tokens_mlp_dim=5, channels_mlp_dim=12)
PIXELS = dict(image_size=8, mean=(100.0, 120.0, 140.0), std=(50.0, 60.0, 70.0))


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (EXAMPLES, 8, 8, 3), np.uint8), rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)


def state_of(task: Task, mesh) -> TrainState:
    """The state at the start, but with a head that is not zero, so that logits say something."""
    state = create_train_state(task.model, task.optimizer, image_size=8, channels=3, seed=task.seed, mesh=mesh)
    head = state.params["head"]
    head = {"kernel": jax.random.normal(jax.random.key(1), (8, CLASSES)), "bias": jnp.linspace(-1, 1, CLASSES)}
    head = jax.device_put(head, jax.tree.map(lambda leaf: leaf.sharding, state.params["head"]))
    return state.replace(params={**state.params, "head": head})


def host(tree):
    """Copies, which outlive the buffers that the next dispatch takes."""
    return jax.tree.map(np.array, tree)


def assert_same_bits(one, other) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), (_, b) in zip(jax.tree.leaves_with_path(one), jax.tree.leaves_with_path(other)):
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
    return Task(MlpMixer(**SIZES), optax.sgd(1.0), Preprocess(**PIXELS), seed=0, label_smoothing=SMOOTHING)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_equals_its_formula(smoothing):
    rng = np.random.default_rng(8)
    logits, labels = 3 * rng.standard_normal((20, CLASSES)).astype(np.float32), rng.integers(0, CLASSES, 20)
    expected = -(smoothed(labels, smoothing) * log_softmax(logits)).sum(axis=-1)
    np.testing.assert_allclose(cross_entropy(logits, labels, smoothing), expected, rtol=1e-5)


def test_training_step_measures_and_descends_what_numpy_computes_from_the_logits(plain, data, mesh1):
    state = state_of(plain, mesh1)
    images, labels = data[0][:6], data[1][:6]
    batch = {"image": images, "label": labels, "mask": np.ones(6, np.float32)}
    after, finite = jax.jit(lambda s, b: train_step(plain, s, b))(state, batch)

    inputs = jnp.asarray((images - np.array(PIXELS["mean"])) / np.array(PIXELS["std"]), jnp.float32)
    logits = np.asarray(plain.model.apply({"params": state.params}, inputs, train=False))
    losses = -(smoothed(labels, SMOOTHING) * log_softmax(logits)).sum(axis=-1)
    ranks = (logits > logits[np.arange(6), labels][:, None]).sum(axis=-1)
    found = after.metrics.compute()
    np.testing.assert_allclose(found["loss"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], (ranks < 1).mean(), rtol=1e-6)
    np.testing.assert_allclose(found["top5_accuracy"], (ranks < 5).mean(), rtol=1e-6)
    assert bool(finite) and int(after.step) == 1

    # The head's gradient has a closed form: the mean over examples of (softmax - target), and its product with what
    # the head is given, here recovered from two sets of logits.
    error = (np.exp(log_softmax(logits)) - smoothed(labels, SMOOTHING)) / 6
    gradient = jax.tree.map(lambda old, new: np.asarray(old) - np.asarray(new), state.params, after.params)
    np.testing.assert_allclose(gradient["head"]["bias"], error.sum(axis=0), atol=1e-5)
    kernel = np.asarray(state.params["head"]["kernel"], np.float64)
    given = (logits - np.asarray(state.params["head"]["bias"])) @ np.linalg.pinv(kernel)
    projected = kernel.T @ gradient["head"]["kernel"]  # the kernel has more rows than columns: compare in its span
    np.testing.assert_allclose(projected, kernel.T @ given.T @ error, atol=1e-4)
    norm = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(found["grad_norm"], norm, rtol=1e-4)


@pytest.mark.parametrize("noise", [False, True], ids=["plain", "augmented"])
def test_padding_changes_neither_loss_nor_gradient_nor_metrics(plain, data, mesh1, noise):
    task = plain
    if noise:
        model = MlpMixer(**SIZES, dropout_rate=0.3, stochastic_depth_rate=0.3)
        augmented = Preprocess(**PIXELS, augment=Augment(flip=True, zoom=0.2, shift=0.2))
        task = Task(model, plain.optimizer, augmented, seed=0, label_smoothing=SMOOTHING)
    state, (images, labels) = state_of(task, mesh1), data
    alone = {"image": images[:6], "label": labels[:6], "mask": np.ones(6, np.float32)}
    garbage = 255 - images[6:8], (labels[6:8] + 1) % CLASSES
    padded = {
        "image": np.concatenate([images[:6], garbage[0]]),
        "label": np.concatenate([labels[:6], garbage[1]]),
        "mask": np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32),
    }
    step = jax.jit(lambda s, b: train_step(task, s, b)[0])
    one, other = step(state, alone), step(state, padded)
    for (path, a), (_, b) in zip(jax.tree.leaves_with_path(one.params), jax.tree.leaves_with_path(other.params)):
        np.testing.assert_allclose(a, b, atol=2e-6, err_msg=jax.tree_util.keystr(path))
    found, expected = host(other.metrics.compute()), host(one.metrics.compute())
    assert {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()} == found
    assert int(other.metrics.loss.count) == 6
    counted = host(step(state, padded | {"mask": np.ones(8, np.float32)}).metrics.compute())
    assert abs(counted["loss"] - expected["loss"]) > 1e-3, "the padding would not have shown"


# --- many steps, on one device and on eight ---------------------------------------------------------------------------


class Training:
    """One compiled program on one mesh, with everything random turned on."""

    def __init__(self, mesh, data):
        self.mesh = mesh
        # The learning rate lies in the state, so that one program serves for several.
        optimizer = optax.inject_hyperparams(optax.adamw)(learning_rate=0.01, weight_decay=0.1)
        model = MlpMixer(**SIZES, dropout_rate=0.2, stochastic_depth_rate=0.2)
        preprocess = Preprocess(**PIXELS, augment=Augment(flip=True, zoom=0.2, shift=0.1))
        self.task = Task(model, optimizer, preprocess, seed=5)
        self.feed = ResidentFeed(*data, batch_size=BATCH, mesh=mesh, shuffle_seed=5)
        self.train_steps = compile_train_steps(self.task, self.feed.batch, mesh)
        self.start = host(state_of(self.task, mesh))

    def run(self, *counts: int, learning_rate: float | None = None, params=None) -> tuple[TrainState, bool, float]:
        """The state after dispatches of so many steps each, whether all was finite, and the parameters' norm."""
        state = self.start if params is None else self.start.replace(params=params)
        if learning_rate is not None:
            given = {**state.opt_state.hyperparams, "learning_rate": np.float32(learning_rate)}
            state = state.replace(opt_state=state.opt_state._replace(hyperparams=given))
        finite = norm = None
        for count in counts:
            operands, serves = self.feed.operands(int(state.step))
            assert count <= serves
            state, finite, norm = self.train_steps(state, operands, count)
        return host(state), bool(finite), float(norm)


@pytest.fixture(scope="module")
def on1(mesh1, data) -> Training:
    return Training(mesh1, data)


@pytest.fixture(scope="module")
def on8(mesh8, data) -> Training:
    return Training(mesh8, data)


def test_an_epoch_measures_the_same_on_one_device_and_on_eight(on1, on8):
    (one, *_, norm1), (eight, *_, norm8) = on1.run(STEPS_PER_EPOCH), on8.run(STEPS_PER_EPOCH)
    assert one.step == eight.step == STEPS_PER_EPOCH
    assert one.metrics.loss.count == eight.metrics.loss.count == EXAMPLES
    expected, found = one.metrics.compute(), eight.metrics.compute()
    for name in ("loss", "accuracy", "top5_accuracy", "grad_norm"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(norm8, norm1, rtol=1e-4)
    for (path, a), (_, b) in zip(jax.tree.leaves_with_path(one.params), jax.tree.leaves_with_path(eight.params)):
        name = jax.tree_util.keystr(path)
        if "token_mixing']['Dense_1']['bias" not in name:  # has no gradient but rounding, which Adam blows up
            np.testing.assert_allclose(a, b, atol=2e-4, err_msg=name)


def test_augmentation_and_dropout_are_on_in_training(on1, data):
    """Else the tests around this one would compare less than they say."""
    state, *_ = on1.run(STEPS_PER_EPOCH, learning_rate=0.0)
    assert_same_bits(state.params, on1.start.params)
    found, expected = state.metrics.compute(), evaluation_reference(on1.task, state.params, *data)
    assert abs(found["loss"] - expected["loss"]) > 0.01


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("counts", [(1, 1, 1, 1, 1), (2, 3)])
def test_cutting_the_same_steps_into_other_dispatches_changes_no_bit(on1, on8, devices, counts):
    training = {1: on1, 8: on8}[devices]
    whole, cut = training.run(5)[0], training.run(*counts)[0]
    assert whole.step == cut.step == 5
    assert_same_bits(whole, cut)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), whole.params, training.start.params)
    assert all(change > 1e-3 for change in jax.tree.leaves(moved)), "nothing moved"


def test_cutting_differs_neither_across_epochs(on1):
    assert_same_bits(on1.run(6, 3)[0], on1.run(4, 2, 1, 2)[0])


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
    assert on1.run(5)[1:2] == (True,)


def test_buffers_of_the_old_state_are_donated(on1):
    state, *_ = on1.train_steps(on1.start, on1.feed.operands(0)[0], 1)
    old = jax.tree.leaves(state)
    new, *_ = on1.train_steps(state, on1.feed.operands(1)[0], 1)
    assert all(leaf.is_deleted() for leaf in old)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 8])
def test_evaluation_counts_every_example_once(on1, on8, data, devices):
    training = {1: on1, 8: on8}[devices]
    feed = ResidentFeed(*data, batch_size=BATCH, mesh=training.mesh)
    eval_steps = compile_eval_steps(training.task, feed.batch, training.mesh)
    operands, serves = feed.operands(0)
    assert serves == feed.steps_per_epoch == STEPS_PER_EPOCH
    at_once = eval_steps(training.start, host(EvalMetrics.empty()), operands, 0, STEPS_PER_EPOCH)
    assert int(at_once.loss.count) == int(at_once.accuracy.count) == EXAMPLES
    expected = evaluation_reference(training.task, training.start.params, *data)
    found = host(at_once.compute())
    assert found == {name: pytest.approx(value, abs=1e-5) for name, value in expected.items()}
    assert 0 < found["accuracy"] < found["top5_accuracy"] < 1

    first = eval_steps(training.start, host(EvalMetrics.empty()), operands, 0, 2)
    rest = eval_steps(training.start, host(first), operands, 2, STEPS_PER_EPOCH - 2)
    assert_same_bits(host(rest), host(at_once))
