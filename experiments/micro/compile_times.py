"""Measure how long the training step of a network compiles, with unrolled and with scanned blocks.

    python -m experiments.micro.compile_times [NAME:VARIANT ...]      (default: vit:H/14 mlp_mixer:H/14)

Gradient and AdamW of one batch, compiled from shapes without weights, so that any size compiles on any machine. No
compilation cache is used.
"""

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from patchnets import models
from patchnets.errors import UserError
from patchnets.models.published_sizes import PUBLISHED
from patchnets.runtime.cli import ArgumentParser, run_cli

BATCH = 8


def compile_step(name: str, variant: str, scan: bool) -> tuple[float, float]:
    """Return (seconds to trace and lower the step, seconds to compile it)."""
    row = PUBLISHED[name, variant]
    network, variants = models.MODELS[name]
    model: Any = network(num_classes=row.num_classes, **variants[variant], scan=scan)
    optimizer = optax.adamw(1e-3)
    images = jax.ShapeDtypeStruct((BATCH, row.image_size, row.image_size, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    began = time.perf_counter()
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    opt_state = jax.eval_shape(optimizer.init, variables["params"])

    def step(variables: Any, opt_state: Any, images: Any, labels: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, updates = model.apply(
                variables | {"params": params},
                images,
                train=True,
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updates

        grads, updates = jax.grad(loss, has_aux=True)(variables["params"])
        changes, opt_state = optimizer.update(grads, opt_state, variables["params"])
        return variables | updates | {"params": optax.apply_updates(variables["params"], changes)}, opt_state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(variables, opt_state, images, labels)
    ready = time.perf_counter()
    lowered.compile()
    return ready - began, time.perf_counter() - ready


def network(value: str) -> tuple[str, str]:
    """Parse NAME:VARIANT."""
    name, _, variant = value.partition(":")
    if (name, variant) not in PUBLISHED:
        known = ", ".join(f"{name}:{variant}" for name, variant in PUBLISHED)
        raise UserError(f"there is no {value!r}; known: {known}")
    return name, variant


def execute(arguments: list[str]) -> int:
    """Compile each network both ways and print the times; return the exit status."""
    parser = ArgumentParser("python -m experiments.micro.compile_times", description=__doc__)
    default = [("vit", "H/14"), ("mlp_mixer", "H/14")]
    parser.add_argument(
        "networks",
        nargs="*",
        type=network,
        default=default,
        metavar="NAME:VARIANT",
        help="default: vit:H/14 mlp_mixer:H/14",
    )
    networks = parser.parse_args(arguments).networks
    jax.config.update("jax_enable_compilation_cache", False)
    print(f"{'network':<24}{'blocks':>10}{'trace':>10}{'compile':>10}{'total':>10}")
    for name, variant in networks:
        totals = []
        for scan in (False, True):
            trace, compiling = compile_step(name, variant, scan)
            totals.append(trace + compiling)
            form = "scanned" if scan else "unrolled"
            print(
                f"{name + ' ' + variant:<24}{form:>10}{trace:>8.1f} s{compiling:>8.1f} s{totals[-1]:>8.1f} s",
                flush=True,
            )
        print(f"{'':<24}{'ratio':>10}{'':>20}{totals[0] / totals[1]:>9.1f}x", flush=True)
    return 0


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status."""
    return run_cli(argv, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
