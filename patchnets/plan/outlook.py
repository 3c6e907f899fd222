"""What a run will take, put together as plain figures: of the network, of each device, of the host, and in time."""

import dataclasses
from typing import Any

import jax

from patchnets import config as config_lib
from patchnets.models.costs import cost
from patchnets.plan.compiled import Blueprint, held, kept_whole
from patchnets.plan.fitting import Attempt, attempt, largest_batch, remedies
from patchnets.plan.measure import images_per_second as measured_images_per_second

PASSES = 3  # of training, counted in forward passes: the gradient by the activations and that by the weights are two


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What is asked for beyond what is always told."""

    topology: str | None = None
    images_per_second: float | None = None
    measure: bool = False
    largest_batch: bool = False


def outlook(blueprint: Blueprint, wishes: Wishes) -> dict[str, Any]:
    """Every figure, as JSON holds it; bytes and FLOPs as whole numbers, times in seconds."""
    tried = attempt(blueprint)
    figures = {
        "config": config_lib.digest(blueprint.config),
        "network": network(blueprint),
        "devices": devices(blueprint, wishes.topology),
        "data": data(blueprint),
        "memory": memory(tried),
        "collectives": collectives(tried),
        "remedies": [remedy(one.keys, one.attempt) for one in remedies(tried)] if tried.fits is False else [],
        "largest_batch": None,
    }
    if wishes.largest_batch and (found := largest_batch(tried)):
        figures["largest_batch"] = {"batch_size": found.blueprint.config.batch_size, "needed": found.needed}
    rate, source = wishes.images_per_second, "as given"
    if wishes.measure and tried.compiled and tried.fits is not False:
        rate, source = measured_images_per_second(tried.compiled), "measured here, of random images that lay ready"
    return figures | {"run": run(blueprint, rate, source), "checkpoints": checkpoints(blueprint)}


def collectives(tried: Attempt) -> list[dict[str, Any]] | None:
    """None where there is no program, or XLA does not tell."""
    found = tried.compiled.collectives if tried.compiled else None
    return None if found is None else [dataclasses.asdict(one) for one in found]


def network(blueprint: Blueprint) -> dict[str, Any]:
    config = blueprint.config
    found = cost(blueprint.outline.model, config.image_size, blueprint.examples.channels)
    passes = PASSES * (1 if config.optimizer.sam_rho is None else 2)
    return {
        "name": config.model.name,
        "variant": config.model.variant,
        "image_size": config.image_size,
        "parameters": found.params,
        "statistics": found.statistics,
        "tokens": found.tokens,
        "macs": found.macs,
        "flops": 2 * found.macs,
        "passes": passes,
        "training_flops": passes * 2 * found.macs,
        "step_flops": passes * 2 * found.macs * config.batch_size,
    }


def devices(blueprint: Blueprint, topology: str | None) -> dict[str, Any]:
    return {
        "topology": topology,
        "kind": blueprint.target.kind,
        "count": blueprint.mesh.size,
        "mesh": dict(blueprint.mesh.shape),
        "memory": blueprint.target.memory,
        "memory_source": blueprint.target.memory_source,
    }


def data(blueprint: Blueprint) -> dict[str, Any]:
    examples, config = blueprint.examples, blueprint.config
    taken, what = examples.host_bytes(config)
    return {
        "name": examples.name,
        "source": examples.source,
        "examples": dict(examples.counts),
        "classes": examples.classes,
        "feed": examples.feed,
        "side": examples.side,
        "host_bytes": taken,
        "host_holds": what,
        "prepared_on_device": _on_device(examples.operands(config, blueprint.mesh)),
    }


def _on_device(operands: Any) -> int:
    """Bytes of images, labels and the like on each device, before a step."""
    return sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(operands))


def _shard_bytes(leaf: Any) -> int:
    size = leaf.dtype.itemsize
    for length in leaf.sharding.shard_shape(leaf.shape):
        size *= length
    return size


def memory(tried: Attempt) -> dict[str, Any]:
    whole = kept_whole(tried.blueprint.state) if tried.blueprint.mesh.shape["fsdp"] > 1 else {}
    return {
        "compiled": dataclasses.asdict(tried.compiled.memory) if tried.compiled else None,
        "compile_seconds": tried.compiled and round(tried.compiled.seconds, 1),
        "needed": tried.needed,
        "fits": tried.fits,
        "refused": tried.refused,
        "state": {name: dataclasses.asdict(part) for name, part in held(tried.blueprint.state).items()},
        "kept_whole": {"arrays": len(whole), "bytes": sum(whole.values())},
    }


def remedy(keys: str, tried: Attempt) -> dict[str, Any]:
    return {"keys": keys, "needed": tried.needed}


def run(blueprint: Blueprint, rate: float | None, source: str) -> dict[str, Any]:
    config, outline = blueprint.config, blueprint.outline
    images = outline.total_steps * config.batch_size
    return {
        "batch_size": config.batch_size,
        "accumulate": config.accumulate,
        "steps_per_epoch": blueprint.examples.per_epoch(config.batch_size),
        "steps": outline.total_steps,
        "images": images,
        "images_per_second": rate,
        "rate_source": source if rate else None,
        "seconds": images / rate if rate else None,
    }


def checkpoints(blueprint: Blueprint) -> dict[str, Any]:
    one = sum(part.whole for part in held(blueprint.state).values())
    kept = blueprint.config.checkpoint.keep + 1
    return {"bytes": one, "kept": kept, "total_bytes": one * kept}
