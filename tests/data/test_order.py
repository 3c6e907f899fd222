"""The order of an epoch, which NumPy computes, against JAX's own permutation."""

import jax
import numpy as np
import pytest

from patchnets import prng
from patchnets.data.order import epoch_order


@pytest.mark.parametrize(
    ("seed", "epoch", "size"), [(0, 0, 1), (0, 0, 10), (3, 2, 1294), (7, 5, 1700), (2**31 - 1, 99, 50_000)]
)
def test_the_order_is_that_of_a_permutation_by_jax(seed, epoch, size):
    key = prng.key(seed, prng.RngStream.ORDER, epoch)
    expected = jax.random.permutation(key, np.arange(size, dtype=np.int32))
    order = epoch_order(seed, epoch, size)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(order, expected)


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9 and all(sorted(order) == list(range(50)) for order in orders)
