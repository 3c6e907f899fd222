"""Build the parts of a run from a configuration: `build_experiment`. No other module does.

The functions that make these parts take plain arguments, not a configuration. `python -m patchnets.estimate` builds the
same parts for data and devices that need not be present.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from patchnets import config as config_lib
from patchnets import models
from patchnets.augment.preprocess import Augment, Preprocess
from patchnets.config.published import Published
from patchnets.data import DataOptions, Dataset, load_opened, open_dataset
from patchnets.errors import UserError
from patchnets.optim.optimizers import frozen_params, make_optimizer
from patchnets.optim.plateau import EarlyStopping, ReduceLROnPlateau
from patchnets.optim.schedules import in_steps, make_schedule
from patchnets.parallel import cpu, sharding
from patchnets.parallel import mesh as mesh_lib
from patchnets.step.task import make_task
from patchnets.step.train_state import TrainState, abstract_params, abstract_train_state, create_train_state
from patchnets.step.train_step import Task


class DataSummary(Protocol):
    """Properties of the data that the parts of a run need, before any image is decoded."""

    @property
    def num_classes(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int: ...
    @property
    def has_val(self) -> bool: ...


class AbstractDataset(DataSummary, Protocol):
    """A data set that is present, or of which only the sizes are known."""

    @property
    def preprocess(self) -> Preprocess: ...


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a run.

    Attributes:
      data: in an estimate, only what `AbstractDataset` has.
      params: tree of shapes.
      schedule: step -> learning rate, before `reduce_on_plateau` scales it.
      early_stopping, reduce_on_plateau: as at step 0; a run works on copies.
      num_microbatches: number of parts into which a CPU splits a training batch.
    """

    config: ml_collections.ConfigDict
    mesh: Mesh
    data: Dataset
    model: nn.Module
    params: Any
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    task: Task
    early_stopping: EarlyStopping
    reduce_on_plateau: ReduceLROnPlateau
    published: Published
    total_steps: int
    eval_every: int
    num_microbatches: int = 1

    @property
    def log_every(self) -> int:
        return self.config.log_every_steps or self.eval_every

    @property
    def save_every(self) -> int:
        return self.config.checkpoint.save_interval_steps or self.total_steps

    def init_state(self, seed: int | None = None, initial: Mapping[str, np.ndarray] | None = None) -> TrainState:
        """Return the state at step 0, on the devices.

        Args:
          seed: overrides the configuration's.
          initial: variables that do not start at random (`weights.initialize`).
        """
        return create_train_state(
            initial=initial,
            seed=self.config.seed if seed is None else seed,
            init_head_bias=self.config.init_head_bias,
            **self._state_options(),
        )

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shape, type and sharding of every array of a state (`jax.ShapeDtypeStruct`)."""
        return abstract_train_state(**self._state_options())

    def _state_options(self) -> dict[str, Any]:
        return dict(
            model=self.model,
            optimizer=self.optimizer,
            image_size=self.config.image_size,
            channels=self.data.channels,
            mesh=self.mesh,
            ema=self.config.ema_decay is not None,
            fsdp_rules=self.config.mesh.fsdp_rules or (),
        )

    def next_boundary(self, step: int) -> int:
        """Return the next step after `step` at which to log, evaluate or save."""
        periods = (self.eval_every, self.log_every, self.save_every)
        return min(self.total_steps, *(step + period - step % period for period in periods))

    def num_validations(self, step: int) -> int:
        """Return the number of validations up to the one at `step`; the one at the end may come before it is due."""
        return -(-step // self.eval_every)


def build_experiment(
    config: ml_collections.ConfigDict,
    data: AbstractDataset | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Experiment:
    """Build the parts of the run that `config` describes.

    Args:
      data: a data set to use instead of `config.dataset`.
      devices: those to use, which need not be present; None for all of this machine.

    Raises:
      UserError: something cannot be built as configured.
      RunError: an image cannot be decoded.
    """
    config_lib.validate(config)
    eval_batch_size = config.eval_batch_size or config.batch_size
    fsdp_rules = config.mesh.fsdp_rules or ()
    mesh = mesh_lib.make_mesh(
        config.mesh.data, config.mesh.fsdp, batch_sizes=(config.batch_size, eval_batch_size), devices=devices
    )
    if (part := config.batch_size // config.grad_accum_steps) % mesh.size:
        raise UserError(
            f"config.grad_accum_steps={config.grad_accum_steps} makes parts of {part} examples, which cannot be "
            f"split evenly over {mesh.size} devices; lower it, or raise config.batch_size"
        )
    opened = open_dataset(data_options(config), mesh.size) if data is None else None
    summary = cast(DataSummary, opened or data)

    total_steps, eval_every = run_lengths(
        total=(config.total_steps, config.total_epochs),
        eval_every=(config.eval_every_steps, config.eval_every_epochs),
        steps_per_epoch=summary.steps_per_epoch,
    )
    early_stopping = EarlyStopping(**config.early_stopping.to_dict())
    reduce_on_plateau = ReduceLROnPlateau(**config.reduce_on_plateau.to_dict())
    for watcher in (early_stopping, reduce_on_plateau):
        watcher.check_observable(summary.has_val)

    model = models.create_model(**config.model, num_classes=summary.num_classes)
    params = abstract_params(model, config.image_size, summary.channels)
    schedule = build_schedule(config, total_steps, summary.steps_per_epoch)
    optimizer = make_optimizer(**optimizer_options(config.optimizer.to_dict()), learning_rate=schedule, params=params)
    sharding.fsdp_dimensions(params, mesh, fsdp_rules)

    count = functools.partial(cpu.num_microbatches, model, params, config.image_size, microbatch=config.cpu.microbatch)
    in_train = count(config.batch_size, mesh.size) if config.grad_accum_steps == 1 else 1
    in_eval = count(eval_batch_size, mesh.size, train=False)

    if opened is not None:  # last, because decoding may take minutes and errors should come first
        data = load_opened(opened, mesh)
    assert data is not None
    task = make_task(
        model,
        optimizer,
        data.preprocess,
        mesh=mesh,
        seed=config.seed,
        loss=config.loss,
        label_smoothing=config.label_smoothing,
        augment=Augment(**config.augment.to_dict()),
        ema_decay=config.ema_decay,
        grad_accum_steps=config.grad_accum_steps,
        frozen=frozen_params(config.optimizer.frozen, params) if config.optimizer.frozen else None,
        sam_rho=config.optimizer.sam_rho,
        num_microbatches=in_train,
        num_eval_microbatches=in_eval,
    )
    return Experiment(
        config=config,
        mesh=mesh,
        data=cast(Dataset, data),
        model=model,
        params=params,
        optimizer=optimizer,
        schedule=schedule,
        task=task,
        early_stopping=early_stopping,
        reduce_on_plateau=reduce_on_plateau,
        published=Published(**config.published.to_dict()),
        total_steps=total_steps,
        eval_every=eval_every,
        num_microbatches=in_train,
    )


def run_lengths(
    *,
    total: tuple[int | None, float | None],
    eval_every: tuple[int | None, float | None],
    steps_per_epoch: int,
) -> tuple[int, int]:
    """Return the steps of a run and those from each validation to the next, an epoch by default, at least one of each.

    Args:
      total, eval_every: in (steps, epochs), of which at most one is set.
    """
    total_steps = in_steps("total", steps=total[0], epochs=total[1], steps_per_epoch=steps_per_epoch)
    between = in_steps("eval_every", steps=eval_every[0], epochs=eval_every[1], steps_per_epoch=steps_per_epoch)
    total_steps = max(1, total_steps or 0)
    return total_steps, min(steps_per_epoch if between is None else max(1, between), total_steps)


def data_options(config: ml_collections.ConfigDict) -> DataOptions:
    """Return the options of the data set and its loaders."""
    return DataOptions(
        **config.dataset.to_dict(),
        image_size=config.image_size,
        normalize=config.normalize,
        crop_pct=config.crop_pct,
        augment=Augment(**config.augment.to_dict()),
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        seed=config.seed,
    )


def use_cpu_cores(config: ml_collections.ConfigDict, processes: int = 1, processes_on_host: int = 1) -> None:
    """Make a device of each core of a CPU, before JAX first looks for devices (`cpu.use_one_device_per_core`)."""
    cpu.use_one_device_per_core(
        {config.batch_size // config.grad_accum_steps, config.eval_batch_size or config.batch_size},
        devices=config.cpu.devices,
        data=config.mesh.data,
        fsdp=config.mesh.fsdp,
        processes=processes,
        processes_on_host=processes_on_host,
    )


def optimizer_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `make_optimizer` among the keys below `optimizer.`: all but the learning rate, which the
    schedule takes, and the radius of sharpness-aware minimization, which the gradient takes."""
    return {name: value for name, value in values.items() if name not in ("learning_rate", "sam_rho")}


def build_schedule(config: ml_collections.ConfigDict, total_steps: int, steps_per_epoch: int) -> optax.Schedule:
    """Return the schedule of `config.schedule`. Raise UserError for keys that conflict or do not fit the run."""
    schedule = config.schedule

    def steps(name: str) -> int | None:
        return in_steps(
            f"schedule.{name}",
            steps=schedule[f"{name}_steps"],
            epochs=schedule[f"{name}_epochs"],
            steps_per_epoch=steps_per_epoch,
        )

    return make_schedule(
        schedule.name,
        learning_rate=config.optimizer.learning_rate,
        total_steps=total_steps,
        warmup_steps=steps("warmup") or 0,
        cooldown_steps=steps("cooldown") or 0,
        end_factor=schedule.end_factor,
        step_factor=schedule.step_factor,
        step_every_steps=steps("step_every"),
        timescale_steps=schedule.timescale_steps,
    )
