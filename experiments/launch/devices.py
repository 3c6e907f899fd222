"""Count the devices of a job, as far as they are known, and check a configuration against them."""

import math
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from patchnets.errors import UserError
from patchnets.parallel import mesh

# Units (chips or cores, as the name of the slice type counts) per JAX device, by type of Cloud TPU slice.
UNITS = {"v2": 1, "v3": 1, "v4": 2, "v5litepod": 1, "v5p": 2, "v6e": 1}
ONE_A_CHIP = r"tpu-v(4-podslice|5-lite-.*|5p-slice|6e-slice)"  # GKE types with one device per chip


def known(engine: str, values: Mapping[str, Any], nodes: int) -> int | None:
    """Return the number of devices of a job, None if not known; raise UserError for contradictory options."""
    kind = values.get("tpu-type", "")
    if engine == "tpu":
        version, _, units = kind.rpartition("-")
        return int(units) // UNITS[version] if version in UNITS and re.fullmatch(r"\d{1,6}", units) else None
    gpus, chips = values.get("gpus-per-node"), values.get("tpus-per-node")
    if gpus and chips:
        raise UserError(f"--gpus-per-node={gpus} and --tpus-per-node={chips} are both given; use one")
    if chips and "tpu-topology" in values:
        topology = values["tpu-topology"]
        total_chips = math.prod(map(int, topology.split("x")))
        if total_chips != nodes * chips:
            raise UserError(
                f"--tpu-topology={topology} has {total_chips} chips, but --nodes={nodes} with --tpus-per-node={chips} "
                f"has {nodes * chips}; make them equal"
            )
    if chips:
        return nodes * chips if re.fullmatch(ONE_A_CHIP, kind) else None
    return nodes * gpus if gpus else None


def hosts(devices: int | None) -> int:
    """Return the minimum number of hosts (processes) of a Cloud TPU slice: a host has at most eight devices."""
    return -(-(devices or 1) // 8)


def check(config: ml_collections.ConfigDict, processes: int, devices: int | None) -> None:
    """Raise UserError if `processes` cannot train `config`; `devices` is None if not known (one or more each)."""
    count, unit = processes, "processes"
    mesh_sizes = config.mesh.data, config.mesh.get("fsdp", 1)
    if -1 not in mesh_sizes and math.prod(mesh_sizes) % processes:
        raise UserError(
            f"config.mesh asks for {math.prod(mesh_sizes)} devices, which does not divide by {processes} processes; "
            "use -1 for all devices"
        )
    if devices is not None:
        count, unit = math.prod(mesh.mesh_shape(config.mesh.data, config.mesh.fsdp, devices)), "devices"
        if processes > 1 and count < devices:
            raise UserError(f"config.mesh asks for {count} of {devices} devices; several processes must use all")
    batches = {
        "config.batch_size": config.batch_size,
        "config.eval_batch_size": config.eval_batch_size or config.batch_size,
        "config.batch_size / config.grad_accum_steps": config.batch_size // config.grad_accum_steps,
    }
    for name, batch in batches.items():
        if batch % count:
            raise UserError(f"{name}={batch} does not divide over {count} {unit}; choose one that does")
