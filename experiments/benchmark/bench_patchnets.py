"""Measure patchnets: the compiled steps of its training program, from its own configurations. Runs in a worker process.

Only the images differ: random ones instead of a data set on disk.
"""

import dataclasses
import importlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.benchmark.ipc import Exchange, Message, peak_memory_mib
from experiments.benchmark.workloads import WORKLOADS, Workload, examples
from patchnets import __version__, prng
from patchnets.augment.preprocess import Augment, Preprocess, normalization
from patchnets.config import common
from patchnets.data import Dataset
from patchnets.data.loader import Loader
from patchnets.data.on_device import OnDeviceLoader
from patchnets.experiment import Experiment, build_experiment, use_cpu_cores
from patchnets.models.flops import cost
from patchnets.parallel import mesh as mesh_lib
from patchnets.parallel import sharding
from patchnets.run import console
from patchnets.run.step_timer import StepTimer
from patchnets.step.metrics import EvalMetrics
from patchnets.step.multi_step import compile_eval_steps, compile_train_steps

Work = Callable[[float], int]  # approximate seconds to run -> steps run


def configured(workload: Workload, batch: int, dtype: str, devices: int) -> ml_collections.ConfigDict:
    """Return the tutorial's configuration, or the paper's network with AdamW only."""
    if workload.config:
        config = importlib.import_module(f"configs.{workload.config}").get_config()
    else:
        name, variant = workload.model
        config = common.base(
            image_size=workload.image_size,
            normalize="unit",
            model=dict(name=name, variant=variant),
            optimizer=dict(learning_rate=workload.learning_rate, weight_decay=0.05),
            total_epochs=50.0,
        )
    return common.changed(config, batch_size=batch, model=dict(dtype=dtype), mesh=dict(data=devices))


def arrays(workload: Workload, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random images (uint8 for a tutorial, normalized floats for a paper's network) and labels."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, workload.classes, count).astype(np.int32)
    if workload.config:
        side = workload.stored
        return generator.integers(0, 256, (count, side, side, workload.channels), np.uint8), labels
    side = workload.image_size
    return generator.standard_normal((count, side, side, workload.channels), np.float32), labels


def ready(images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Return prepared images unchanged."""
    del key
    return images


def planned(
    config: ml_collections.ConfigDict, workload: Workload, images: np.ndarray, labels: np.ndarray
) -> Experiment:
    """Build the experiment of a configuration on images in memory."""
    mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp, batch_sizes=(config.batch_size,))
    common_options = dict(batch_size=config.batch_size, mesh=mesh)
    train = OnDeviceLoader(images, labels, shuffle_seed=config.seed if workload.config else None, **common_options)
    test = OnDeviceLoader(images, labels, **common_options)
    mean, std = normalization(config.normalize, images) if workload.config else ((0.0,), (1.0,))
    preprocess = Preprocess(config.image_size, mean, std, Augment(**config.augment.to_dict()), config.crop_pct)
    data = Dataset(
        name="random",
        class_names=tuple(map(str, range(workload.classes))),
        channels=workload.channels,
        loader="on_device",
        stored_size=images.shape[1],
        train=train,
        val=test,
        test=test,
        split_specs={},
        fingerprint={},
        preprocess=preprocess,
    )
    experiment = build_experiment(config, data)
    return (
        experiment
        if workload.config
        else dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, preprocess=ready))
    )


def paced(dispatch: Callable[[int, Any, int], Any], loader: Loader) -> Work:
    """Step through a loader with `dispatch(first step, inputs, count)`, with the step timer of training."""
    timer, at = StepTimer(), 0

    def run_for(seconds: float) -> int:
        nonlocal at
        first, until = at, time.perf_counter() + seconds
        while at == first or time.perf_counter() < until:
            began = time.perf_counter()
            inputs, available = loader.step_inputs(at)
            count = timer.steps_per_call(available)
            with timer.measure(count, count * loader.batch_size, began):
                jax.block_until_ready(dispatch(at, inputs, count))
            at += count
        return at - first

    return run_for


def training(experiment: Experiment) -> Work:
    """Return work from stored images to updated weights."""
    state = experiment.init_state()
    train_steps = compile_train_steps(experiment.task, experiment.data.train.batch, experiment.mesh)

    def dispatch(first: int, inputs: Any, count: int) -> Any:
        nonlocal state
        state, finite, norm = train_steps(state, inputs, count, 1.0)
        return finite, norm

    return paced(dispatch, experiment.data.train)


def evaluation(experiment: Experiment) -> Work:
    """Return work from stored images to metrics."""
    state, loader = experiment.init_state(), experiment.data.test
    assert loader is not None
    eval_steps = compile_eval_steps(experiment.task, loader.batch, experiment.mesh)
    metrics = sharding.init_replicated(EvalMetrics.empty, experiment.mesh)

    def dispatch(first: int, inputs: Any, count: int) -> Any:
        return eval_steps(state, metrics, inputs, first % loader.steps_per_epoch, count)

    return paced(dispatch, loader)


def preparation(experiment: Experiment) -> Work:
    """Return work from stored to augmented images; their sum keeps XLA from removing the computation."""
    loader, task = experiment.data.train, experiment.task

    @jax.jit
    def prepared(inputs: Any, first: jax.Array, count: jax.Array) -> jax.Array:
        def body(step: jax.Array, total: jax.Array) -> jax.Array:
            images = task.preprocess(loader.batch(inputs, step)["image"], task.key(prng.RngStream.AUGMENT, step))
            return total + jax.lax.optimization_barrier(images).sum()

        return jax.lax.fori_loop(first, first + count, body, jnp.float32(0))

    return paced(lambda first, inputs, count: prepared(inputs, first, count), loader)


WORK = {"train": training, "devices": training, "eval": evaluation, "input": preparation}


def peak_mib() -> float:
    """Return the peak memory in MiB: of the device if it reports it, else of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 2**20 if "peak_bytes_in_use" in stats else peak_memory_mib()


def run(spec: Message, exchange: Exchange) -> Message:
    """Build, run the first step, and serve turns; return the last message."""
    workload = WORKLOADS[spec["model"]]
    batch = spec["batch"]
    config = configured(workload, batch, spec["dtype"], spec.get("devices", -1))
    use_cpu_cores(config)
    if "devices" not in spec and jax.default_backend() != "cpu":
        config.mesh.data = 1  # like the competitors
    count = examples(spec["images"], batch) if workload.config else 2 * batch
    experiment = planned(config, workload, *arrays(workload, count))
    run_for = WORK[spec["work"]](experiment)
    run_for(0)
    first_step_seconds = time.time() - spec["spawned"]
    model_cost = cost(experiment.model, config.image_size, workload.channels)
    exchange.tell(
        ready=first_step_seconds,
        params=model_cost.params,
        macs=model_cost.macs,
        device=console.device_name(),
        versions={"patchnets": __version__, "jax": jax.__version__, "numpy": np.__version__},
    )
    exchange.serve(run_for)
    return {"peak_memory_mib": peak_mib()}
