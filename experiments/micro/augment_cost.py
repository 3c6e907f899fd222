"""Measure the cost of every augmentation, also relative to the training steps of the tutorials.

    python -m experiments.micro.augment_cost [--steps=mixer,fnet] [--rounds=N] [--out=FILE.json]

First each operation, on 128 images of 64 x 64 pixels: milliseconds and images/s, medians over rounds in which all
operations take turns. Then, for each tutorial (its batch and size): the training step on prepared images, its own
augmentation from 32 pixels, and each policy at its size. Images are random: the cost does not depend on their content.
"""

import dataclasses
import functools
import importlib
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from patchnets import models
from patchnets.augment.preprocess import Augment, Preprocess
from patchnets.experiment import build_schedule, optimizer_options
from patchnets.optim.optimizers import make_optimizer
from patchnets.plots.augmentations import operations
from patchnets.run import console
from patchnets.runtime.cli import ArgumentParser, file_of_type, positive_int, run_cli, words
from patchnets.step.metrics import TrainMetrics
from patchnets.step.task import make_erase, make_mix
from patchnets.step.train_state import TrainState, init_variables
from patchnets.step.train_step import Task, train_step

TUTORIALS = {
    "mixer": ("mixer_cifar100", 100),
    "fnet": ("fnet_cifar100", 100),
    "gmlp": ("gmlp_cifar100", 100),
    "vit": ("vit_cifar100", 100),
    "convmixer": ("convmixer_cifar10", 10),
}
POLICIES = ("randaugment", "autoaugment_cifar10", "autoaugment_imagenet", "trivialaugment")
STORED = 32  # side in pixels of the images of CIFAR
Work = Callable[[], Any]


def milliseconds(calls: dict[str, Work], rounds: int) -> dict[str, float]:
    """Return {name: median milliseconds}; each call is compiled first, and all take turns in every round."""
    for call in calls.values():
        jax.block_until_ready(call())
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            taken[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(times) for name, times in taken.items()}


def random_images(batch: int, size: int) -> jax.Array:
    """Return uint8 images (batch, size, size, 3)."""
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8))


def of_operations(rounds: int, batch: int = 128, size: int = 64) -> dict[str, float]:
    """Return {operation: milliseconds per batch}."""
    images, key = random_images(batch, size).astype(jnp.float32), jax.random.key(0)
    all_operations = operations(3, size).items()
    return milliseconds({name: functools.partial(jax.jit(run), key, images) for name, run in all_operations}, rounds)


def of_tutorial(name: str, rounds: int) -> dict[str, float]:
    """Return milliseconds per batch of {"step", "own augmentation", each policy} of a tutorial."""
    file, classes = TUTORIALS[name]
    config = importlib.import_module(f"configs.{file}").get_config()
    size, batch = config.image_size, config.batch_size
    key, mean, std = jax.random.key(0), (127.5,) * 3, (64.0,) * 3
    stored, ready = random_images(batch, STORED), random_images(batch, size)
    preprocesses = {"own augmentation": Preprocess(size, mean, std, Augment(**config.augment.to_dict()))}
    preprocesses |= {policy: Preprocess(size, mean, std, Augment(policy=policy)) for policy in POLICIES}
    works: dict[str, Work] = {}
    for label, preprocess in preprocesses.items():
        images = stored if label == "own augmentation" else ready
        works[label] = functools.partial(jax.jit(preprocess), images, key)
    model = models.create_model(**config.model, num_classes=classes)
    variables = jax.jit(lambda key: init_variables(model, key, size, 3))(key)
    schedule, options = build_schedule(config, 1000, 100), optimizer_options(config.optimizer.to_dict())
    optimizer = make_optimizer(**options, learning_rate=schedule, params=variables["params"])
    augment = Augment(**config.augment.to_dict())
    task = Task(
        model,
        optimizer,
        Preprocess(size, mean, std),
        config.seed,
        label_smoothing=config.label_smoothing,
        mix=make_mix(augment),
        erase=make_erase(augment),
    )
    opt_state = jax.jit(optimizer.init)(variables["params"])
    state = TrainState(jnp.int32(0), **variables, ema={}, opt_state=opt_state, metrics=TrainMetrics.empty())
    data = {"image": ready, "label": jnp.zeros(batch, jnp.int32), "mask": jnp.ones(batch)}
    step = jax.jit(lambda state: train_step(task, state, data)[0].params)
    works["step"] = lambda: step(state)
    return milliseconds(works, rounds)


@dataclasses.dataclass(frozen=True)
class Options:
    steps: tuple[str, ...] = tuple(TUTORIALS)
    rounds: int = 9
    out: pathlib.Path | None = None


def parse_args(arguments: list[str]) -> Options:
    """Parse the command line; raise UserError if it is invalid."""
    parser = ArgumentParser("python -m experiments.micro.augment_cost", description=__doc__)
    tutorials = words(tuple(TUTORIALS), "tutorial")
    parser.add_argument(
        "--steps",
        type=lambda value: tutorials(value) if value else (),
        default=Options.steps,
        metavar="NAME,NAME...",
        help="tutorials to measure (default: all; --steps= for none)",
    )
    parser.add_argument("--rounds", type=positive_int, default=Options.rounds, help="default: %(default)s")
    parser.add_argument("--out", type=file_of_type(".json"), help="write the results to this file")
    return Options(**vars(parser.parse_args(arguments)))


def execute(arguments: list[str]) -> int:
    """Measure, print and write the results; return the exit status."""
    options = parse_args(arguments)
    print(f"jax {jax.__version__}, {console.device_name()}; medians of {options.rounds} rounds")
    costs = of_operations(options.rounds)
    results: dict[str, Any] = {"operations_128x64x64": costs, "tutorials": {}}
    print(f"\n{'128 images of 64 x 64 pixels':<32}{'ms':>10}{'images/s':>12}")
    for name, ms in costs.items():
        print(f"{name:<32}{ms:>10.1f}{128_000 / ms:>12,.0f}", flush=True)
    for name in options.steps:
        costs = results["tutorials"][name] = of_tutorial(name, options.rounds)
        step = costs.pop("step")
        print(f"\n{name + ' tutorial, one batch':<32}{'ms':>10}{'share':>12}\n{'training step':<32}{step:>10.1f}")
        for label, ms in costs.items():
            print(f"{label:<32}{ms:>10.1f}{ms / step:>12.0%}", flush=True)
        costs["step"] = step
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")
        print(f"\nwritten to {options.out}")
    return 0


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status."""
    return run_cli(argv, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
