"""The order of an epoch equals JAX's permutation, is computed without JAX, and does not change."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patchnets import prng
from patchnets.data.order import epoch_order


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "epoch", "num_examples"),
    [(0, 0, 1), (0, 3, 2), (7, 2, 12), (5, 40, 1294), (2**31, 4, 1626), (2**31 - 1, 1, 70_000), (1, 0, 1_281_167)],
)
def test_it_is_what_jax_gives_for_the_same_key(seed, epoch, num_examples):
    key = prng.key(seed, prng.RngStream.ORDER, epoch)
    expected = jax.random.permutation(key, jnp.arange(num_examples, dtype=jnp.int32))
    order = epoch_order(seed, epoch, num_examples)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(order, expected)


def test_it_stays_as_it_is_whatever_jax_does():
    assert epoch_order(7, 2, 12).tolist() == [3, 7, 1, 11, 10, 2, 8, 9, 4, 6, 5, 0]


def test_epochs_of_millions_are_ordered_fairly():
    order = epoch_order(0, 3, 1_281_167)
    assert np.array_equal(np.sort(order), np.arange(len(order)))
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.005


def test_nobody_changes_an_order_that_others_use():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 8)[0] = 1


def test_finding_it_initializes_no_backend():
    program = """
import jax
from patchnets.data.order import epoch_order
epoch_order(0, 0, 100)
jax.config.update("jax_num_cpu_devices", 3)  # an error once there is a backend
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
