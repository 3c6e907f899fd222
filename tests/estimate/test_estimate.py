"""Estimates: the printed figures against arrays, files and arithmetic; invalid requests and their messages."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import PartitionSpec

from patchnets import runtime
from patchnets.config import common, flags
from patchnets.data.sources.digits import Digits
from patchnets.estimate import __main__ as program
from patchnets.estimate import batch_search, compile_step, report, throughput, topology
from patchnets.estimate.collectives import Collective, collectives
from patchnets.estimate.dataset_spec import DatasetSpec, find_dataset_spec
from patchnets.estimate.text import format_report
from patchnets.experiment import data_options
from patchnets.models.published_sizes import PUBLISHED
from patchnets.parallel import mesh
from patchnets.parallel.backend import target_backend
from patchnets.run.checkpoints import Checkpoints
from patchnets.runtime.format import format_bytes, format_count

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = f"--config={ROOT / 'configs' / 'mixer_digits.py'}:paper"
SMALL = [
    f"--config.{name}"
    for name in ("model.depth=1", "model.hidden_dim=16", "model.tokens_mlp_dim=8", "model.channels_mlp_dim=8")
]
GIB = 2**30


@pytest.fixture(autouse=True)
def user_cache_untouched(monkeypatch):
    monkeypatch.setattr(runtime, "enable_compilation_cache", lambda: None)


def blueprint_of(config, memory_gib=None, count=None, classes=None):
    target = topology.find_topology(None, memory_gib)
    return compile_step.make_abstract_run(
        config, target, find_dataset_spec(data_options(config), len(target.devices), count, classes)
    )


def real_state(abstract_run):
    return abstract_run.experiment.init_state(seed=0)


def shard_bytes(tree):
    """What the first device really holds of a tree."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), [("vit", "S/16"), ("mlp_mixer", "B/32"), ("convmixer", "512/16")])
def test_a_network_costs_what_was_published(name, variant):
    config = common.imagenet(augment={}, model=dict(name=name, variant=variant), batch_size=64, total_epochs=1.0)
    actual = report.network_figures(blueprint_of(config, count=1000, classes=1000))
    published = PUBLISHED[name, variant]
    assert actual["parameters"] == published.params
    assert actual["macs"] == pytest.approx(published.gmacs * 1e9, rel=0.02)
    assert actual["flops"] == 2 * actual["macs"] and actual["training_flops"] == 6 * actual["macs"]
    assert actual["step_flops"] == 64 * 6 * actual["macs"]
    tokens = {"S/16": 14 * 14 + 1, "B/32": 7 * 7, "512/16": 32 * 32}  # patches, and the class token of ViT
    assert actual["tokens"] == tokens[variant]


@pytest.mark.slow
@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (4, 2), (1, 8)])
def test_the_state_takes_what_its_real_arrays_take(data, fsdp, tiny_config):
    tiny_config.update(ema_decay=0.9, mesh=dict(data=data, fsdp=fsdp))
    abstract_run = blueprint_of(tiny_config)
    state, parts = real_state(abstract_run), compile_step.state_bytes(abstract_run.state)
    for name, tree in (("parameters", state.params), ("optimizer", state.opt_state), ("running mean", state.ema)):
        assert parts[name].per_device == shard_bytes(tree)
        assert parts[name].total == sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    full = [leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.sharding.is_fully_replicated]
    assert sorted(compile_step.replicated_arrays(abstract_run.state).values()) == sorted(full)


@pytest.mark.slow
@pytest.mark.parametrize(("data", "fsdp", "placement"), [(1, 1, "replicated"), (2, 4, "replicated"), (8, 1, "sharded")])
def test_arguments_of_the_compiled_step_are_state_and_images(data, fsdp, placement, tiny_config):
    tiny_config.update(mesh=dict(data=data, fsdp=fsdp))
    tiny_config.dataset.on_device_sharding = placement
    abstract_run = blueprint_of(tiny_config)
    actual = abstract_run.compile()
    images, numbers = 64 * math.ceil(700 / (data if placement == "sharded" else 1)), 2 * 4 * 700
    expected = shard_bytes(real_state(abstract_run)) + images + numbers + 4 + 4  # count of steps, scale of the rate
    # Where each array starts is a multiple of some bytes.
    assert expected <= actual.memory.arguments < expected + 64 * len(jax.tree.leaves(abstract_run.state)) + 1024
    assert bool(actual.collectives) == (data * fsdp > 1)


def test_steps_images_and_time_follow_from_the_split_and_the_rate(tiny_config):
    figures = report.run_figures(blueprint_of(tiny_config), 100.0, "as given")
    assert figures["steps_per_epoch"] == 11 and figures["steps"] == 44  # 700 images in batches of 64, four times
    assert figures["images"] == 44 * 64 and figures["seconds"] == pytest.approx(28.16)
    assert report.run_figures(blueprint_of(tiny_config), None, "")["seconds"] is None


@pytest.mark.slow
def test_a_checkpoint_takes_what_is_told(tiny_config, tmp_path):
    tiny_config.update(ema_decay=0.9, model=dict(channels_mlp_dim=4096))
    tiny_config.checkpoint.max_to_keep = 3
    abstract_run = blueprint_of(tiny_config)
    rng = np.random.default_rng(0)  # zeros would be compressed away

    def noise(leaf):
        return rng.standard_normal(leaf.shape).astype(leaf.dtype) if leaf.ndim else leaf

    saved = Checkpoints(tmp_path / "checkpoints", max_to_keep=3)
    saved.save(1, jax.tree.map(noise, real_state(abstract_run)), {}, None)
    saved.wait()
    saved.close()
    written = sum(file.stat().st_size for file in (tmp_path / "checkpoints" / "1").rglob("*") if file.is_file())
    options = report.checkpoint_figures(abstract_run)
    assert options["bytes"] == pytest.approx(written, rel=0.1)
    assert options["kept"] == 4 and options["total_bytes"] == 4 * options["bytes"]


@pytest.mark.slow
def test_input_takes_the_hosts_memory_by_arithmetic(tiny_config):
    source = Digits()
    arrays = [image for name in source.sizes for image, _ in source.records(name).examples(range(source.sizes[name]))]
    options, _ = blueprint_of(tiny_config).dataset.host_bytes()
    assert options == sum(image.nbytes for image in arrays)

    config = common.imagenet(augment={}, model=dict(variant="S/16"), batch_size=512, total_epochs=1.0)
    config.dataset.num_workers = 3
    examples = find_dataset_spec(data_options(config), 8)
    assert examples.counts == {"train": 1_268_355, "val": 12_812, "test": 50_000}  # 99 % and 1 % of 1,281,167
    assert examples.loader == "streaming" and examples.num_classes == 1000
    # For training and validation each: 3 workers with 4 chunks of 32, and 4 batches.
    assert examples.host_bytes()[0] == 2 * (3 * 4 * 32 + 4 * 512) * 224 * 224 * 3


def test_sizes_that_are_told_stand_for_the_data():
    config = common.imagenet(augment={}, model=dict(variant="S/16"), batch_size=64, total_epochs=1.0)
    config.dataset.max_on_device_gib = 1.0
    assert find_dataset_spec(data_options(config), 1, 1_000_000, 7).loader == "streaming"
    config.dataset.loader = "on_device"
    few = find_dataset_spec(data_options(config), 1, 1_000, 7)
    assert (few.loader, few.num_classes, few.side, few.steps_per_epoch) == ("on_device", 7, 256, 16)


# --- collectives ------------------------------------------------------------------------------------------------------


def test_collectives_of_a_real_program_are_counted_as_often_as_they_run(mesh8):
    def summed(x):
        def first(carry, _):
            return carry + jax.lax.psum(x * carry, mesh.BATCH_AXES), None

        return jax.lax.scan(first, x, None, length=5)[0]

    full = PartitionSpec(mesh.BATCH_AXES)
    spread = jax.shard_map(summed, mesh=mesh8, in_specs=full, out_specs=full, check_vma=False)
    text = jax.jit(spread).lower(jnp.ones((8, 16))).compile().as_text()
    assert collectives(text) == [Collective("all-reduce", 5, 5 * 16 * 4)]


TPU_PROGRAM = """\
HloModule jit_f

%cond (p: (s32[], f32[4])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(12)
  %get-tuple-element.1 = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%get-tuple-element.1, %constant.1), direction=LT
}

%all-reduce-scatter.1 (p: f32[8,16]) -> f32[1,16] {
  %all-reduce.3 = f32[8,16]{1,0:T(8,128)} all-reduce(%p), channel_id=3, to_apply=%add
  ROOT %slice = f32[1,16]{1,0:T(8,128)} dynamic-slice(%all-reduce.3, %zero, %zero)
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %all-gather-start.1 = (bf16[16,2]{1,0:T(8,128)(2,1)S(1)}, bf16[16,16]{1,0:T(8,128)}) all-gather-start(%x)
  %all-gather-done.1 = bf16[16,16]{1,0:T(8,128)(2,1)} all-gather-done(%all-gather-start.1)
  %collective-permute-start = (f32[3]{0}, f32[3]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%y)
  %fusion.1 = f32[1,16]{1,0:T(8,128)} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.1
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %all-reduce.9 = (f32[100]{0:T(128)}, s8[7]{0}) all-reduce(%a, %b), to_apply=%add
  ROOT %while.1 = (s32[], f32[4]) while(%t), condition=%cond, body=%body
}
"""


def test_collectives_are_read_in_the_forms_that_a_tpu_has_them():
    assert collectives(TPU_PROGRAM) == [
        Collective("all-reduce", 1, 407),
        Collective("all-gather", 12, 12 * 16 * 16 * 2),
        Collective("reduce-scatter", 12, 12 * 8 * 16 * 4),
        Collective("collective-permute", 12, 12 * 3 * 4),
    ]


# --- what fits --------------------------------------------------------------------------------------------------------


def with_memory(abstract_run, memory):
    return dataclasses.replace(abstract_run, target=dataclasses.replace(abstract_run.target, memory=memory))


@pytest.mark.slow
def test_what_does_not_fit_is_told_with_what_would(tiny_config):
    """In the forms for a TPU, for on a CPU a batch goes in groups already."""
    tiny_config.update(batch_size=256, model=dict(depth=2, channels_mlp_dim=512), augment=dict(translate=0.0))
    with target_backend("tpu"):
        first = batch_search.try_compile(blueprint_of(tiny_config))
        tried = dataclasses.replace(first, abstract_run=with_memory(first.abstract_run, 0.7 * first.needed))
        assert first.fits and tried.fits is False
        actual = {remedy.keys: remedy.attempt.needed for remedy in batch_search.suggestions(tried)}
        assert actual and set(actual) <= {
            "--config.grad_accum_steps=2",
            "--config.grad_accum_steps=4",
            "--config.model.remat=True",
        }
        keys = flags.parse_flags(["plan", DIGITS, next(iter(actual))])[0]  # as the command line takes them
        tiny_config.update(grad_accum_steps=keys.grad_accum_steps, model=dict(remat=keys.model.remat or False))
        assert blueprint_of(tiny_config).compile().memory.needed == next(iter(actual.values())) < 0.7 * first.needed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("needed", "room", "expected"),
    [
        (lambda batch: 1e6 + 1e3 * batch, 2e6, 936),  # 0.97 x 2e6 = 1e6 + 1e3 x 940, and 936 is the multiple of 8 below
        (lambda batch: 1e6 + 1e3 * batch + (2e5 if batch > 300 else 0), 1.6e6, 400),  # 1e6 + 4e5 + 2e5
        (lambda batch: 1e9, 1e6, None),
    ],
)
def test_the_largest_batch_is_found_in_a_few_steps(needed, room, expected, tiny_config, monkeypatch):
    tried = []

    def attempt(abstract_run):
        tried.append(abstract_run.experiment.config.batch_size)
        return batch_search.CompileResult(abstract_run, True, needed(abstract_run.experiment.config.batch_size))

    monkeypatch.setattr(batch_search, "try_compile", attempt)
    actual = batch_search.largest_batch(attempt(with_memory(blueprint_of(tiny_config), room)))
    assert len(set(tried)) == len(tried) <= 3 + batch_search.MAX_ATTEMPTS
    if expected is None:
        assert actual is None
        return
    assert actual.needed <= room and actual.abstract_run.experiment.config.batch_size == expected
    # Of what was tried and fits it is the largest.
    assert max(batch for batch in tried if needed(batch) <= room) == expected


@pytest.mark.parametrize(("examples", "expected"), [(1, 1), (3.9, 2), (7, 4), (8.2, 8), (100, 96)])
def test_batches_are_rounded_down_to_what_a_device_likes(examples, expected):
    assert batch_search.round_down(examples) == expected


def test_what_xla_says_of_too_little_memory_is_kept_short():
    error = compile_step.DoesNotFit(
        RuntimeError(
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (16.82G) exceeds available HBM (15.75G). HLO module: jit_train_steps.\nSee ..."
        )
    )
    assert str(error) == "XLA finds no room: HLO temporaries alone take 16.82GiB of 15.75GiB"
    assert error.needed == pytest.approx(16.82 * GIB)


# --- the program ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_screen_and_the_file_tell_the_same(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "SECONDS", 0.2)
    path = tmp_path / "plan.json"
    requested = [DIGITS, *SMALL, "--config.mesh.data=2", "--measure", "--memory=0.5", f"--json={path}"]
    assert program.main(["plan", *requested]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and max(map(len, printed.out.splitlines())) <= 100
    figures = json.loads(path.read_text())
    assert format_report(figures) == printed.out.rstrip("\n")
    assert figures["devices"]["count"] == 2 and figures["devices"]["memory"] == 0.5 * GIB
    assert figures["memory"]["fits"] is True and figures["memory"]["needed"] < 0.5 * GIB
    assert figures["run"]["seconds"] == figures["run"]["images"] / figures["run"]["images_per_second"] > 0
    assert f"{figures['network']['parameters']:,}" in printed.out and "measured here" in printed.out
    assert "all-reduce" in printed.out and "fits into 512.0 MiB" in printed.out
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_are_told_with_units():
    assert [format_bytes(n) for n in (0, 1023, 1536, 2**20, 1.5 * GIB)] == [
        "0 B",
        "1,023 B",
        "1.5 KiB",
        "1.0 MiB",
        "1.50 GiB",
    ]
    assert [format_count(n) for n in (12, 17_580_000_000, 2.7e13)] == ["12 ", "17.6 G", "27.0 T"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--config is not given"]),
        ([DIGITS, "--config.batchsize=3"], ["did you mean config.batch_size"]),
        ([DIGITS, "--memory=much"], ["--memory: expected a number above 0, got 'much'"]),
        ([DIGITS, "--memory="], ["--memory: expected a number above 0, got ''"]),
        ([DIGITS, "--measure=2"], ["--measure: ignored explicit argument '2'"]),
        ([DIGITS, "--examples=ten", "--classes=2"], ["--examples: expected a whole number above 0, got 'ten'"]),
        ([DIGITS, "--examples=10"], ["--examples and --classes belong together"]),
        ([DIGITS, "--measure", "--images-per-second=7"], ["--images-per-second: not allowed with argument --measure"]),
        ([DIGITS, "--measure", "--topology=v5e:2x4"], ["--measure", "--topology=v5e:2x4"]),
        ([DIGITS, "--config.batch_size=60"], ["60", "8 devices", "56 or 64"]),
        ([DIGITS, "--config.grad_accum_steps=16"], ["parts of 4", "8 devices"]),
        ([DIGITS, "--config.mesh.data=9"], ["config.mesh.data=9", "8 devices"]),
        ([DIGITS, "--config.mesh.fsdp=3"], ["config.mesh.fsdp=3", "8 devices"]),
        ([DIGITS, "--config.mesh.data=1", "--config.mesh.fsdp=7", "--config.batch_size=56"], ["would shard nothing"]),
        (
            [DIGITS, "--config.dataset.name=cifar100"],
            ["'cifar100' is not on this machine", "--examples=N", "--classes=K"],
        ),
        ([DIGITS, "--json=nowhere/plan.json"], ["--json=nowhere/plan.json", "no folder nowhere"]),
        ([DIGITS, "--json=."], ["--json=. is a folder", "give a file"]),
        ([DIGITS, "--topology=v5e"], ["'v5e' is not understood", "v5e:2x4"]),
        ([DIGITS, "--topology=v5e:0x0"], ["v5e:0x0 is no slice", "two numbers from 1 to 16", "v5e:2x4"]),
        ([DIGITS, "--topology=v5e:2x4x8"], ["v5e:2x4x8 is no slice", "two numbers from 1 to 16"]),
        ([DIGITS, "--topology=v5e:32x32"], ["v5e:32x32 is no slice", "two numbers from 1 to 16"]),
        ([DIGITS, "--topology=v6e:2x4x2"], ["v6e:2x4x2 is no slice", "two numbers from 1 to 16", "v6e:2x4"]),
        ([DIGITS, "--topology=v4:2x2"], ["v4:2x2 is no slice", "three numbers from 1 to 32", "v4:2x2x1"]),
        ([DIGITS, "--topology=v5p:2x2x33"], ["v5p:2x2x33 is no slice", "three numbers from 1 to 32"]),
        ([DIGITS, "--topology=v9:1x0"], ["v9:1x0 is no slice", "expected numbers from 1 to 32"]),
        ([DIGITS, "--topology=v5e:1x9999999999"], ["is not understood"]),
    ],
)
def test_a_mistake_costs_one_line(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(topology, "has_libtpu", lambda: True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert program.main(["plan", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("patchnets: ")
    assert all(word in printed.err for word in words), printed.err


@pytest.mark.parametrize("name", [*topology.WORKING, "v5e:1x1", "v4:2x2x16", "v9:2x2", "v9:2x2x1"])
def test_slices_that_may_exist_are_libtpus_to_judge(name, monkeypatch):
    monkeypatch.setattr(topology, "has_libtpu", lambda: True)
    monkeypatch.setattr(topologies, "get_topology_desc", lambda **options: types.SimpleNamespace(devices=[options]))
    (options,) = topology.topology_devices(name)
    assert options["topology_name"] == name


def test_without_libtpu_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr(topology, "has_libtpu", lambda: False)
    assert program.main(["plan", DIGITS, "--topology=v5e:2x4"]) == 2
    assert "pip install 'patchnets[tpu-aot]'" in capsys.readouterr().err


def test_a_run_imports_nothing_of_it():
    code = "import sys, patchnets.train; print(*(m for m in sys.modules if m.startswith('patchnets.estimate')))"
    actual = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert actual.stdout.split() == []


def test_what_a_step_takes_is_what_a_feed_gives(tiny_config, mesh8):
    """The shapes that planning compiles for are those of a real feed."""
    from patchnets.data import load_dataset

    tiny_config.update(mesh=dict(data=8))
    loader = load_dataset(data_options(tiny_config), mesh8).train
    real = loader.step_inputs(0)[0]
    planned = find_dataset_spec(data_options(tiny_config), 8).step_inputs(mesh8)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), real) == jax.tree.map(lambda x: (x.shape, x.dtype), planned)
    assert isinstance(find_dataset_spec(data_options(tiny_config), 8), DatasetSpec)
