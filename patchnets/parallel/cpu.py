"""What is chosen for a CPU: how many devices its cores make, and how many examples are worked through at a time.

XLA takes the cores of a CPU for one device, runs products over a batch of matrices on one of them, and writes what a
layer puts out for a whole batch to memory before the next layer reads it. A device for each core, each taking a few
examples through the whole network and back before the next few, keeps all cores at work and the activations in their
caches (docs/benchmarks.md says what that gives). Accelerators need none of it, and the keys `cpu.` turn it off.
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
from patchnets.parallel.mesh import BATCH_AXES
from patchnets.parallel.microbatches import Aux, GradFn, Inputs, count_valid, mean_loss, scan_microbatches

# With a device for each core, what a device does stays on its own thread. XLA reads this when JAX first looks for
# devices.
XLA_OPTIONS = "--xla_cpu_multi_thread_eigen=false"
MAX_ACTIVATION_BYTES = 2**20  # bytes of the largest activation of a group; about what a core's own cache holds
MIN_EXAMPLES = 16  # examples of a group: with fewer, a network's weights pass through the cache too often
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
    """Make a device of each core, as far as batches divide, before JAX first looks for devices.

    As many as `devices`, or else `data` times `fsdp`, the axes of the mesh, where neither is -1; of the `processes`
    that share a run, each makes its share of the mesh, and the `processes_on_host` of one machine share its cores.
    Nothing is changed where XLA_FLAGS or JAX_NUM_CPU_DEVICES say how many there shall be, or where JAX has looked
    already. The devices are not used where there is an accelerator.
    """
    preset = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if preset or jax.config.values["jax_num_cpu_devices"] > 0:
        return
    cores = runtime.cores()
    if cores == os.cpu_count():  # else the engine has given each its own
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
    model: nn.Module,
    params: Any,
    image_size: int,
    batch: int,
    devices: int,
    *,
    train: bool = True,
    microbatch: int | None = None,
) -> int:
    """Returns into how many microbatches a CPU splits a batch; 1 on an accelerator.

    As many as keep a microbatch's largest activation within `MAX_ACTIVATION_BYTES`, with no fewer examples than
    `MIN_EXAMPLES`, among those that divide over the devices: where batch and devices are powers of two, the same on any
    number of them. With BatchNorm, which in training looks at all examples at once, as many as there are devices.

    Args:
      microbatch: the examples of a microbatch, in place of that choice; 0 for the whole batch at once.

    Raises:
      UserError: `microbatch` does not divide what each device has of a batch, or the network has BatchNorm.
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
            f"config.cpu.microbatch={microbatch} does not divide the {share} examples that each of {devices} devices "
            f"has of a batch of {batch}; choose a number that does, or 0 for the whole batch at once"
        )
    if batch_norm and microbatch != share:
        raise UserError(
            f"config.cpu.microbatch={microbatch}: BatchNorm looks at all examples of a batch in training; use "
            f"{share}, what each device has of it, or 0 for the whole batch at once"
        )


def per_device_microbatch_grads(grad_fn: GradFn, num_microbatches: int, mesh: Mesh) -> GradFn:
    """Works a batch through microbatch after microbatch on each device of `mesh`, for a core's cache.

    What memory is to `accumulate_grads`, the cache is here: microbatches lie side by side in the batch, so that each
    device holds whole ones, and the devices exchange nothing but the sum of their gradients at the end, and what
    BatchNorm adds up over them. Dropout draws a mask for each microbatch by its place in the batch, which is the same
    on any number of devices. The mean loss and its gradient are those of the whole batch.
    """
    per_device = num_microbatches // mesh.size
    replicated, batch = PartitionSpec(), PartitionSpec(BATCH_AXES)

    def device_grads(
        params: Any, batch_stats: Any, inputs: Inputs, dropout_key: Array, num_valid: Array
    ) -> tuple[Any, Aux]:
        numbers = jax.lax.axis_index(BATCH_AXES) * per_device + jnp.arange(per_device)
        split = jax.tree.map(lambda x: x.reshape(per_device, -1, *x.shape[1:]), inputs)
        keys = jax.vmap(lambda number: jax.random.fold_in(dropout_key, number))(numbers)
        grads, aux = scan_microbatches(grad_fn, params, batch_stats, split, keys, num_valid)
        losses, logits = (x.reshape(-1, *x.shape[2:]) for x in (aux.losses, aux.logits))
        return jax.lax.psum(grads, BATCH_AXES), Aux(losses, logits, aux.batch_stats)

    all_devices_grads = jax.shard_map(
        device_grads,
        mesh=mesh,
        in_specs=(replicated, replicated, batch, replicated, replicated),
        out_specs=(replicated, Aux(batch, batch, replicated)),  # type: ignore[arg-type]  # places in place of arrays
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
    """Computes the logits of a batch microbatch after microbatch on each device of `mesh`."""
    per_device = num_microbatches // mesh.size
    replicated, batch = PartitionSpec(), PartitionSpec(BATCH_AXES)

    def device_logits(variables: Any, images: Array) -> Array:
        split = images.reshape(per_device, -1, *images.shape[1:])
        logits = jax.lax.map(lambda microbatch: logits_fn(variables, microbatch), split)
        return logits.reshape(-1, logits.shape[-1])

    return jax.shard_map(device_logits, mesh=mesh, in_specs=(replicated, batch), out_specs=batch, check_vma=False)


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
