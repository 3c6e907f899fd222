"""Parameters split over devices: their sharding, equal results on every mesh, and checkpoints that fit any mesh."""

import json
import math

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from patchnets import models, train
from patchnets.config import common
from patchnets.errors import UserError
from patchnets.estimate.compile_step import make_abstract_run
from patchnets.estimate.dataset_spec import find_dataset_spec
from patchnets.estimate.topology import find_topology
from patchnets.experiment import data_options
from patchnets.parallel import mesh as mesh_lib
from patchnets.parallel.backend import target_backend
from patchnets.param_rules import name_of
from patchnets.run.checkpoints import Checkpoints
from patchnets.step.train_state import abstract_train_state, create_train_state

MESHES = [(1, 1), (8, 1), (1, 8), (4, 2)]
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


def mesh_of(data, fsdp):
    return mesh_lib.make_mesh(data, fsdp)


def network(scan=False, **fields):
    sizes = dict(patch_size=4, depth=3, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32) | fields
    return models.create_model(**common.base(model=dict(name="mlp_mixer", scan=scan) | sizes).model, num_classes=10)


def places(mesh, rules=(), optimizer=OPTIMIZER, **fields):
    """{name: (shape, spec)} of every array of a state."""
    like = abstract_train_state(
        network(**fields), optimizer, image_size=8, channels=1, mesh=mesh, ema=True, fsdp_rules=rules
    )
    leaves = jax.tree_util.tree_leaves_with_path(like)
    return {name_of(path): (leaf.shape, leaf.sharding.spec) for path, leaf in leaves}


def test_parameters_are_split_along_their_largest_dimension_and_what_belongs_to_them_too():
    actual = places(mesh_of(4, 2))
    kernel = "MixerBlock_1/channel_mixing/Dense_0/kernel"
    belonging = [name for name in actual if name.endswith(kernel)]
    assert len(belonging) == 4  # the parameter, its running mean, and Adam's two moments
    assert {actual[name] for name in belonging} == {((16, 32), PartitionSpec(None, "fsdp"))}
    assert actual["params/MixerBlock_1/channel_mixing/Dense_1/kernel"] == ((32, 16), PartitionSpec("fsdp"))
    assert actual["step"] == ((), PartitionSpec())


def test_every_array_that_can_be_split_is():
    for name, (shape, spec) in places(mesh_of(1, 8)).items():
        assert ("fsdp" in spec) == any(length % 8 == 0 for length in shape), name
    full = places(mesh_of(8, 1))
    assert all("fsdp" not in spec for _, spec in full.values())


def test_the_axis_of_stacked_blocks_is_not_split():
    actual = places(mesh_of(1, 2), scan=True, depth=32)
    assert actual["params/MixerBlocks/channel_mixing/Dense_1/bias"] == ((32, 16), PartitionSpec(None, "fsdp"))


@pytest.mark.parametrize("optimizer", [optax.adafactor(1e-2, min_dim_size_to_factor=8), optax.sgd(0.1, momentum=0.9)])
def test_whatever_an_optimizer_keeps_is_split(optimizer):
    for name, (shape, spec) in places(mesh_of(1, 8), optimizer=optimizer).items():
        assert ("fsdp" in spec) == any(length % 8 == 0 for length in shape), name


def test_rules_decide_for_the_parameters_that_they_match():
    rules = [("head/kernel", 0), (r".*/Dense_0/.*", -1)]
    actual = places(mesh_of(1, 2), rules)
    assert actual["params/head/kernel"] == ((16, 10), PartitionSpec("fsdp"))
    assert actual["params/MixerBlock_0/channel_mixing/Dense_0/kernel"][1] == PartitionSpec()
    assert actual["ema/params/MixerBlock_0/channel_mixing/Dense_0/kernel"][1] == PartitionSpec()
    assert actual["params/MixerBlock_0/channel_mixing/Dense_1/kernel"][1] == PartitionSpec("fsdp")


@pytest.mark.parametrize(
    "rules, message",
    [
        ([("head/kernel", 1)], r"dimension 1 of head/kernel, of shape \(16, 10\), cannot be split over 8 devices"),
        ([("head/kernel", 2)], r"dimension 2 of head/kernel"),
        ([("heads", 0)], r"config.mesh.fsdp_rules: 'heads' matches no parameter"),
        ([("head/kernel", "0")], r"the value '0' for 'head/kernel' is invalid; expected the number of a dimension"),
        ([(".*", -1)], r"config.mesh.fsdp=8 would shard nothing: no parameter has a dimension divisible by 8 that"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rules, message):
    with pytest.raises(UserError, match=message):
        places(mesh_of(1, 8), rules)


def test_an_axis_that_no_parameter_can_use_is_refused():
    with pytest.raises(UserError, match=r"config.mesh.fsdp=7 would shard nothing: no parameter has a dimension div"):
        places(mesh_of(1, 7))


@pytest.mark.parametrize(
    "mesh, message",
    [
        ((-1, -1), "both take the rest"),
        ((-1, 3), "config.mesh.fsdp=3 does not divide the 8 devices, of which config.mesh.data=-1 takes the rest"),
        ((5, -1), "config.mesh.data=5 does not divide the 8 devices, of which config.mesh.fsdp=-1 takes the rest"),
        ((4, 3), "config.mesh.data=4 times config.mesh.fsdp=3 exceeds the 8 devices"),
    ],
)
def test_a_mesh_that_does_not_multiply_to_the_devices_is_refused(mesh, message):
    with pytest.raises(UserError, match=message):
        mesh_of(*mesh)


def test_minus_one_takes_the_rest():
    assert mesh_of(-1, 2).shape == {"data": 4, "fsdp": 2} and mesh_of(2, -1).shape == {"data": 2, "fsdp": 4}


@pytest.mark.slow
def test_initial_parameters_are_the_same_and_take_their_share_of_memory():
    def made(mesh):
        return create_train_state(network(), OPTIMIZER, image_size=8, channels=1, seed=3, mesh=mesh)

    full, split = made(mesh_of(1, 1)), made(mesh_of(1, 8))
    jax.tree.map(np.testing.assert_array_equal, full.params, split.params)
    counted = 0
    for leaf in jax.tree.leaves(split):
        divides = any(length % 8 == 0 for length in leaf.shape)
        counted += leaf.nbytes // (8 if divides else 1)
        assert math.prod(leaf.addressable_shards[0].data.shape) * (8 if divides else 1) == leaf.size
    assert counted < 0.2 * sum(leaf.nbytes for leaf in jax.tree.leaves(full))


# "cpu" goes in groups, written for one device; the others leave it to XLA what is exchanged, and there the mesh of
# neither ones nor eights has both kinds of exchange in it.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "meshes"), [pytest.param("cpu", MESHES, id="cpu"), pytest.param("tpu", [(1, 1), (4, 2)], id="tpu")]
)
def test_every_mesh_gives_the_same_figures(platform, meshes, tiny_config, tmp_path):
    tiny_config.update(total_epochs=None, total_steps=8, eval_every_steps=4, ema_decay=0.9)
    tiny_config.optimizer.grad_clip_norm = 0.5
    actual = []
    for data, fsdp in meshes:
        tiny_config.update(mesh=dict(data=data, fsdp=fsdp))
        path = tmp_path / f"{data}x{fsdp}"
        with target_backend(platform):
            train.train(tiny_config, path)
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        actual.append([{k: v for k, v in row.items() if k != "images_per_second"} for row in rows])
    for other in actual[1:]:
        assert len(other) == len(actual[0]) == 3
        for ours, first in zip(other, actual[0]):
            assert ours == pytest.approx(first, rel=1e-4, abs=1e-4)
    assert actual[0][1]["train_loss"] < actual[0][0]["train_loss"]


@pytest.mark.slow
def test_activations_stay_split_by_examples_where_parameters_are_split(tiny_config):
    """What is exchanged is in the order of the parameters' size, not of the activations', and memory that of a share of
    the batch; scanned blocks are where XLA would do otherwise."""
    vit = dict(name="vit", tokens_mlp_dim=None, channels_mlp_dim=None, depth=2, hidden_dim=64, mlp_dim=256, num_heads=4)
    tiny_config.update(image_size=32, model=dict(scan=True, **vit))
    actual = []
    for mesh in (dict(data=8, fsdp=1), dict(data=1, fsdp=8)):
        tiny_config.update(mesh=mesh)
        target = find_topology(None, None)
        with target_backend("tpu"):
            abstract_run = make_abstract_run(tiny_config, target, find_dataset_spec(data_options(tiny_config), 8))
            actual.append(abstract_run.compile())
    full, split = actual
    params = sum(leaf.size * 4 for leaf in jax.tree.leaves(full.abstract_run.experiment.params))
    assert split.memory.temporaries < 1.2 * full.memory.temporaries
    assert split.collectives and sum(first.bytes for first in split.collectives) < 4 * params


@pytest.mark.slow
def test_a_checkpoint_fits_every_mesh_bit_for_bit(tmp_path):
    def states(seed):
        sizes = dict(image_size=8, channels=1, seed=seed)
        return {m: create_train_state(network(depth=1), OPTIMIZER, mesh=mesh_of(*m), **sizes) for m in MESHES}

    others = states(seed=2)
    for written, saved in states(seed=1).items():
        checkpoints = Checkpoints(tmp_path / str(written))
        checkpoints.save(1, saved, {}, None)
        checkpoints.wait()
        for other in others.values():
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), other)
            restored, _ = checkpoints.restore_latest(like)
            jax.tree.map(np.testing.assert_array_equal, restored, saved)
            assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, other)
        checkpoints.close()
