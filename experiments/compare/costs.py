"""Count the cost of a network, or measure it with short runs of the training program, which are kept."""

import dataclasses
import pathlib
import statistics
from collections.abc import Sequence

from experiments.benchmark import machine
from experiments.runner import jobs as jobs_lib
from experiments.runner.jobs import Job
from experiments.runner.run_spec import RunSpec
from patchnets import models
from patchnets.config import flags
from patchnets.data import open_dataset
from patchnets.errors import RunError, UserError
from patchnets.experiment import data_options
from patchnets.models.flops import ModelCost, cost

RUNS = 3  # pilot runs, of which the median counts
# Only steps, with a schedule that does not depend on the length of the real run.
PILOT = {"total_steps": 50, "dataset.val_split": "none", "dataset.test_split": "none", "schedule.name": "constant"}
PILOT |= {f"schedule.{part}_{unit}": None for part in ("warmup", "cooldown") for unit in ("steps", "epochs")}
PILOT |= {"plots": False, "tensorboard": False}
NOT_FOR_PILOTS = ("schedule.", "early_stopping.", "reduce_on_plateau.", "eval_every_", "checkpoint.", "log_every_")


def counted(arguments: Sequence[str]) -> ModelCost:
    """Return the cost of the network that a command line of patchnets.main describes, with a head for its classes.

    Raises:
      UserError: the command line is invalid, or the data set is not available.
    """
    with jobs_lib.at_root():
        config = flags.parse_flags(["compare", *arguments])[0]
        source = open_dataset(data_options(config), 1).source
    return cost(
        models.create_model(**config.model, num_classes=len(source.class_names)), config.image_size, source.channels
    )


@dataclasses.dataclass(frozen=True)
class Pilots:
    """Short runs that measure the time of a training step, one run at a time on one device.

    Attributes:
      directory: the folder in which they are kept.
      data: as in `jobs.job`.
      handed_on: overrides for all runs.
      may_measure: if False, raise an error instead of measuring.
    """

    directory: pathlib.Path
    data: str | None
    handed_on: tuple[str, ...]
    may_measure: bool = True

    def milliseconds(self, row: RunSpec) -> float:
        """Return the milliseconds per training step of a row's network: the median of `RUNS` short runs.

        Raises:
          UserError: not measured yet, and `may_measure` is False.
          RunError: a run failed.
          Interrupted: a signal arrived.
        """
        overrides = [a for a in self.handed_on if not a.removeprefix("--config.").startswith(NOT_FOR_PILOTS)]
        pilot = dataclasses.replace(row, changes=dict(row.changes) | PILOT)
        jobs = [jobs_lib.job(pilot, seed, self.directory, self.data, overrides) for seed in range(RUNS)]
        missing = [job for job in jobs if job.summary() is None]
        if missing and not self.may_measure:
            raise UserError(f"the speed of {row.id} was not measured in {self.directory} yet; remove --report")
        failures: dict[Job, str] = {}
        jobs_lib.run_jobs(missing, 1, machine.gpu_slots()[:1], lambda *_: None, failures)
        if failures:
            raise RunError(f"measuring the speed of {row.id} failed: {next(iter(failures.values()))}")
        speeds = [ms for job in jobs if (ms := step_milliseconds(job)) is not None]
        if not speeds:
            raise RunError(f"no run in {self.directory} has the speed of {row.id}; remove that folder and try again")
        median = statistics.median(speeds)
        if missing:
            print(f"measured {row.id} (family-width-depth): {median:,.1f} ms a step", flush=True)
        return median


def step_milliseconds(job: Job) -> float | None:
    """Return the milliseconds per training step of a finished run, without evaluation; None if it was too short."""
    rate = (job.summary() or {}).get("images_per_second")
    return 1000 * batch_size(job) / rate if rate else None


def batch_size(job: Job) -> int:
    with jobs_lib.at_root():
        return flags.parse_flags(["compare", *job.arguments])[0].batch_size
