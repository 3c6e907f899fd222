"""The training step of every family, compiled for a slice of eight TPU v5e chips without a TPU: make aot."""

import jax
import pytest

from patchnets.config import common
from patchnets.estimate import compile_step
from patchnets.estimate.dataset_spec import find_dataset_spec
from patchnets.estimate.topology import GIB, find_topology
from patchnets.experiment import data_options

pytest.importorskip("libtpu", reason="pip install 'patchnets[tpu-aot]'")

# The smallest of each on images of 112 pixels, a quarter of the usual, for these compile in half the time.
FAMILIES = {
    "mlp_mixer": "S/16",
    "fnet": "Ti/16",
    "gmlp": "Ti/16",
    "convmixer": "1024/20",
    "vit": "Ti/16",
}
BATCH, CHIPS, SIZE = 128, 8, 112
IMAGES = BATCH // CHIPS * SIZE * SIZE * 3  # bytes on a chip


@pytest.fixture(autouse=True, scope="module")
def compile_anew():
    """XLA's own figures, and not those of a program that was kept."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def make_config(name, data, fsdp):
    config = common.imagenet(
        augment={},
        model=dict(name=name, variant=FAMILIES[name], scan=True, dtype="bfloat16"),
        batch_size=BATCH,
        total_steps=1000,
        optimizer=dict(grad_clip_norm=1.0),
        mesh=dict(data=data, fsdp=fsdp),
    )
    config.image_size = SIZE
    return config


def compile_for(name, data, fsdp):
    target = find_topology("v5e:2x4", None)
    requested = make_config(name, data, fsdp)
    abstract_run = compile_step.make_abstract_run(
        requested, target, find_dataset_spec(data_options(requested), CHIPS, 1_281_167, 1000)
    )
    return abstract_run, abstract_run.compile()


def state_bytes(abstract_run):
    return sum(part.per_device for part in compile_step.state_bytes(abstract_run.state).values())


def split_by_hand(params):
    """Numbers on a chip where all that can be divided by 8 is; the axis of stacked blocks never is."""
    numbers = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        shape = leaf.shape[1:] if "Blocks" in jax.tree_util.keystr(path) else leaf.shape
        numbers += leaf.size // (CHIPS if any(length % CHIPS == 0 for length in shape) else 1)
    return numbers


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_compiles_whole_and_split_and_fits(name):
    full, copied = compile_for(name, CHIPS, 1)
    split, shared = compile_for(name, 1, CHIPS)
    actual = sum(leaf.size for leaf in jax.tree.leaves(full.experiment.params))
    for program in (copied, shared):
        assert program.memory.needed < 16 * GIB
        assert program.memory.arguments > IMAGES
    # Adam keeps two numbers beside each parameter; all are of 4 bytes, and a few counters come besides.
    assert state_bytes(full) == pytest.approx(3 * 4 * actual, rel=0.02)
    assert state_bytes(split) == pytest.approx(3 * 4 * split_by_hand(full.experiment.params), rel=0.01)
    # Little more than an eighth: 49 patches do not divide by 8, so what mixes them stays whole.
    assert state_bytes(split) < state_bytes(full) * 0.15
    saved = state_bytes(full) - state_bytes(split)
    assert copied.memory.arguments - shared.memory.arguments == pytest.approx(saved, rel=0.1)
    # Every gradient is summed over the chips, as bfloat16 or float32. XLA does not write every program down.
    if copied.collectives is not None:
        reduced = sum(first.bytes for first in copied.collectives if first.kind in ("all-reduce", "reduce-scatter"))
        assert 0.9 * 2 * actual < reduced < 1.2 * 4 * actual
    if shared.collectives is not None:
        assert {first.kind for first in shared.collectives} & {"all-gather", "collective-permute"}
    # Activations are those of a chip's own images, or little more, where parameters are split.
    assert shared.memory.temporaries < 1.3 * copied.memory.temporaries + 4 * 4 * actual
