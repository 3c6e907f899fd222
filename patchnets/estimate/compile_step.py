"""Compile the training step of a configuration for its devices, and read XLA's figures."""

import contextlib
import dataclasses
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from patchnets.errors import UserError, first_line
from patchnets.estimate.collectives import Collective, collectives
from patchnets.estimate.dataset_spec import DatasetSpec
from patchnets.estimate.topology import Topology
from patchnets.experiment import Experiment, build_experiment, data_options
from patchnets.param_rules import name_of
from patchnets.step.multi_step import compile_train_steps
from patchnets.step.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device, as XLA plans them (`compiled.memory_analysis()`)."""

    arguments: int
    temporaries: int
    outputs: int
    aliased: int  # outputs that reuse the arguments' memory
    program: int
    peak: int

    @property
    def needed(self) -> int:
        """Memory that a device must have."""
        return self.arguments + self.temporaries + self.outputs - self.aliased + self.program


class DoesNotFit(Exception):
    """Error of XLA's compiler: a program does not fit on a device. `needed` is the memory it would take."""

    def __init__(self, error: Exception):
        match = re.search(r"required for ([\w ]+) \((\S+)\) exceeds available HBM \((\S+)\)", str(error))
        text = f"{match[1]} alone take {match[2]}iB of {match[3]}iB" if match else first_line(error, 60)
        self.needed = _amount(match[2]) if match else None
        super().__init__(f"XLA finds no room: {text}")


def _amount(text: str) -> float:
    """Convert a size such as "16.82G" to bytes."""
    return float(text.rstrip("KMGT")) * 2 ** (10 * " KMGT".index(text[-1])) if text[-1] in "KMGT" else float(text)


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """A run before anything is placed on a device.

    Attributes:
      experiment: built as for a run, from `dataset`.
      state: shapes with their shardings.
    """

    target: Topology
    dataset: DatasetSpec
    experiment: Experiment
    state: TrainState

    def compile(self) -> "CompiledStep":
        """Compile the step as a run would. Raise DoesNotFit if XLA finds no room for it."""
        task, mesh = self.experiment.task, self.experiment.mesh
        began = time.perf_counter()
        try:
            with self.target.compiling():
                shardings = jax.tree.map(lambda x: x.sharding, self.state)
                steps: Any = compile_train_steps(task, self.dataset.batch_fn(mesh), mesh, shardings)
                count, scale = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32)
                program = steps.lower(self.state, self.dataset.step_inputs(mesh), count, scale).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise DoesNotFit(error) from error
        analysis = program.memory_analysis()
        memory = Memory(
            analysis.argument_size_in_bytes,
            analysis.temp_size_in_bytes,
            analysis.output_size_in_bytes,
            analysis.alias_size_in_bytes,
            analysis.generated_code_size_in_bytes,
            analysis.peak_memory_in_bytes,
        )
        sent = _collectives_of(program) if mesh.size > 1 else []
        return CompiledStep(self, program, memory, sent, time.perf_counter() - began)


def _collectives_of(program: Any) -> list[Collective] | None:
    try:
        with _silence_stderr():
            text = program.as_text()
    except jax.errors.JaxRuntimeError:  # XLA cannot print every program that it compiles
        return None
    return collectives(text)


@contextlib.contextmanager
def _silence_stderr() -> Iterator[None]:
    """Discard what XLA writes to the terminal meanwhile, such as a stack trace."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A compiled step; `program` takes (state, inputs, count, scale of the rate)."""

    abstract_run: AbstractRun
    program: Any
    memory: Memory
    collectives: list[Collective] | None  # None if XLA cannot print the program
    seconds: float


def make_abstract_run(config: ml_collections.ConfigDict, target: Topology, dataset: DatasetSpec) -> AbstractRun:
    """Return a run of `config` on the devices of `target`. Raise UserError if it cannot be built."""
    dataset = dataclasses.replace(dataset, options=data_options(config))
    with target.compiling():
        experiment = build_experiment(config, dataset, target.devices)
    if not target.present and experiment.mesh.size < len(target.devices):
        raise UserError(
            f"config.mesh asks for {experiment.mesh.size} of the {len(target.devices)} devices of the topology; use "
            "all of them, or name a smaller one"
        )
    return AbstractRun(target, dataset, experiment, experiment.abstract_state)


@dataclasses.dataclass(frozen=True)
class ArrayBytes:
    """A part of the state.

    Attributes:
      per_device: bytes on each device.
      total: bytes over all devices, each number counted once, as in a checkpoint.
    """

    per_device: int
    total: int


def state_bytes(state: TrainState) -> dict[str, ArrayBytes]:
    """Compute the size of each part of a state from the shapes and shardings of its arrays."""
    parts: Mapping[str, Any] = {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "running mean": state.ema,
        "batch_stats": state.batch_stats,
        "counters": (state.step, state.metrics),
    }
    return {name: ArrayBytes(_bytes(tree, split=True), _bytes(tree)) for name, tree in parts.items()}


def replicated_arrays(state: TrainState) -> dict[str, int]:
    """Return {name: bytes} of the fully replicated arrays, largest first."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    sizes = {name_of(path): _array_bytes(x.shape, x) for path, x in leaves if x.sharding.is_fully_replicated}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _bytes(tree: Any, split: bool = False) -> int:
    return sum(_array_bytes(x.sharding.shard_shape(x.shape) if split else x.shape, x) for x in jax.tree.leaves(tree))


def _array_bytes(shape: tuple[int, ...], array: Any) -> int:
    return math.prod(shape) * array.dtype.itemsize
