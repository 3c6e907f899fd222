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


FSDP_AXIS = "fsdp"  # the one over which parameters are split too


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    *,
    batch_sizes: Sequence[int] = (),
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Return a mesh of `data` times `fsdp` devices, the first of `devices` or of all; -1 takes the rest of them.

    Args:
      data: devices that share each batch, with whole parameters.
      fsdp: devices that share each batch and the parameters too.
      batch_sizes: batches that shall be split evenly over the mesh.

    Raises:
      UserError: there are not that many devices, or a batch cannot be split evenly over them.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(data, fsdp, len(devices))
    size = math.prod(shape)
    if size < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"config.mesh asks for {size} of {len(devices)} devices, and every process of a run takes part with all of "
            "its own; use them all, or start fewer processes"
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
    """Return (data, fsdp) on so many devices, of which -1 takes the rest. Raises UserError where there are too few."""
    if data == fsdp == -1:
        raise UserError("config.mesh.data=-1 and config.mesh.fsdp=-1 both take the rest of the devices; give one")
    for name, size, other in (("data", data, fsdp), ("fsdp", fsdp, data)):
        if size == -1 and devices % other:
            another = "fsdp" if name == "data" else "data"
            raise UserError(
                f"config.mesh.{another}={other} does not divide the {devices} devices, of which config.mesh.{name}=-1 "
                "takes the rest; choose one that does"
            )
    data, fsdp = (devices // fsdp, fsdp) if data == -1 else (data, devices // data if fsdp == -1 else fsdp)
    if data * fsdp > devices:
        requested = f"config.mesh.data={data}" + (f" times config.mesh.fsdp={fsdp}" if fsdp > 1 else "")
        raise UserError(f"{requested}, and there are {devices} devices; give at most that, or -1 for all")
    return data, fsdp


def arrange_devices(devices: Sequence[jax.Device], shape: tuple[int, int]) -> Mesh:
    """Neighbors in the last axis, over which parameters are gathered, lie near each other where it matters."""
    placed = np.array(devices).reshape(shape)
    if devices[0].platform == "tpu":
        # Some shapes, and some of the chips in place of all, JAX cannot place; they work in any order.
        with contextlib.suppress(AssertionError, NotImplementedError, ValueError):
            placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, BATCH_AXES, axis_types=(AxisType.Auto,) * len(shape))
