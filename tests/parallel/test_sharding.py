"""Meshes: their sizes, errors, and the sharding of arrays."""

import re

import jax
import numpy as np
import pytest

from patchnets.errors import UserError
from patchnets.parallel import mesh as mesh_lib
from patchnets.parallel import sharding


def mesh_of(data: int, batch_sizes: tuple[int, ...] = ()) -> jax.sharding.Mesh:
    return mesh_lib.make_mesh(data, batch_sizes=batch_sizes)


def error_of(data: int, batch_sizes: tuple[int, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        mesh_of(data, batch_sizes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("data", [1, 3, 8])
def test_mesh_takes_the_first_devices_asked_for(data):
    mesh = mesh_of(data)
    assert mesh.axis_names == ("data", "fsdp") and list(mesh.devices.flat) == jax.devices()[:data]


def test_mesh_takes_all_devices_with_minus_one():
    assert list(mesh_of(-1).devices.flat) == jax.devices() and len(jax.devices()) == 8


def test_more_devices_than_there_are_is_refused_with_both_numbers():
    text = error_of(9)
    assert "config.mesh.data=9" in text and "8 devices" in text and "-1" in text


@pytest.mark.parametrize(
    ("data", "batches", "at_fault"), [(8, (12,), 12), (3, (8,), 8), (8, (4,), 4), (4, (8, 6), 6), (-1, (16, 20), 20)]
)
def test_batch_that_does_not_divide_names_the_values_and_suggests_ones_that_work(data, batches, at_fault):
    text = error_of(data, batches)
    size = 8 if data == -1 else data
    assert f"batch of {at_fault} " in text and f"{size} devices" in text and "config.mesh.data" in text
    suggested = [int(number) for number in re.findall(r"\d+", text.split("use ")[1].split("config")[0])]
    assert suggested and 0 not in suggested
    for batch in suggested:
        assert mesh_of(data, (batch,)).size == size and abs(batch - at_fault) < size


def test_batches_that_divide_are_taken():
    assert mesh_of(4, (8, 12)).size == 4


def test_replicate_puts_the_same_data_on_every_device(mesh8):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    made = sharding.replicate(array, mesh8)
    assert made.dtype == np.uint8 and made.sharding.is_fully_replicated
    assert {shard.device for shard in made.addressable_shards} == set(jax.devices())
    for shard in made.addressable_shards:
        np.testing.assert_array_equal(shard.data, array)


def test_shard_batch_gives_every_device_its_own_rows(mesh8):
    batch = {"image": np.arange(48).reshape(16, 3), "label": np.arange(16)}
    made = jax.jit(lambda b: sharding.shard_batch(b, mesh8))(batch)
    for name, array in batch.items():
        np.testing.assert_array_equal(made[name], array)
        shards = sorted(made[name].addressable_shards, key=lambda shard: shard.device.id)
        for i, shard in enumerate(shards):
            np.testing.assert_array_equal(shard.data, array[2 * i : 2 * i + 2])
        assert len(shards) == 8
