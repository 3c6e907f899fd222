"""CPU tuning: one XLA device per core, and microbatches small enough to stay in cache.

By default XLA treats all cores as one device, runs batched matrix products on a single core, and writes each layer's
output for the whole batch to memory. One device per core, with forward and backward passes over a few examples at a
time, keeps all cores busy and activations in cache (measurements: docs/benchmarks.md). Accelerators do not need this;
the configuration keys `cpu.*` turn it off.
"""

import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from patchnets import runtime
from patchnets.errors import UserError
from patchnets.parallel.backend import backend
from patchnets.parallel.grad_fn import Aux, GradFn, Inputs, count_valid, mean_loss, scan_microbatches
from patchnets.parallel.mesh import BATCH_AXES

# Keeps each device on one thread. XLA reads it when JAX initializes its backends.
XLA_OPTIONS = "--xla_cpu_multi_thread_eigen=false"
MAX_ACTIVATION_BYTES = 2**20  # of the largest activation of a microbatch; about the size of a core's cache
MIN_EXAMPLES = 16  # per microbatch; with fewer, weights are loaded into the cache too often
MAX_DEVICES = 8  # more were not measured
PROGRAMS = (core.Jaxpr, core.ClosedJaxpr)


def use_one_device_per_core(
    batch_sizes: Collection[int],
    *,
    devices: int | None = None,
    data: int = -1,
    fsdp: int = 1,
    processes: int = 1,
    processes_on_host: int = 1,
) -> None:
    """Split the CPU into one XLA device per core. Call it before JAX initializes its backends.

    Does nothing if XLA_FLAGS or JAX_NUM_CPU_DEVICES set the number of devices, or if JAX is initialized already. The
    devices are unused if there is an accelerator.

    Args:
      batch_sizes: sizes that the number of devices must divide, if it follows from neither `devices` nor the mesh.
      devices: number of devices of this process; None to choose it.
      data, fsdp: axes of the mesh; if neither is -1, the processes share `data` times `fsdp` devices.
      processes: number of processes of the run.
      processes_on_host: how many of these run on this machine and share its cores.
    """
    preset = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if preset or jax.config.values["jax_num_cpu_devices"] > 0:
        return
    cores = runtime.cores()
    if cores == os.cpu_count():  # otherwise the launcher has assigned cores to each process
        cores = max(1, cores // processes_on_host)
    sizes = [size for size in (data, fsdp) if size != -1]
    if devices is not None:
        pass
    elif len(sizes) == 2:
        devices = min(-(-math.prod(sizes) // processes), cores)
    else:
        devices = devices_for(cores, batch_sizes, processes, *sizes)
    if devices > 1:
        try:
            jax.config.update("jax_num_cpu_devices", devices)
        except RuntimeError:  # JAX is initialized already
            return
        os.environ["XLA_FLAGS"] = f"{XLA_OPTIONS} {os.environ.get('XLA_FLAGS', '')}".strip()


def devices_for(cores: int, batches: Iterable[int], processes: int = 1, multiple: int = 1) -> int:
    """Return the largest number of devices per process, at most one per core, that divides each process's share of
    every batch, with a total over all processes that is a multiple of `multiple`; 1 if there is none."""
    shares = [batch // processes for batch in batches]
    divisors = [n for n in range(1, min(cores, MAX_DEVICES) + 1) if not any(share % n for share in shares)]
    return max([n for n in divisors if n * processes % multiple == 0] or [1])


def num_microbatches(
    model: nn.Module,
    params: Any,
    image_size: int,
    batch: int,
    devices: int,
    *,
    train: bool = True,
    microbatch: int | None = None,
) -> int:
    """Return the number of microbatches into which a CPU splits a batch; 1 on an accelerator.

    It is the largest multiple of `devices` that leaves a microbatch at least `MIN_EXAMPLES` examples, and at least as
    many as have a largest activation of `MAX_ACTIVATION_BYTES`. If batch and devices are powers of two, it does not
    depend on the number of devices. In training, BatchNorm needs the whole batch: one microbatch per device.

    Args:
      microbatch: examples per microbatch; 0 for the whole batch at once, None to choose it.

    Raises:
      UserError: `microbatch` does not divide a device's share of the batch, or, with BatchNorm, differs from it.
    """
    if backend() != "cpu" or microbatch == 0:
        return 1
    batch_norm = train and hasattr(model, "batch_norm_momentum")
    if microbatch is not None:
        _check_microbatch(microbatch, batch, devices, batch_norm)
        return batch // microbatch
    if batch_norm:
        return devices
    examples = max(MIN_EXAMPLES, MAX_ACTIVATION_BYTES // largest_activation(model, params, image_size))
    counts = [d for d in range(devices, batch + 1, devices) if batch % d == 0 and batch // d >= examples]
    return max(counts, default=1 if train else devices)


def _check_microbatch(microbatch: int, batch: int, devices: int, batch_norm: bool) -> None:
    share = batch // devices
    if share % microbatch:
        raise UserError(
            f"config.cpu.microbatch={microbatch} does not divide the {share} examples per device (a batch of {batch} "
            f"on {devices} devices); use a divisor, or 0 for the whole batch at once"
        )
    if batch_norm and microbatch != share:
        raise UserError(
            f"config.cpu.microbatch={microbatch}: BatchNorm needs the whole batch in training; use {share}, the share "
            "of each device, or 0 for the whole batch at once"
        )


def per_device_microbatch_grads(grad_fn: GradFn, num_microbatches: int, mesh: Mesh) -> GradFn:
    """Wrap a grad_fn so that each device of `mesh` scans over its microbatches, which fit into a core's cache.

    Unlike in `accumulate_grads`, a microbatch is contiguous in the batch and belongs to one device. Devices communicate
    only for the final sum of gradients and for BatchNorm's statistics. The dropout key of a microbatch depends on its
    index in the batch, and so not on the number of devices. Loss and gradient are those of the whole batch.
    """
    per_device = num_microbatches // mesh.size
    replicated, batch = PartitionSpec(), PartitionSpec(BATCH_AXES)

    def device_grads(
        params: Any, batch_stats: Any, inputs: Inputs, dropout_key: Array, num_valid: Array
    ) -> tuple[Any, Aux]:
        indices = jax.lax.axis_index(BATCH_AXES) * per_device + jnp.arange(per_device)
        microbatches = jax.tree.map(lambda x: x.reshape(per_device, -1, *x.shape[1:]), inputs)
        keys = jax.vmap(lambda i: jax.random.fold_in(dropout_key, i))(indices)
        grads, aux = scan_microbatches(grad_fn, params, batch_stats, microbatches, keys, num_valid)
        losses, logits = (x.reshape(-1, *x.shape[2:]) for x in (aux.losses, aux.logits))
        return jax.lax.psum(grads, BATCH_AXES), Aux(losses, logits, aux.batch_stats)

    all_devices_grads = jax.shard_map(
        device_grads,
        mesh=mesh,
        in_specs=(replicated, replicated, batch, replicated, replicated),
        out_specs=(replicated, Aux(batch, batch, replicated)),  # type: ignore[arg-type]  # specs, not arrays
        check_vma=False,
    )

    def microbatch_grads(
        params: Any, batch_stats: Any, inputs: Inputs, dropout_key: Array, num_valid: Array | None = None
    ) -> tuple[tuple[Array, Aux], Any]:
        num_valid = count_valid(inputs.mask) if num_valid is None else num_valid
        grads, aux = all_devices_grads(params, batch_stats, inputs, dropout_key, num_valid)
        return (mean_loss(aux.losses, inputs.mask, num_valid), aux), grads

    return microbatch_grads


def per_device_microbatch_logits(
    logits_fn: Callable[[Any, Array], Array], num_microbatches: int, mesh: Mesh
) -> Callable[[Any, Array], Array]:
    """Wrap a function (variables, images) -> logits so that each device of `mesh` maps it over its microbatches."""
    per_device = num_microbatches // mesh.size
    replicated, batch = PartitionSpec(), PartitionSpec(BATCH_AXES)

    def device_logits(variables: Any, images: Array) -> Array:
        microbatches = images.reshape(per_device, -1, *images.shape[1:])
        logits = jax.lax.map(lambda microbatch: logits_fn(variables, microbatch), microbatches)
        return logits.reshape(-1, logits.shape[-1])

    return jax.shard_map(device_logits, mesh=mesh, in_specs=(replicated, batch), out_specs=batch, check_vma=False)


def largest_activation(model: nn.Module, params: Any, image_size: int) -> int:
    """Return the bytes per example of the largest array in a forward pass."""
    examples = 7919  # a prime, so that only the sizes of arrays with a batch axis are multiples of it
    channels = params["stem"]["kernel"].shape[-2]
    images = jax.ShapeDtypeStruct((examples, image_size, image_size, channels), jnp.float32)

    def forward(params: Any, images: Any) -> Any:
        return model.apply({"params": params}, images, train=False, mutable=["batch_stats"])[0]

    program = jax.make_jaxpr(forward)(params, images)
    arrays = [array for array in _arrays(program.jaxpr) if array.size % examples == 0]
    return max(array.size * array.dtype.itemsize // examples for array in arrays)


def _arrays(program: core.Jaxpr) -> Iterator[Any]:
    """Yield the abstract arrays that a program computes, including those of nested programs."""
    for equation in program.eqns:
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: isinstance(x, PROGRAMS)):
            if isinstance(inner, PROGRAMS):
                yield from _arrays(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)
        yield from (variable.aval for variable in equation.outvars if hasattr(variable.aval, "size"))
