"""Figures of an estimate: the network, the devices, the host, the time and the disk."""

import dataclasses
from typing import Any

import jax

from patchnets import config as config_lib
from patchnets.estimate.batch_search import CompileResult, largest_batch, suggestions, try_compile
from patchnets.estimate.compile_step import AbstractRun, replicated_arrays, state_bytes
from patchnets.estimate.throughput import measure_images_per_second
from patchnets.models.flops import cost

PASSES = 3  # training in forward passes: one forward, and the gradients by activations and by weights


@dataclasses.dataclass(frozen=True)
class Options:
    """Optional parts of an estimate."""

    topology: str | None = None
    images_per_second: float | None = None
    measure: bool = False
    largest_batch: bool = False


def estimate(abstract_run: AbstractRun, options: Options) -> dict[str, Any]:
    """Return all figures, ready for JSON; bytes and FLOPs as integers, times in seconds."""
    result = try_compile(abstract_run)
    figures = {
        "config": config_lib.config_hash(config_lib.flatten(abstract_run.experiment.config)),
        "network": network_figures(abstract_run),
        "devices": device_figures(abstract_run, options.topology),
        "data": data_figures(abstract_run),
        "memory": memory_figures(result),
        "collectives": collective_figures(result),
        "suggestions": [
            {"keys": suggestion.keys, "needed": suggestion.attempt.needed}
            for suggestion in (suggestions(result) if result.fits is False else ())
        ],
        "largest_batch": None,
    }
    if options.largest_batch and (largest := largest_batch(result)):
        figures["largest_batch"] = {
            "batch_size": largest.abstract_run.experiment.config.batch_size,
            "needed": largest.needed,
        }
    rate, source = options.images_per_second, "as given"
    if options.measure and result.compiled and result.fits is not False:
        rate, source = measure_images_per_second(result.compiled), "measured here on random images"
    return figures | {
        "run": run_figures(abstract_run, rate, source),
        "checkpoints": checkpoint_figures(abstract_run),
    }


def collective_figures(result: CompileResult) -> list[dict[str, Any]] | None:
    """Return the collectives of a step; None without a program, or if XLA cannot print it."""
    sent = result.compiled.collectives if result.compiled else None
    return None if sent is None else [dataclasses.asdict(collective) for collective in sent]


def network_figures(abstract_run: AbstractRun) -> dict[str, Any]:
    """Return the size of the network, and its multiply-accumulates and FLOPs per image and step."""
    config = abstract_run.experiment.config
    model_cost = cost(abstract_run.experiment.model, config.image_size, abstract_run.dataset.channels)
    passes = PASSES * (1 if config.optimizer.sam_rho is None else 2)
    return {
        "name": config.model.name,
        "variant": config.model.variant,
        "image_size": config.image_size,
        "parameters": model_cost.params,
        "batch_stats": model_cost.batch_stats,
        "tokens": model_cost.tokens,
        "macs": model_cost.macs,
        "flops": 2 * model_cost.macs,
        "passes": passes,
        "training_flops": passes * 2 * model_cost.macs,
        "step_flops": passes * 2 * model_cost.macs * config.batch_size,
    }


def device_figures(abstract_run: AbstractRun, topology: str | None) -> dict[str, Any]:
    """Return the kind, number, mesh and memory of the devices."""
    return {
        "topology": topology,
        "kind": abstract_run.target.kind,
        "count": abstract_run.experiment.mesh.size,
        "mesh": dict(abstract_run.experiment.mesh.shape),
        "memory": abstract_run.target.memory,
        "memory_source": abstract_run.target.memory_source,
    }


def data_figures(abstract_run: AbstractRun) -> dict[str, Any]:
    """Return the size of the data set, its loader, and its memory on the host and on each device."""
    dataset = abstract_run.dataset
    host_bytes, contents = dataset.host_bytes()
    return {
        "name": dataset.name,
        "source": dataset.source,
        "examples": dict(dataset.counts),
        "classes": dataset.num_classes,
        "loader": dataset.loader,
        "side": dataset.side,
        "host_bytes": host_bytes,
        "host_holds": contents,
        "input_bytes": _on_device(dataset.step_inputs(abstract_run.experiment.mesh)),
    }


def _on_device(inputs: Any) -> int:
    """Return the bytes of a step's inputs on each device."""
    return sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(inputs))


def _shard_bytes(leaf: Any) -> int:
    size = leaf.dtype.itemsize
    for length in leaf.sharding.shard_shape(leaf.shape):
        size *= length
    return size


def memory_figures(result: CompileResult) -> dict[str, Any]:
    """Return the memory of a device: by the compiler, and of each part of the state."""
    compiled, state, mesh = result.compiled, result.abstract_run.state, result.abstract_run.experiment.mesh
    replicated = replicated_arrays(state) if mesh.shape["fsdp"] > 1 else {}
    return {
        "compiled": dataclasses.asdict(compiled.memory) if compiled else None,
        "compile_seconds": compiled and round(compiled.seconds, 1),
        "needed": result.needed,
        "fits": result.fits,
        "refused": result.refused,
        "state": {name: dataclasses.asdict(part) for name, part in state_bytes(state).items()},
        "replicated_arrays": {"arrays": len(replicated), "bytes": sum(replicated.values())},
    }


def run_figures(abstract_run: AbstractRun, rate: float | None, source: str) -> dict[str, Any]:
    """Return the length of the run in steps, images and, at `rate` images per second, time."""
    config, experiment = abstract_run.experiment.config, abstract_run.experiment
    images = experiment.total_steps * config.batch_size
    return {
        "batch_size": config.batch_size,
        "grad_accum_steps": config.grad_accum_steps,
        "steps_per_epoch": abstract_run.dataset.steps_per_epoch,
        "steps": experiment.total_steps,
        "images": images,
        "images_per_second": rate,
        "rate_source": source if rate else None,
        "seconds": images / rate if rate else None,
    }


def checkpoint_figures(abstract_run: AbstractRun) -> dict[str, Any]:
    """Return the number and size of the checkpoints."""
    size = sum(part.total for part in state_bytes(abstract_run.state).values())
    kept = abstract_run.experiment.config.checkpoint.max_to_keep + 1
    return {"bytes": size, "kept": kept, "total_bytes": size * kept}
