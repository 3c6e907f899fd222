"""An on-device loader serves every example once per epoch, in an order fixed by the seed, on any devices."""

import math
import re

import jax
import numpy as np
import pytest

from patchnets.data.on_device import OnDeviceLoader
from patchnets.data.order import epoch_order

EXAMPLES, BATCH, STEPS = 21, 8, 3


def make_feed(mesh, seed=0, examples=EXAMPLES, batch_size=BATCH):
    """A feed whose images and labels both tell the example's position."""
    positions = np.arange(examples)
    images = np.broadcast_to(positions[:, None, None, None], (examples, 2, 2, 3)).astype(np.uint8)
    return OnDeviceLoader(images, positions, batch_size=batch_size, mesh=mesh, shuffle_seed=seed)


@pytest.fixture(scope="module")
def batch_fn():
    """(feed, step) -> that step's batch, each feed compiled once."""
    compiled = {}

    def get(loader, step):
        run = compiled.setdefault(loader, jax.jit(loader.batch))
        return run(loader.step_inputs(step)[0], np.int32(step))

    return get


@pytest.fixture(scope="module")
def feed1(mesh1):
    return make_feed(mesh1)


@pytest.fixture(scope="module")
def feed8(mesh8):
    return make_feed(mesh8)


def visited(batch_fn, loader, epoch):
    """Positions of the examples that count, in the order in which an epoch shows them."""
    order = []
    for step in range(epoch * loader.steps_per_epoch, (epoch + 1) * loader.steps_per_epoch):
        batch = jax.device_get(batch_fn(loader, step))
        order += batch["label"][batch["mask"] == 1].tolist()
    return order


@pytest.mark.parametrize("devices", [1, 8])
def test_every_epoch_visits_each_example_exactly_once(batch_fn, feed1, feed8, devices):
    loader = feed1 if devices == 1 else feed8
    for epoch in (0, 1, 7):
        assert sorted(visited(batch_fn, loader, epoch)) == list(range(EXAMPLES))


def test_images_stay_with_their_labels(batch_fn, feed8):
    for step in range(2 * STEPS):
        batch = jax.device_get(batch_fn(feed8, step))
        assert batch["image"].dtype == np.uint8
        np.testing.assert_array_equal(
            batch["image"], np.broadcast_to(batch["label"][:, None, None, None], (BATCH, 2, 2, 3))
        )


def test_the_order_differs_between_epochs_and_seeds_and_is_equal_for_equal_seeds(batch_fn, mesh1, feed1):
    orders = [visited(batch_fn, feed1, epoch) for epoch in range(4)]
    other = make_feed(mesh1, seed=1)
    orders += [visited(batch_fn, other, epoch) for epoch in range(4)]
    assert len({tuple(order) for order in [*orders, range(EXAMPLES)]}) == 9
    again = make_feed(mesh1)
    assert [visited(batch_fn, again, epoch) for epoch in range(4)] == orders[:4]


def test_the_last_batch_is_filled_up_with_examples_that_do_not_count(batch_fn, feed1):
    assert feed1.steps_per_epoch == STEPS
    for epoch in (0, 3):
        masks = [np.asarray(batch_fn(feed1, epoch * STEPS + i)["mask"]) for i in range(STEPS)]
        np.testing.assert_array_equal(np.concatenate(masks), [1.0] * EXAMPLES + [0.0] * (STEPS * BATCH - EXAMPLES))
        assert masks[0].dtype == np.float32
    last = jax.device_get(batch_fn(feed1, STEPS - 1))
    assert {name: array.shape for name, array in last.items()} == {
        "image": (BATCH, 2, 2, 3),
        "label": (BATCH,),
        "mask": (BATCH,),
    }
    assert set(last["label"].tolist()) <= set(range(EXAMPLES))


def test_a_split_that_fills_its_batches_has_nothing_masked(batch_fn, mesh1):
    loader = make_feed(mesh1, examples=16)
    assert loader.steps_per_epoch == 2
    assert all(np.asarray(batch_fn(loader, step)["mask"]).all() for step in range(4))


def test_the_batch_of_a_step_is_the_same_when_it_is_reached_directly(batch_fn, mesh1, feed1):
    walked = [jax.device_get(batch_fn(feed1, step)) for step in range(4 * STEPS)]
    for step in (10, 4, 11, 0):  # forwards and backwards, from a feed that has seen nothing
        direct = jax.device_get(batch_fn(make_feed(mesh1) if step == 10 else feed1, step))
        for name in ("image", "label", "mask"):
            np.testing.assert_array_equal(direct[name], walked[step][name])


def test_operands_say_for_how_many_steps_they_serve(feed1):
    assert [feed1.step_inputs(step)[1] for step in range(7)] == [3, 2, 1, 3, 2, 1, 3]
    first, later = feed1.step_inputs(3)[0], feed1.step_inputs(5)[0]
    np.testing.assert_array_equal(first.order, later.order)


def test_several_steps_in_one_dispatch_see_the_same_batches(batch_fn, feed1):
    inputs, steps = feed1.step_inputs(STEPS)

    @jax.jit
    def several(inputs):
        return jax.lax.map(lambda step: feed1.batch(inputs, step)["label"], STEPS + np.arange(steps))

    expected = [batch_fn(feed1, STEPS + i)["label"] for i in range(STEPS)]
    np.testing.assert_array_equal(several(inputs), expected)


@pytest.mark.parametrize("seed", [0, None])
def test_one_device_and_eight_see_the_same_batches(batch_fn, mesh1, mesh8, seed):
    first, eight = make_feed(mesh1, seed), make_feed(mesh8, seed)
    for step in (0, 2, 5):
        a, b = jax.device_get((batch_fn(first, step), batch_fn(eight, step)))
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_each_of_eight_devices_holds_its_share_of_a_batch(batch_fn, feed8):
    batch = batch_fn(feed8, 0)
    for array in batch.values():
        assert {shard.data.shape for shard in array.addressable_shards} == {(BATCH // 8, *array.shape[1:])}
        assert len({shard.device for shard in array.addressable_shards}) == 8


def test_evaluation_keeps_the_order_of_the_split_every_time(batch_fn, mesh8):
    loader = make_feed(mesh8, seed=None)
    assert visited(batch_fn, loader, 0) == visited(batch_fn, loader, 3) == list(range(EXAMPLES))


@pytest.mark.parametrize("seed", [0, None])
def test_a_batch_larger_than_the_split_counts_each_example_once(batch_fn, mesh8, seed):
    loader = make_feed(mesh8, seed, examples=3)
    assert loader.steps_per_epoch == 1
    for step in (0, 5):
        batch = jax.device_get(batch_fn(loader, step))
        assert batch["label"].shape == (BATCH,)
        assert batch["mask"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
        assert sorted(batch["label"][:3].tolist()) == [0, 1, 2]
        assert set(batch["label"].tolist()) == {0, 1, 2}


def test_a_single_example_makes_an_epoch(batch_fn, mesh1):
    loader = make_feed(mesh1, examples=1)
    assert visited(batch_fn, loader, 0) == visited(batch_fn, loader, 1) == [0]


def test_arrays_that_are_not_contiguous_are_taken_by_their_values(batch_fn, mesh1):
    positions = np.arange(EXAMPLES)
    images = np.broadcast_to(positions[:, None, None, None], (EXAMPLES, 2, 2, 3)).astype(np.uint8)
    backwards = OnDeviceLoader(images[::-1], positions[::-1], batch_size=EXAMPLES, mesh=mesh1)
    batch = jax.device_get(batch_fn(backwards, 0))
    assert batch["label"].tolist() == positions[::-1].tolist()
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], positions[::-1])


@pytest.mark.slow
def test_every_example_is_as_likely_to_come_first_as_any_other():
    first = [epoch_order(0, epoch, 4)[0] for epoch in range(2000)]
    counts = np.bincount(first, minlength=4)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_images_split_over_the_devices_make_the_same_batches(batch_fn, mesh8, feed8):
    """21 images on 8 devices: each holds 3, the last ones filled up, and no batch is another for it."""
    positions = np.arange(EXAMPLES)
    images = np.broadcast_to(positions[:, None, None, None], (EXAMPLES, 2, 2, 3)).astype(np.uint8)
    split = OnDeviceLoader(images, positions, batch_size=BATCH, mesh=mesh8, shuffle_seed=0, sharded=True)
    held = split.step_inputs(0)[0].images
    assert [shard.data.shape[0] for shard in held.addressable_shards] == [3] * 8
    for step in range(2 * STEPS):
        actual, expected = jax.device_get((batch_fn(split, step), batch_fn(feed8, step)))
        for name in expected:
            np.testing.assert_array_equal(actual[name], expected[name], err_msg=f"{name} of step {step}")


def test_a_batch_of_split_images_exchanges_the_batch_and_not_the_data_set(mesh8):
    examples = 512
    images = np.zeros((examples, 4, 4, 3), np.uint8)
    loader = OnDeviceLoader(images, np.arange(examples), batch_size=BATCH, mesh=mesh8, shuffle_seed=0, sharded=True)
    program = jax.jit(loader.batch).lower(loader.step_inputs(0)[0], np.int32(0)).compile().as_text()
    exchanged = re.findall(r"= u8\[([\d,]+)\]\S* (?:all-gather|all-reduce|reduce-scatter|all-to-all)", program)
    assert exchanged and all(math.prod(map(int, shape.split(","))) <= BATCH * 48 for shape in exchanged)
