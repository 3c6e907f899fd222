"""Find the largest batch that fits, and settings with which a batch that does not would; all are compiled."""

import copy
import dataclasses
from typing import Any

from patchnets import models
from patchnets.errors import UserError
from patchnets.estimate.compile_step import AbstractRun, CompiledStep, DoesNotFit, make_abstract_run

EXAMPLES_MULTIPLE = 8  # per device; a TPU lays out examples in groups of eight
MAX_ATTEMPTS = 4  # compilations to refine an estimate
MEMORY_FRACTION = 0.97  # to aim at; leaves room for other users of the memory


@dataclasses.dataclass(frozen=True)
class CompileResult:
    """A configuration that was compiled, or is too large to compile.

    Attributes:
      needed: bytes on each device, a lower bound if the compiler refused; None if the compiler does not say.
      refused: the compiler's reason for refusing.
      compiled: None if the compiler refused.
      fits: None if the devices' memory is not known.
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
    """Compile a step. Return its memory needs, or the compiler's reason for refusing."""
    try:
        compiled = abstract_run.compile()
    except DoesNotFit as error:
        return CompileResult(abstract_run, None, error.needed, str(error))
    return CompileResult(abstract_run, compiled, compiled.memory.needed)


def with_changes(abstract_run: AbstractRun, **keys: Any) -> AbstractRun:
    """Return the run with some configuration keys changed; write a dot in a key as two underscores."""
    config = copy.deepcopy(abstract_run.experiment.config)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in keys.items()})
    return make_abstract_run(config, abstract_run.target, abstract_run.dataset)


def largest_batch(result: CompileResult) -> CompileResult | None:
    """Return the largest batch found to fit by a few compilations; None if none does or the memory is not known.

    Two small batches give the memory per example. Later ones are where a line through the two largest that fit reaches
    the memory. Close to it XLA may recompute activations, so a larger batch might fit.
    """
    room = result.abstract_run.target.memory
    if room is None:
        return None
    least = max(1, _per_device(result) // 4)
    first = (result, _of_batch(result, least), _of_batch(result, 2 * least))
    results = {_per_device(compiled): compiled for compiled in first}
    for _ in range(MAX_ATTEMPTS):
        guess = round_down(_guess(results, MEMORY_FRACTION * room))
        if guess in results:
            break
        results[guess] = _of_batch(result, guess)
    fitting = [compiled for compiled in results.values() if compiled.fits]
    return max(fitting, key=_per_device, default=None)


def _guess(results: dict[int, CompileResult], room: float) -> float:
    """Estimate the examples that fit on a device, between the most that do and the fewest that do not."""
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


def round_down(examples: float) -> int:
    """Round the examples per device down to a multiple of eight, or to a power of two if there are fewer."""
    if examples >= EXAMPLES_MULTIPLE:
        return int(examples) // EXAMPLES_MULTIPLE * EXAMPLES_MULTIPLE
    return max(power for power in (1, 2, 4) if power <= max(examples, 1))


def batch_divisor(abstract_run: AbstractRun) -> int:
    """Return what must divide the batch size: with accumulation, each part is split over the devices."""
    return abstract_run.experiment.mesh.size * abstract_run.experiment.config.grad_accum_steps


def _per_device(result: CompileResult) -> int:
    """Return the number of examples that a device processes at a time."""
    return result.abstract_run.experiment.config.batch_size // batch_divisor(result.abstract_run)


def _of_batch(result: CompileResult, per_device: int) -> CompileResult:
    abstract_run, config = result.abstract_run, result.abstract_run.experiment.config
    steps = abstract_run.experiment.total_steps  # keep the total, so that the schedule still fits
    evaluated = config.eval_batch_size or config.batch_size
    length = {"total_epochs": None, "total_steps": steps, "eval_batch_size": evaluated}
    return try_compile(with_changes(abstract_run, batch_size=per_device * batch_divisor(abstract_run), **length))


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """Command-line settings with which a run fits, and the compilation that shows it."""

    keys: str
    attempt: CompileResult


def suggestions(result: CompileResult) -> list[Suggestion]:
    """Return settings with which a run that does not fit would: gradient accumulation, rematerialization, or, if
    neither is enough, parameters split over the devices."""
    results = [suggestion for suggestion in (_more_accumulation(result), _remat(result, {})) if suggestion]
    mesh = result.abstract_run.experiment.mesh
    if not results and mesh.size > 1 and mesh.shape["fsdp"] == 1:
        keys = {"mesh__data": 1, "mesh__fsdp": -1}
        results = [suggestion for suggestion in (_try(result, keys), _remat(result, keys)) if suggestion][:1]
    return results


def _more_accumulation(result: CompileResult) -> Suggestion | None:
    """Find the smallest power of two of accumulation steps with which a run fits, starting from an estimate."""
    experiment, room = result.abstract_run.experiment, result.abstract_run.target.memory
    config, mesh = experiment.config, experiment.mesh
    counts = [2**i for i in range(1, 20) if config.batch_size % (config.grad_accum_steps * 2**i * mesh.size) == 0]
    if result.needed and room:  # activations shrink with the part, the state does not
        counts = [count for count in counts if count >= result.needed / room / 2] or counts[-1:]
    for count in counts[:MAX_ATTEMPTS]:
        if suggestion := _try(result, {"grad_accum_steps": config.grad_accum_steps * count}):
            return suggestion
    return None


def _remat(result: CompileResult, keys: dict[str, Any]) -> Suggestion | None:
    config = result.abstract_run.experiment.config
    if "remat" not in models.config_fields(config.model.name) or models.resolve_fields(**config.model).get("remat"):
        return None
    return _try(result, keys | {"model__remat": True})


def _try(result: CompileResult, keys: dict[str, Any]) -> Suggestion | None:
    try:
        changed = try_compile(with_changes(result.abstract_run, **keys))
    except UserError:  # a mesh or a number of parts that is not possible for this run
        return None
    flags = " ".join(f"--config.{name.replace('__', '.')}={value}" for name, value in keys.items())
    return Suggestion(flags, changed) if changed.fits else None
