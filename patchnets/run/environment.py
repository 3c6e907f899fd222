"""How long a run took, on what machine, and with which versions."""

import os
import platform
from typing import Any

import jax
import numpy as np
import optax

from patchnets import __version__
from patchnets import config as config_lib
from patchnets.experiment import Experiment
from patchnets.run import console
from patchnets.run.progress import Progress


def describe_run(
    experiment: Experiment,
    progress: Progress,
    step: int,
    num_params: int,
    images_per_second: float | None,
    first_step_seconds: float | None,
) -> dict[str, Any]:
    """Return what a summary says besides metrics: duration, speed, machine, versions.

    Args:
      progress: of the run at its end.
      step: the last one.
      first_step_seconds: from the start of the process to the end of its first step; None if it took none.
    """
    return {
        "steps": step,
        "epochs": round(step / experiment.data.train.steps_per_epoch, 4),
        "params": num_params,
        "skipped_records": len(progress.skipped),
        "images_per_second": images_per_second and round(images_per_second, 1),
        "first_step_seconds": first_step_seconds,
        "wall_seconds": round(progress.wall_seconds, 1),
        "device": console.devices(experiment.mesh.size) + f", host with {os.cpu_count()} cores",
        "versions": {
            "patchnets": __version__,
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (jax, optax, np)},
        },
        "config_hash": config_lib.config_hash(config_lib.flatten(experiment.config)),
        "dataset": experiment.data.name,
        "splits": experiment.data.split_specs,
    }
