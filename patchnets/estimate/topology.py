"""Devices to compile for: this machine's, or those of a TPU slice."""

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator

import jax

from patchnets import runtime
from patchnets.errors import UserError, first_line
from patchnets.parallel.backend import target_backend

GIB = 2**30
# GiB of memory per chip, from Google Cloud's pages on TPU versions.
MEMORY_GIB = {"TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v6 lite": 32}
WORKING = ("v4:2x2x1", "v4:2x2x4", "v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:16x16", "v5p:2x2x1", "v6e:2x4", "v6e:16x16")
# Dimensions of a slice, and the largest length of each. libtpu aborts on larger ones.
SHAPES = {"v4": (3, 32), "v5e": (2, 16), "v5p": (3, 32), "v6e": (2, 16)}
OTHERS = (None, 32)
# JAX uses the two cores of a v4 chip as one device only with this setting.
CHIPS = {"v4": "megacore"}
# Values that libtpu would otherwise request from a metadata server.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """The devices of an estimate.

    Attributes:
      devices: all of them, as `mesh.arrange_devices` takes them.
      present: whether they are this machine's; otherwise programs are only compiled for them.
      memory: bytes of each; None if not known.
      memory_source: origin of `memory`, as printed.
    """

    devices: list[jax.Device]
    present: bool
    memory: float | None
    memory_source: str

    @property
    def kind(self) -> str:
        return self.devices[0].device_kind

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Trace for these devices' backend."""
        with contextlib.nullcontext() if self.present else target_backend(self.devices[0].platform):
            yield


def find_topology(topology: str | None, memory_gib: float | None) -> Topology:
    """Return the devices of a topology such as "v5e:2x4"; this machine's for None.

    Raises:
      UserError: libtpu is not installed, or it does not know the topology.
    """
    devices = jax.devices() if topology is None else topology_devices(topology)
    if memory_gib is not None:
        return Topology(devices, topology is None, memory_gib * GIB, "as given")
    memory, source = _memory(devices) if topology is None else (_published(devices[0]), "of this kind of device")
    return Topology(devices, topology is None, memory, source)


def topology_devices(name: str) -> list[jax.Device]:
    """Return the devices of a TPU slice, to compile for. Raise UserError as `find_topology`."""
    if not has_libtpu():
        raise UserError(
            f"--topology={name} needs libtpu, which is not installed; pip install 'patchnets[tpu-aot]' "
            "(no TPU is needed)"
        )
    _check(name)
    from jax.experimental import topologies

    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    chips = CHIPS.get(name.partition(":")[0])
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **{} if chips is None else {"chip_config_name": chips}
        )
    except Exception as error:  # JAX documents no type for it
        raise UserError(
            f"--topology={name} is not known to libtpu ({first_line(error, 120)}); known to work: {', '.join(WORKING)}"
        ) from error
    return list(described.devices)


def _check(name: str) -> None:
    """Raise UserError for a topology on which libtpu would abort."""
    if not re.fullmatch(r"\w+:\d{1,9}(x\d{1,9}){1,2}", name, re.ASCII):
        raise UserError(f"--topology={name[:60]!r} is not understood; known to work: {', '.join(WORKING)}")
    kind, _, shape = name.partition(":")
    lengths = [int(length) for length in shape.split("x")]
    dimensions, most = SHAPES.get(kind, OTHERS)
    if dimensions not in (None, len(lengths)) or not all(1 <= length <= most for length in lengths):
        count = {2: "two numbers", 3: "three numbers", None: "numbers"}[dimensions]
        fits = [known for known in WORKING if known.startswith(f"{kind}:")] or WORKING
        raise UserError(
            f"--topology={name} is no slice; expected {count} from 1 to {most}; known to work: {', '.join(fits)}"
        )


def has_libtpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def _published(device: jax.Device) -> float | None:
    gib = MEMORY_GIB.get(device.device_kind)
    return None if gib is None else float(gib * GIB)


def _memory(devices: list[jax.Device]) -> tuple[float | None, str]:
    """Return the bytes of each of this machine's devices, and the origin of that figure."""
    if devices[0].platform == "cpu":
        free = runtime.available_memory()
        return free and free / len(devices), "free memory of this machine, shared by its devices"
    with contextlib.suppress(Exception):  # not all devices report it
        if limit := (devices[0].memory_stats() or {}).get("bytes_limit"):
            return float(limit), "the device's limit"
    return _published(devices[0]), "of this kind of device"
