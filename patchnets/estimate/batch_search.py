"""Which batch fits the devices' memory, and how one that does not can be made to: estimated, then compiled."""

import copy
import dataclasses
from typing import Any

from patchnets import models
from patchnets.errors import UserError
from patchnets.estimate.compile_step import AbstractRun, CompiledStep, DoesNotFit, make_abstract_run

EIGHTHS = 8  # a batch is rounded down to so many examples for each device, which is how a TPU lays them out
MAX_ATTEMPTS = 4  # compilations to be sure of an estimate
OF_MEMORY = 0.97  # is aimed at: what fills it up to the last byte may not run beside what else needs some


@dataclasses.dataclass(frozen=True)
class CompileResult:
    """A configuration that was compiled, or was not because it is too large.

    Attributes:
      needed: bytes on each device, or, of what was refused, at least so many; None where the compiler does not say.
      refused: why there is no program, in the compiler's words.
      compiled: None where there is no program.
      fits: None where the devices' memory is not known.
    """

    abstract_run: AbstractRun
    compiled: CompiledStep | None
    needed: float | None
    refused: str | None = None

    @property
    def fits(self) -> bool | None:
        room = self.abstract_run.target.memory
        if self.compiled is None:
            return False
        return None if room is None or self.needed is None else self.needed <= room


def try_compile(abstract_run: AbstractRun) -> CompileResult:
    """Compiles a step, and tells what it needs."""
    try:
        compiled = abstract_run.compile()
    except DoesNotFit as error:
        return CompileResult(abstract_run, None, error.needed, str(error))
    return CompileResult(abstract_run, compiled, compiled.memory.needed)


def with_changes(abstract_run: AbstractRun, **keys: Any) -> AbstractRun:
    """The same run with some keys of its configuration changed; a dot in a key is written as two underscores."""
    config = copy.deepcopy(abstract_run.experiment.config)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in keys.items()})
    return make_abstract_run(config, abstract_run.target, abstract_run.dataset)


def largest_batch(start: CompileResult) -> CompileResult | None:
    """The largest batch found to fit, by a few compilations; None where none does, or the memory is not known.

    Two small batches give what each further example takes, the next ones are where a straight line through the largest
    that fit reaches the memory there is. Near it XLA may compute some activations again, so that more would fit.
    """
    room = start.abstract_run.target.memory
    if room is None:
        return None
    least = max(1, _per_device(start) // 4)
    results = {_per_device(result): result for result in (start, _of_batch(start, least), _of_batch(start, 2 * least))}
    for _ in range(MAX_ATTEMPTS):
        guess = rounded(_guess(results, OF_MEMORY * room))
        if guess in results:
            break
        results[guess] = _of_batch(start, guess)
    fitting = [result for result in results.values() if result.fits]
    return max(fitting, key=_per_device, default=None)


def _guess(results: dict[int, CompileResult], room: float) -> float:
    """How many examples a device may have room for: more than the most that fit, less than the fewest that do not."""
    fitting = sorted(count for count, result in results.items() if result.fits)
    too_many = min((count for count, result in results.items() if not result.fits), default=None)
    if not fitting:
        return min(results) / 4
    most = fitting[-1]
    estimate = 2.0 * most
    if len(fitting) > 1:
        needed, before = results[most].needed or 0.0, results[fitting[-2]].needed or 0.0
        slope = (needed - before) / (most - fitting[-2])
        estimate = most + (room - needed) / slope if slope > 0 else estimate
    return max(most, min(estimate, 8.0 * most, (most + too_many) / 2 if too_many else estimate))


def rounded(dataset: float) -> int:
    """Down to a multiple of eight for each device, or to a power of two below that."""
    if dataset >= EIGHTHS:
        return int(dataset) // EIGHTHS * EIGHTHS
    return max(power for power in (1, 2, 4) if power <= max(dataset, 1))


def _unit(abstract_run: AbstractRun) -> int:
    """Batches are multiples of it: with accumulation each part is split over the devices."""
    return abstract_run.experiment.mesh.size * abstract_run.experiment.config.grad_accum_steps


def _per_device(result: CompileResult) -> int:
    """Examples that a device has at a time."""
    return result.abstract_run.experiment.config.batch_size // _unit(result.abstract_run)


def _of_batch(start: CompileResult, per_device: int) -> CompileResult:
    config, steps = (
        start.abstract_run.experiment.config,
        start.abstract_run.experiment.total_steps,
    )  # of which no schedule runs out
    evaluated = config.eval_batch_size or config.batch_size
    length = {"total_epochs": None, "total_steps": steps, "eval_batch_size": evaluated}
    return try_compile(with_changes(start.abstract_run, batch_size=per_device * _unit(start.abstract_run), **length))


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """Keys with which a run fits, as they are given on the command line, and what was compiled with them."""

    keys: str
    attempt: CompileResult


def suggestions(start: CompileResult) -> list[Suggestion]:
    """What makes a run fit that does not: a batch in parts, activations computed again, or, if neither does, parameters
    split over the devices."""
    results = [suggestion for suggestion in (_in_parts(start), _remat(start, {})) if suggestion]
    mesh = start.abstract_run.experiment.mesh
    if not results and mesh.size > 1 and mesh.shape["fsdp"] == 1:
        keys = {"mesh__data": 1, "mesh__fsdp": -1}
        results = [suggestion for suggestion in (_try(start, keys), _remat(start, keys)) if suggestion][:1]
    return results


def _in_parts(start: CompileResult) -> Suggestion | None:
    """The smallest power of two of parts with which a run fits, from where the estimate has it."""
    config, mesh, room = (
        start.abstract_run.experiment.config,
        start.abstract_run.experiment.mesh,
        start.abstract_run.target.memory,
    )
    counts = [2**i for i in range(1, 20) if config.batch_size % (config.grad_accum_steps * 2**i * mesh.size) == 0]
    if start.needed and room:  # what a part takes shrinks with it, the state does not
        counts = [count for count in counts if count >= start.needed / room / 2] or counts[-1:]
    for count in counts[:MAX_ATTEMPTS]:
        if suggestion := _try(start, {"grad_accum_steps": config.grad_accum_steps * count}):
            return suggestion
    return None


def _remat(start: CompileResult, keys: dict[str, Any]) -> Suggestion | None:
    config = start.abstract_run.experiment.config
    if "remat" not in models.config_fields(config.model.name) or models.resolve_fields(**config.model).get("remat"):
        return None
    return _try(start, keys | {"model__remat": True})


def _try(start: CompileResult, keys: dict[str, Any]) -> Suggestion | None:
    try:
        tried = try_compile(with_changes(start.abstract_run, **keys))
    except UserError:  # a mesh or a number of parts that this run cannot have
        return None
    flags = " ".join(f"--config.{name.replace('__', '.')}={value}" for name, value in keys.items())
    return Suggestion(flags, tried) if tried.fits else None
