"""Devices as a mesh with named axes."""

import contextlib
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from patchnets.errors import UserError

BATCH_AXES = ("data", "fsdp")  # the mesh axes over which a batch is split
FSDP_AXIS = "fsdp"  # the mesh axis over which parameters are split too


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    *,
    batch_sizes: Sequence[int] = (),
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Return a mesh of the first `data` times `fsdp` of `devices`.

    Args:
      data: devices that share each batch, with replicated parameters; -1 takes the remaining devices.
      fsdp: devices that share each batch and the parameters; -1 takes the remaining devices.
      batch_sizes: sizes of the batches to be split evenly over the mesh.
      devices: by default all devices of the run.

    Raises:
      UserError: there are too few devices, or a batch cannot be split evenly over them.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(data, fsdp, len(devices))
    size = math.prod(shape)
    if size < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"config.mesh asks for {size} of {len(devices)} devices, but every process has to use all its devices; use "
            "them all, or start fewer processes"
        )
    for batch_size in batch_sizes:
        if batch_size % size:
            below, over = batch_size // size * size, -(-batch_size // size) * size
            use = f"{below} or {over}" if below else str(over)
            raise UserError(
                f"a batch of {batch_size} cannot be split evenly over {size} devices; use {use}, or another "
                "config.mesh.data"
            )
    return arrange_devices(devices[:size], shape)


def mesh_shape(data: int, fsdp: int, devices: int) -> tuple[int, int]:
    """Return (data, fsdp) with -1 resolved. Raises UserError if there are too few devices, or they do not divide."""
    if data == fsdp == -1:
        raise UserError("config.mesh.data=-1 and config.mesh.fsdp=-1 both take the rest of the devices; set one")
    for name, size in (("data", data), ("fsdp", fsdp)):
        if size != -1 and size < 1:
            raise UserError(f"config.mesh.{name}={size} is no number of devices; use at least 1, or -1 for the rest")
    for name, size, other in (("data", data, fsdp), ("fsdp", fsdp, data)):
        if size == -1 and devices % other:
            another = "fsdp" if name == "data" else "data"
            raise UserError(
                f"config.mesh.{another}={other} does not divide the {devices} devices, of which config.mesh.{name}=-1 "
                "takes the rest; use a divisor"
            )
    data, fsdp = (devices // fsdp, fsdp) if data == -1 else (data, devices // data if fsdp == -1 else fsdp)
    if data * fsdp > devices:
        requested = f"config.mesh.data={data}" + (f" times config.mesh.fsdp={fsdp}" if fsdp > 1 else "")
        raise UserError(f"{requested} exceeds the {devices} devices; use at most that, or -1 for all")
    return data, fsdp


def arrange_devices(devices: Sequence[jax.Device], shape: tuple[int, int]) -> Mesh:
    """Return a mesh. On TPUs, neighbors along the last axis, which gathers parameters, are physically close."""
    grid = np.array(devices).reshape(shape)
    if devices[0].platform == "tpu":
        # JAX cannot arrange some shapes, nor a subset of the chips; these work in any order.
        with contextlib.suppress(AssertionError, NotImplementedError, ValueError):
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, BATCH_AXES, axis_types=(AxisType.Auto,) * len(shape))
