"""On how many devices a job trains, as far as that can be known, and whether a configuration can be had on them."""

import math
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from patchnets.errors import UserError
from patchnets.parallel import mesh

# Of each type of Cloud TPU slice, what JAX takes for one device, in the unit that the type counts: chips or cores.
UNITS = {"v2": 1, "v3": 1, "v4": 2, "v5litepod": 1, "v5p": 2, "v6e": 1}
ONE_A_CHIP = r"tpu-v(4-podslice|5-lite-.*|5p-slice|6e-slice)"  # of GKE's types


def known(engine: str, values: Mapping[str, Any], nodes: int) -> int | None:
    """All devices of a job; None where they cannot be told. Raises UserError where what is given does not agree."""
    kind = values.get("tpu-type", "")
    if engine == "tpu":
        version, _, units = kind.rpartition("-")
        return int(units) // UNITS[version] if version in UNITS and re.fullmatch(r"\d{1,6}", units) else None
    gpus, chips = values.get("gpus-per-node"), values.get("tpus-per-node")
    if gpus and chips:
        raise UserError(f"--gpus-per-node={gpus} and --tpus-per-node={chips} are both given; give one")
    if chips and "tpu-topology" in values:
        topology = values["tpu-topology"]
        chips_in_all = math.prod(map(int, topology.split("x")))
        if chips_in_all != nodes * chips:
            raise UserError(
                f"--tpu-topology={topology} has {chips_in_all} chips, and --nodes={nodes} with --tpus-per-node={chips} "
                f"{nodes * chips}; let them agree"
            )
    if chips:
        return nodes * chips if re.fullmatch(ONE_A_CHIP, kind) else None
    return nodes * gpus if gpus else None


def hosts(devices: int | None) -> int:
    """How many hosts, and so processes, a slice of Cloud TPU has at least: none has more than eight devices."""
    return -(-(devices or 1) // 8)


def check(config: ml_collections.ConfigDict, processes: int, devices: int | None) -> None:
    """Raises UserError where so many processes cannot train `config`; with None for devices each has one or more."""
    over, what = processes, "processes"
    mesh_sizes = config.mesh.data, config.mesh.get("fsdp", 1)
    if -1 not in mesh_sizes and math.prod(mesh_sizes) % processes:
        raise UserError(
            f"config.mesh asks for {math.prod(mesh_sizes)} devices, which cannot be shared alike by {processes} "
            f"processes; "
            "give -1 for all"
        )
    if devices is not None:
        over, what = math.prod(mesh.mesh_shape(config.mesh.data, config.mesh.fsdp, devices)), "devices"
        if processes > 1 and over < devices:
            raise UserError(f"config.mesh asks for {over} of {devices} devices; with several processes use all of them")
    batches = {
        "config.batch_size": config.batch_size,
        "config.eval_batch_size": config.eval_batch_size or config.batch_size,
        "config.batch_size / config.grad_accum_steps": config.batch_size // config.grad_accum_steps,
    }
    for name, batch in batches.items():
        if batch % over:
            raise UserError(f"{name}={batch} does not divide over {over} {what}; choose one that does")
