"""Top-k and masked averages against NumPy, ties, padding and batches of different fill included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patchnets.step.metrics import EvalMetrics, TrainMetrics, top_k_correct


def top_k_reference(logits: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Sorts, the first of equals first, and looks for the label among the first k."""
    order = np.argsort(-logits, axis=-1, kind="stable")
    return np.array([label in row[:k] for row, label in zip(order, labels)], np.float32)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("classes", [2, 4, 5, 10])
def test_top_k_equals_sorting(k, classes):
    rng = np.random.default_rng(classes)
    logits, labels = rng.standard_normal((200, classes)).astype(np.float32), rng.integers(0, classes, 200)
    actual = np.asarray(top_k_correct(logits, labels, k))
    np.testing.assert_array_equal(actual, top_k_reference(logits, labels, k))
    assert actual.mean() == 1.0 if classes <= k else 0.0 < actual.mean() < 1.0


@pytest.mark.parametrize("k", [1, 5])
def test_top_k_breaks_ties_in_favor_of_the_smaller_index(k):
    rng = np.random.default_rng(0)
    logits, labels = rng.integers(0, 3, (300, 12)).astype(np.float32), rng.integers(0, 12, 300)
    np.testing.assert_array_equal(top_k_correct(logits, labels, k), top_k_reference(logits, labels, k))


def test_logits_that_are_all_equal_are_right_for_k_of_the_classes():
    """An untrained network scores chance, not everything."""
    assert np.asarray(top_k_correct(jnp.zeros((10, 10)), jnp.arange(10), 1)).sum() == 1
    assert np.asarray(top_k_correct(jnp.zeros((10, 10)), jnp.arange(10), 5)).sum() == 5


def test_logits_that_are_not_numbers_are_not_right():
    assert np.asarray(top_k_correct(jnp.full((10, 10), jnp.nan), jnp.arange(10), 1)).sum() <= 1


@pytest.fixture(scope="module")
def batches() -> list[dict[str, np.ndarray]]:
    """Four batches of 8 with 8, 8, 3 and 1 real examples; what is padded holds numbers that would show at once."""
    rng = np.random.default_rng(5)
    made = []
    for real in (8, 8, 3, 1):
        batch = {name: rng.uniform(0, 4, 8).astype(np.float32) for name in ("loss", "top1", "top5")}
        batch["mask"] = (np.arange(8) < real).astype(np.float32)
        for name in ("loss", "top1", "top5"):
            batch[name][real:] = [1e9, np.inf, np.nan, -np.inf, 1e9, 1e9, 1e9, 1e9][real:]
        made.append(batch)
    return made


def real_values(batches: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    return np.concatenate([batch[name][batch["mask"] == 1] for batch in batches]).astype(np.float64)


NAMES = {"loss": "loss", "accuracy": "top1", "top5_accuracy": "top5"}


def test_merged_batches_of_different_fill_equal_one_average_over_the_real_examples(batches):
    merged = EvalMetrics.empty()
    for batch in batches:
        merged = merged.merge(EvalMetrics.single_from_model_output(**batch))
    actual = merged.compute()
    assert set(actual) == set(NAMES)
    for name, source in NAMES.items():
        np.testing.assert_allclose(actual[name], real_values(batches, source).mean(), rtol=1e-6)
    assert int(merged.loss.count) == 20
    of_means = np.mean([batch["loss"][batch["mask"] == 1].mean() for batch in batches])
    assert abs(of_means - real_values(batches, "loss").mean()) > 0.01, "the mean of means would pass as well"


def test_order_and_grouping_of_merging_do_not_matter(batches):
    single = [EvalMetrics.single_from_model_output(**batch) for batch in batches]
    first = single[0].merge(single[1]).merge(single[2].merge(single[3])).compute()
    other = single[3].merge(single[1]).merge(EvalMetrics.empty()).merge(single[0]).merge(single[2]).compute()
    for name in NAMES:
        np.testing.assert_allclose(first[name], other[name], rtol=1e-6)


def test_training_metrics_average_examples_and_the_gradient_norm_over_steps(batches):
    norms = np.array([1.0, 2.0, 4.0, 9.0], np.float32)
    merged = TrainMetrics.empty()
    for batch, norm in zip(batches, norms):
        merged = jax.jit(lambda m, b, n: m.merge(TrainMetrics.single_from_model_output(**b, grad_norm=n)))(
            merged, batch, norm
        )
    actual = merged.compute()
    assert set(actual) == set(NAMES) | {"grad_norm"}
    for name, source in NAMES.items():
        np.testing.assert_allclose(actual[name], real_values(batches, source).mean(), rtol=1e-6)
    np.testing.assert_allclose(actual["grad_norm"], 4.0, rtol=1e-6)


def test_example_that_is_padded_counts_nothing_however_few_are_real():
    empty = EvalMetrics.single_from_model_output(
        loss=jnp.ones(3), top1=jnp.ones(3), top5=jnp.ones(3), mask=jnp.zeros(3)
    )
    full = EvalMetrics.single_from_model_output(
        loss=jnp.full(3, 7.0), top1=jnp.zeros(3), top5=jnp.ones(3), mask=jnp.ones(3)
    )
    actual = full.merge(empty).compute()
    assert (float(actual["loss"]), float(actual["accuracy"]), float(actual["top5_accuracy"])) == (7.0, 0.0, 1.0)
