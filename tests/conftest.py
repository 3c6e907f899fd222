"""Shared by all tests: eight simulated CPU devices in one process, and caches of their own."""

import gc
import os

# Most of a test's time is compilation, and unoptimized machine code of the same programs computes the same: no LLVM
# passes, one module a program, and loops written without MLIR's pipeline, which is half the time of a small program.
# Flags that are given stand in place of these: XLA_FLAGS=--xla_backend_optimization_level=3 tests what a run executes.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax
import pytest

from patchnets.parallel import mesh


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """No test reads or writes the user's own cache."""
    path = tmp_path_factory.mktemp("cache")
    os.environ["PATCHNETS_CACHE"] = str(path)
    jax.config.update("jax_compilation_cache_dir", str(path / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return path


@pytest.fixture(scope="session", autouse=True)
def imports_are_no_garbage():
    """Collecting garbage passes over what was there before the first test, which is most of all objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file():
    """Programs are kept while the tests of a file run, and not for all that follow: they would take gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def mesh1():
    """One device."""
    return mesh.make_mesh(data=1)


@pytest.fixture(scope="session")
def mesh8():
    """Eight devices that share every batch."""
    return mesh.make_mesh(data=8)


@pytest.fixture(scope="session")
def families(tmp_path_factory):
    """Trained networks of the five families (tests/trained_families.py)."""
    from trained_families import TrainedFamilies

    return TrainedFamilies(tmp_path_factory.mktemp("families"))


@pytest.fixture
def tiny_config():
    """A run of a few seconds: a Mixer of one small block on the digits, 4 epochs of 11 steps, on one device."""
    from patchnets.config import common

    return common.base(
        dataset=dict(name="digits", train_split="train[:700]", val_split="train[700:800]", test_split="test[:130]"),
        image_size=8,
        model=dict(name="mlp_mixer", patch_size=4, depth=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32),
        augment=dict(translate=0.1),
        batch_size=64,
        total_epochs=4.0,
        mesh=dict(data=1),
        optimizer=dict(learning_rate=1e-2),
        tensorboard=False,
        plots=False,
    )
