"""Measure what the CPU tuning of parallel/cpu.py and runtime gains, step by step, in the tutorials' training steps.

    python -m experiments.micro.cpu_choices [--model=mixer,fnet,gmlp,vit,convmixer] [--steps=N]

Each row is measured in a new process: the median of five dispatches of N steps (default 3) after one that compiles, on
random images, from bytes to updated weights, with the tutorial's augmentation.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from experiments.benchmark.workloads import TUTORIALS
from patchnets import runtime
from patchnets.errors import RunError
from patchnets.runtime.cli import ArgumentParser, positive_int, run_cli, words

DISPATCHES = 5
# (label, (one device per core, microbatches, XLA's options for one device per core), huge pages)
CHOICES = (
    ("one device, the whole batch", (False, False, False), False),
    ("one device, microbatches", (False, True, False), False),
    ("one device per core, the whole batch", (True, False, False), False),
    ("one device per core, microbatches", (True, True, False), False),
    ("the same, each device on its own thread", (True, True, True), False),
    ("the same, in huge pages", (True, True, True), True),
)


def milliseconds(name: str, device_per_core: bool, microbatches: bool, xla_options: bool, steps: int) -> float:
    """Return milliseconds per training step; JAX must not have been initialized in this process."""
    import jax

    from experiments.benchmark import bench_patchnets
    from experiments.benchmark.workloads import WORKLOADS
    from patchnets.experiment import use_cpu_cores
    from patchnets.parallel import cpu
    from patchnets.step.multi_step import compile_train_steps

    workload = WORKLOADS[name]
    config = bench_patchnets.configured(workload, workload.batch, "float32", -1 if device_per_core else 1)
    cpu.XLA_OPTIONS = cpu.XLA_OPTIONS if xla_options else ""
    config.cpu.microbatch = None if microbatches else 0
    use_cpu_cores(config)
    experiment = bench_patchnets.planned(config, workload, *bench_patchnets.arrays(workload, 10 * workload.batch))
    train_steps = compile_train_steps(experiment.task, experiment.data.train.batch, experiment.mesh)
    state, times = experiment.init_state(), []
    for i in range(DISPATCHES + 1):
        inputs, _ = experiment.data.train.step_inputs(0)
        began = time.perf_counter()
        state, *_ = jax.block_until_ready(train_steps(state, inputs, steps if i else 1, 1.0))
        times.append(1000 * (time.perf_counter() - began) / steps)
    return statistics.median(times[1:])


def parse_args(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; raise UserError if it is invalid."""
    parser = ArgumentParser("python -m experiments.micro.cpu_choices", description=__doc__)
    parser.add_argument(
        "--model",
        type=words(tuple(TUTORIALS), "tutorial"),
        default=tuple(TUTORIALS),
        metavar="NAME,NAME...",
        help=f"tutorials, of {', '.join(TUTORIALS)} (default: all)",
    )
    parser.add_argument("--steps", type=positive_int, default=3, help="steps per dispatch (default: 3)")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)  # one row, in its own process
    return parser.parse_args(arguments)


def execute(arguments: list[str]) -> int:
    """Measure all choices for all networks, each in its own process; return the exit status."""
    settings = parse_args(arguments)
    if settings.child:
        print(json.dumps(milliseconds(*settings.child)))
        return 0
    names, steps = settings.model, settings.steps
    print(f"{'milliseconds per step':<50}" + "".join(f"{name:>11}" for name in names))
    for label, choice, huge in CHOICES:
        tunables = runtime.tunables() if huge else None
        environment = os.environ | {"JAX_PLATFORMS": "cpu"} | ({"GLIBC_TUNABLES": tunables} if tunables else {})
        print(f"{label:<50}", end="", flush=True)
        for name in names:
            command = [
                sys.executable,
                "-m",
                "experiments.micro.cpu_choices",
                "--child",
                json.dumps([name, *choice, steps]),
            ]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                print()
                raise RunError(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
            print(f"{json.loads(done.stdout.splitlines()[-1]):>11,.0f}", end="", flush=True)
        print()
    return 0


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status."""
    return run_cli(argv, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
