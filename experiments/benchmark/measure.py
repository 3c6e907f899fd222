"""Run one comparison: all programs take turns, round after round; while one runs the others sleep."""

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from experiments.benchmark import workloads
from experiments.benchmark.ipc import Message, Worker
from experiments.benchmark.workloads import EPOCH, PAPERS, TUTORIALS, WORKLOADS, Row
from patchnets import runtime
from patchnets.errors import RunError

ROOT = pathlib.Path(__file__).parents[2]
OURS, MATMUL = "patchnets", "matmul"
PASSES = {"train": 3, "devices": 3, "eval": 1}  # the backward pass costs two forward passes
Say = Callable[[str], None]
Start = Callable[[str, Message], Worker]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a measurement.

    Attributes:
      rounds: turns of each program that count, after one warm-up turn.
      seconds: length of a turn; at least one step.
      batch: images per step; None for the workload's own.
      images: number of images that a tutorial holds in memory.
      pythons: {competitor: interpreter}, if not this one; "timm" also applies to "timm-compiled".
      patience: seconds to wait for an answer.
      peak_tflops: peak of the device by its data sheet; None if not known.
    """

    rounds: int = 7
    seconds: float = 5.0
    batch: int | None = None
    dtype: str = "float32"
    images: int = workloads.IMAGES
    pythons: Mapping[str, str] = dataclasses.field(default_factory=dict)
    patience: float = 1200.0
    peak_tflops: float | None = None
    gpu: bool = False

    def batch_of(self, model: str) -> int:
        own = workloads.GPU_BATCH if self.gpu and model in PAPERS else WORKLOADS[model].batch
        return self.batch or own


def participants(row: Row, settings: Settings) -> dict[str, Message]:
    """Return {program: its spec} in the order of turns: first the reference for ratios, last the matrix product."""
    batch = settings.batch_of(row.model)
    common = dict(batch=batch, dtype=settings.dtype, images=settings.images)
    specs = {}
    if row.task == "devices":
        for count in workloads.DEVICES:
            if batch % count == 0:
                name = f"{count} device" + ("s" if count > 1 else "")
                specs[name] = workloads.spec(row, OURS, **common, devices=count)
    else:
        for name in (OURS, *workloads.possible(row.model, row.task, row.against)):
            specs[name] = workloads.spec(row, name, **common)
    return specs | {MATMUL: workloads.spec(row, MATMUL, **common)}


def environment(spec: Message, gpu: bool) -> dict[str, str]:
    """Return the environment of a worker: no compilation cache, and either a shared GPU or none."""
    variables = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    paths = [str(ROOT), *filter(None, [variables.get("PYTHONPATH")])]
    variables |= {
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
    variables.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if spec["competitor"] == OURS and (tunables := runtime.tunables()):  # as patchnets.main sets for itself
        variables["GLIBC_TUNABLES"] = tunables
    if not gpu:
        variables |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1"}
    if spec["work"] == "devices":
        variables["JAX_PLATFORMS"] = "cpu"
        xla_flag = f"--xla_force_host_platform_device_count={spec.get('devices', 1)}"
        variables["XLA_FLAGS"] = f"{variables.get('XLA_FLAGS', '')} {xla_flag}".strip()
    return variables


def starter(settings: Settings, logs: pathlib.Path) -> Start:
    """Return a function that starts the worker of a program in its interpreter."""

    def start(name: str, spec: Message) -> Worker:
        family = spec["competitor"].split("-")[0]
        python = settings.pythons.get(spec["competitor"]) or settings.pythons.get(family) or sys.executable
        command = [python, "-m", "experiments.benchmark.worker", json.dumps(spec | {"spawned": time.time()})]
        log = logs / f"{spec['model']}-{spec['work']}-{name}.log".replace("/", "_").replace(" ", "_")
        return Worker(name, command, environment(spec, settings.gpu), log)

    return start


@dataclasses.dataclass
class Measured:
    """Messages of one program: first, per turn, and last."""

    ready: Message
    turns: list[Message] = dataclasses.field(default_factory=list)
    last: Message = dataclasses.field(default_factory=dict)


def take_turns(
    specs: Mapping[str, Message], settings: Settings, start: Start, say: Say
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Start all programs in sequence, give them their turns, and end them.

    Returns:
      ({program: measurement} of those that finished, {program: one-line error} of the others).
    """
    children: dict[str, Worker] = {}
    measured: dict[str, Measured] = {}
    failures: dict[str, str] = {}

    @contextlib.contextmanager
    def surviving(name: str):
        try:
            yield
        except RunError as error:
            failures[name] = str(error)
            say(f"{name}: {error}")
            children.pop(name).kill()
            measured.pop(name, None)

    try:
        for name, spec in specs.items():
            try:
                children[name] = start(name, spec)
            except OSError as error:
                failures[name] = f"{error.filename}: {error.strerror}"
                say(f"{name}: {failures[name]}")
                continue
            with surviving(name):
                measured[name] = Measured(children[name].ask(settings.patience))
                say(f"{name}: first step after {measured[name].ready['ready']:.1f} s")
        for number in range(settings.rounds + 1):
            for name in list(children):
                with surviving(name):
                    turn = children[name].ask(settings.patience, turn=settings.seconds)
                    if number:  # the first round warms up
                        measured[name].turns.append(turn)
        for name in list(children):
            with surviving(name):
                measured[name].last = children[name].finish(settings.patience)
    finally:
        for child in children.values():
            child.kill()
    return measured, failures


def compare(row: Row, settings: Settings, start: Start, say: Say) -> dict[str, Any]:
    """Run one comparison; return its results as written to benchmark.json."""
    specs = participants(row, settings)
    measured, failures = take_turns(specs, settings, start, say)
    for name in row.against:
        if name not in specs:
            say(f"{name}: skipped; it does not have this network or this kind of work")
    limit = matmul_flops(measured.pop(MATMUL, None))
    batch = settings.batch_of(row.model)
    first = next((name for name in specs if name in measured), None) if row.task == "devices" else OURS
    entries = {
        name: entry(participant, row, batch, limit, settings, macs(measured, name))
        for name, participant in measured.items()
    }
    reference = entries.get(first or "")
    for participant in entries.values():
        participant["ratio"] = reference["images_per_second"] / participant["images_per_second"] if reference else None
    device = next(
        (participant.ready["device"] for participant in measured.values() if "device" in participant.ready), ""
    )
    taking_part = [name for name in entries if name.startswith("timm")]
    return {
        "model": row.model,
        "work": row.task,
        "batch": batch,
        "image_size": WORKLOADS[row.model].image_size,
        "dtype": settings.dtype,
        "device": device,
        "rounds": settings.rounds,
        "matmul_flops_per_second": limit,
        "note": WORKLOADS[row.model].note if taking_part else "",
        "entries": entries,
        "failures": failures,
    }


def matmul_flops(measured: Measured | None) -> float | None:
    """Return the median FLOP/s of the matrix product."""
    if measured is None:
        return None
    return statistics.median(measured.ready["flops"] * turn["steps"] / turn["seconds"] for turn in measured.turns)


def macs(measured: Mapping[str, Measured], name: str) -> int | None:
    """Return multiply-accumulates per image: the program's own count, or ours if it has the same network."""
    own = measured[name].ready.get("macs")
    if own is None and OURS in measured and name.startswith("keras"):
        own = measured[OURS].ready["macs"]
    return own


def entry(
    measured: Measured, row: Row, batch: int, limit: float | None, settings: Settings, macs: int | None
) -> dict[str, Any]:
    """Return the results of one program; None for missing values."""
    seconds = [turn["seconds"] / turn["steps"] for turn in measured.turns]
    rates = [batch / each for each in seconds]
    median = batch / statistics.median(seconds)
    quartiles = statistics.quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else [median] * 3
    flops = 2 * PASSES[row.task] * macs if macs and row.task in PASSES else None
    reached = flops * median if flops else None
    peak = settings.peak_tflops if settings.dtype == "bfloat16" else None
    trained = row.task == "train" and row.model in TUTORIALS
    return {
        "images_per_second": median,
        "quartiles": [quartiles[0], quartiles[2]],
        "seconds_per_step": seconds,
        "steps": sum(turn["steps"] for turn in measured.turns),
        "first_step_seconds": measured.ready["ready"],
        "peak_memory_mib": measured.last.get("peak_memory_mib"),
        "params": measured.ready.get("params"),
        "flops_per_image": flops,
        "flops_per_second": reached,
        "share_of_matmul": reached / limit if reached and limit else None,
        "mfu": reached / (1e12 * peak) if reached and peak else None,
        "epoch_seconds": EPOCH / median if trained else None,
        "versions": measured.ready.get("versions", {}),
    }
