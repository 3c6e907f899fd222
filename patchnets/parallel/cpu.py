"""What is chosen for a CPU: how many devices its cores make, and how many examples are worked through at a time.

XLA takes the cores of a CPU for one device, runs products over a batch of matrices on one of them, and writes what a
layer puts out for a whole batch to memory before the next layer reads it. A device for each core, each taking a few
examples through the whole network and back before the next few, keeps all cores at work and the activations in their
caches (docs/benchmarks.md says what that gives). Accelerators need none of it.
"""

import math
import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from patchnets import runtime
from patchnets.parallel.backend import backend

# With a device for each core, what a device does stays on its own thread. XLA reads this when JAX first looks for
# devices.
XLA_OPTIONS = "--xla_cpu_multi_thread_eigen=false"
MAX_ACTIVATION_BYTES = 2**20  # bytes of the largest activation of a group; about what a core's own cache holds
MIN_EXAMPLES = 16  # examples of a group: with fewer, a network's weights pass through the cache too often
MAX_DEVICES = 8  # more were not measured
PROGRAMS = (core.Jaxpr, core.ClosedJaxpr)


def use_one_device_per_core(
    batch_sizes: Collection[int], *, data: int = -1, fsdp: int = 1, processes: int = 1, processes_on_host: int = 1
) -> None:
    """Make a device of each core, as far as batches divide, before JAX first looks for devices.

    As many as `data` times `fsdp`, the axes of the mesh, where neither is -1; of the `processes` that share a run, each
    makes its share, and the `processes_on_host` of one machine share its cores. Nothing is changed where XLA_FLAGS or
    JAX_NUM_CPU_DEVICES say how many there shall be, or where JAX has looked already. The devices are not used where
    there is an accelerator.
    """
    told = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if told or jax.config.values["jax_num_cpu_devices"] > 0:
        return
    cores = runtime.cores()
    if cores == os.cpu_count():  # else the engine has given each its own
        cores = max(1, cores // processes_on_host)
    asked = [size for size in (data, fsdp) if size != -1]
    if len(asked) == 2:
        devices = min(-(-math.prod(asked) // processes), cores)
    else:
        devices = devices_for(cores, batch_sizes, processes, *asked)
    if devices > 1:
        try:
            jax.config.update("jax_num_cpu_devices", devices)
        except RuntimeError:  # JAX has looked for devices: the caller's program has been at work before
            return
        os.environ["XLA_FLAGS"] = f"{XLA_OPTIONS} {os.environ.get('XLA_FLAGS', '')}".strip()


def devices_for(cores: int, batches: Iterable[int], processes: int = 1, multiple: int = 1) -> int:
    """The largest number of devices, at most one for each core, over which each of the batches divides, with as many in
    every process; and of which, over all, there is a `multiple`, if that can be."""
    shares = [batch // processes for batch in batches]
    able = [n for n in range(1, min(cores, MAX_DEVICES) + 1) if not any(share % n for share in shares)]
    return max([n for n in able if n * processes % multiple == 0] or [1])


def num_microbatches(
    model: nn.Module, params: Any, image_size: int, batch: int, devices: int, *, train: bool = True
) -> int:
    """Into how many groups a batch is split, each of which goes through the network, and in training back, by itself.

    As many as keep a group's largest activation within `MAX_ACTIVATION_BYTES`, with no fewer examples than
    `MIN_EXAMPLES`, among those
    that divide over the devices: where batch and devices are powers of two, the same on any number of them. With
    BatchNorm, which in training looks at all examples at once, as many as there are devices. 1 on an accelerator.
    """
    if backend() != "cpu":
        return 1
    if train and hasattr(model, "batch_norm_momentum"):
        return devices
    examples = max(MIN_EXAMPLES, MAX_ACTIVATION_BYTES // largest_activation(model, params, image_size))
    counts = [d for d in range(devices, batch + 1, devices) if batch % d == 0 and batch // d >= examples]
    return max(counts, default=1 if train else devices)


def largest_activation(model: nn.Module, params: Any, image_size: int) -> int:
    """Bytes that the largest array of a forward pass takes for each example."""
    examples = 7919  # a prime number, by which arrays with an axis for examples are told from others
    channels = params["stem"]["kernel"].shape[-2]
    images = jax.ShapeDtypeStruct((examples, image_size, image_size, channels), jnp.float32)

    def forward(params: Any, images: Any) -> Any:
        return model.apply({"params": params}, images, train=False, mutable=["batch_stats"])[0]

    program = jax.make_jaxpr(forward)(params, images)
    arrays = [array for array in _arrays(program.jaxpr) if array.size % examples == 0]
    return max(array.size * array.dtype.itemsize // examples for array in arrays)


def _arrays(program: core.Jaxpr) -> Iterator[Any]:
    """The abstract arrays that a program computes, those of the programs inside of it included."""
    for equation in program.eqns:
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: isinstance(x, PROGRAMS)):
            if isinstance(inner, PROGRAMS):
                yield from _arrays(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)
        yield from (variable.aval for variable in equation.outvars if hasattr(variable.aval, "size"))
