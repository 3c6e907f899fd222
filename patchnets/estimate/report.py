"""What a run will take, put together as plain figures: of the network, of each device, of the host, and in time."""

import dataclasses
from typing import Any

import jax

from patchnets import config as config_lib
from patchnets.estimate.batch_search import CompileResult, largest_batch, suggestions, try_compile
from patchnets.estimate.compile_step import AbstractRun, replicated_arrays, state_bytes
from patchnets.estimate.throughput import measure_images_per_second as measured_images_per_second
from patchnets.models.flops import cost

PASSES = 3  # of training, counted in forward passes: the gradient by the activations and that by the weights are two


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked for beyond what is always told."""

    topology: str | None = None
    images_per_second: float | None = None
    measure: bool = False
    largest_batch: bool = False


def estimate(abstract_run: AbstractRun, options: Options) -> dict[str, Any]:
    """Every figure, as JSON holds it; bytes and FLOPs as whole numbers, times in seconds."""
    tried = try_compile(abstract_run)
    figures = {
        "config": config_lib.config_hash(config_lib.flatten(abstract_run.experiment.config)),
        "network": network(abstract_run),
        "devices": devices(abstract_run, options.topology),
        "data": data(abstract_run),
        "memory": memory(tried),
        "collectives": collectives(tried),
        "suggestions": [describe_suggestion(suggestion.keys, suggestion.attempt) for suggestion in suggestions(tried)]
        if tried.fits is False
        else [],
        "largest_batch": None,
    }
    if options.largest_batch and (largest := largest_batch(tried)):
        figures["largest_batch"] = {
            "batch_size": largest.abstract_run.experiment.config.batch_size,
            "needed": largest.needed,
        }
    rate, source = options.images_per_second, "as given"
    if options.measure and tried.compiled and tried.fits is not False:
        rate, source = measured_images_per_second(tried.compiled), "measured here, of random images that lay ready"
    return figures | {"run": run(abstract_run, rate, source), "checkpoints": checkpoints(abstract_run)}


def collectives(tried: CompileResult) -> list[dict[str, Any]] | None:
    """None where there is no program, or XLA does not tell."""
    sent = tried.compiled.collectives if tried.compiled else None
    return None if sent is None else [dataclasses.asdict(collective) for collective in sent]


def network(abstract_run: AbstractRun) -> dict[str, Any]:
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


def devices(abstract_run: AbstractRun, topology: str | None) -> dict[str, Any]:
    return {
        "topology": topology,
        "kind": abstract_run.target.kind,
        "count": abstract_run.experiment.mesh.size,
        "mesh": dict(abstract_run.experiment.mesh.shape),
        "memory": abstract_run.target.memory,
        "memory_source": abstract_run.target.memory_source,
    }


def data(abstract_run: AbstractRun) -> dict[str, Any]:
    dataset = abstract_run.dataset
    taken, what = dataset.host_bytes()
    return {
        "name": dataset.name,
        "source": dataset.source,
        "examples": dict(dataset.counts),
        "classes": dataset.num_classes,
        "loader": dataset.loader,
        "side": dataset.side,
        "host_bytes": taken,
        "host_holds": what,
        "input_bytes": _on_device(dataset.step_inputs(abstract_run.experiment.mesh)),
    }


def _on_device(inputs: Any) -> int:
    """Bytes of images, labels and the like on each device, before a step."""
    return sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(inputs))


def _shard_bytes(leaf: Any) -> int:
    size = leaf.dtype.itemsize
    for length in leaf.sharding.shard_shape(leaf.shape):
        size *= length
    return size


def memory(tried: CompileResult) -> dict[str, Any]:
    replicated = (
        replicated_arrays(tried.abstract_run.state) if tried.abstract_run.experiment.mesh.shape["fsdp"] > 1 else {}
    )
    return {
        "compiled": dataclasses.asdict(tried.compiled.memory) if tried.compiled else None,
        "compile_seconds": tried.compiled and round(tried.compiled.seconds, 1),
        "needed": tried.needed,
        "fits": tried.fits,
        "refused": tried.refused,
        "state": {name: dataclasses.asdict(part) for name, part in state_bytes(tried.abstract_run.state).items()},
        "replicated_arrays": {"arrays": len(replicated), "bytes": sum(replicated.values())},
    }


def describe_suggestion(keys: str, tried: CompileResult) -> dict[str, Any]:
    return {"keys": keys, "needed": tried.needed}


def run(abstract_run: AbstractRun, rate: float | None, source: str) -> dict[str, Any]:
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


def checkpoints(abstract_run: AbstractRun) -> dict[str, Any]:
    size = sum(part.total for part in state_bytes(abstract_run.state).values())
    kept = abstract_run.experiment.config.checkpoint.max_to_keep + 1
    return {"bytes": size, "kept": kept, "total_bytes": size * kept}
