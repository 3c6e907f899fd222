"""All that a run is made of, built from its configuration before the first step.

`python -m patchnets.estimate` tells what it will take; that program is in the modules beside, which a run does not
import."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import optax
from jax.sharding import Mesh

from patchnets import models
from patchnets.augment import mixup, random_erasing
from patchnets.augment.preprocess import Preprocess
from patchnets.data import Dataset, load_dataset, open_dataset
from patchnets.errors import UserError
from patchnets.optim.optimizers import frozen_params, make_optimizer
from patchnets.optim.plateau import Plateau
from patchnets.optim.schedules import in_steps, make_schedule
from patchnets.parallel import cpu, sharding
from patchnets.parallel import mesh as mesh_lib
from patchnets.step.losses import LOSSES
from patchnets.step.train_state import TrainState, abstract_params, create_train_state
from patchnets.step.train_step import Erase, Mix, Task


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run to be."""

    config: ml_collections.ConfigDict
    mesh: Mesh
    data: Dataset
    model: nn.Module
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    task: Task
    plateau: Plateau
    total_steps: int
    eval_every: int

    @property
    def log_every(self) -> int:
        return self.config.log_every_steps or self.eval_every

    def initial_state(self) -> TrainState:
        return create_train_state(
            self.model,
            self.optimizer,
            image_size=self.config.image_size,
            channels=self.data.channels,
            seed=self.config.seed,
            mesh=self.mesh,
            init_head_bias=self.config.init_head_bias,
            ema=self.config.ema_decay is not None,
            fsdp_rules=self.config.mesh.get("fsdp_rules") or (),
        )

    def next_stop(self, step: int) -> int:
        """The step, after `step`, at which something other than training happens."""
        periods = (self.eval_every, self.log_every, self.config.checkpoint.save_interval_steps or self.total_steps)
        return min(self.total_steps, *(step + period - step % period for period in periods))


def build_experiment(config: ml_collections.ConfigDict, data: Dataset | None = None) -> Experiment:
    """Builds everything that `config` describes, of `data` where they are at hand. Raises UserError for what cannot be
    built."""
    mesh = make_mesh(config)
    if data is None:
        opened = open_dataset(config, mesh.size)
        per_epoch, validates = -(-opened.train_examples // config.batch_size), "val" in opened.parts
        classes, channels = len(opened.source.class_names), opened.source.channels
    else:
        per_epoch, validates = data.train.steps_per_epoch, data.val is not None
        classes, channels = len(data.class_names), data.channels
    outline = make_outline(config, mesh, per_epoch=per_epoch, classes=classes, channels=channels, validates=validates)
    # Last, for it may take minutes, and what is wrong should be told at once.
    data = load_dataset(config, mesh, opened) if data is None else data
    task = make_task(config, outline.model, outline.optimizer, data.preprocess, outline.params, mesh)
    return Experiment(
        config,
        mesh,
        data,
        outline.model,
        outline.optimizer,
        outline.schedule,
        task,
        outline.plateau,
        outline.total_steps,
        outline.eval_every,
    )


def use_cpu_cores(config: ml_collections.ConfigDict, processes: int = 1, processes_on_host: int = 1) -> None:
    """Make a device of each core of a CPU, before JAX first looks for devices (`cpu.use_one_device_per_core`)."""
    cpu.use_one_device_per_core(
        {config.batch_size // config.grad_accum_steps, config.eval_batch_size or config.batch_size},
        data=config.mesh.data,
        fsdp=config.mesh.fsdp,
        processes=processes,
        processes_on_host=processes_on_host,
    )


def make_mesh(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices that share a batch, of those given or all. Raises UserError where the batches do not divide."""
    mesh = mesh_lib.make_mesh(
        config.mesh.data,
        config.mesh.fsdp,
        batch_sizes=(config.batch_size, config.eval_batch_size or config.batch_size),
        devices=devices,
    )
    if (part := config.batch_size // config.grad_accum_steps) % mesh.size:
        raise UserError(
            f"config.grad_accum_steps={config.grad_accum_steps} makes parts of {part} examples, which cannot be "
            f"split evenly over "
            f"{mesh.size} devices; lower it, or raise config.batch_size"
        )
    return mesh


@dataclasses.dataclass(frozen=True)
class Outline:
    """What a run is made of besides its data.

    Attributes:
      params: tree of shapes.
    """

    model: nn.Module
    params: Any
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    plateau: Plateau
    total_steps: int
    eval_every: int


def make_outline(
    config: ml_collections.ConfigDict, mesh: Mesh, *, per_epoch: int, classes: int, channels: int, validates: bool
) -> Outline:
    """All that can be built knowing only so much of the data: steps in an epoch, classes, channels, and whether a part
    is for validation. Raises UserError for what cannot be built."""
    total_steps = in_steps("total", steps=config.total_steps, epochs=config.total_epochs, steps_per_epoch=per_epoch)
    total_steps = max(1, total_steps or 0)
    eval_every = in_steps(
        "eval_every", steps=config.eval_every_steps, epochs=config.eval_every_epochs, steps_per_epoch=per_epoch
    )
    eval_every = per_epoch if eval_every is None else max(1, eval_every)
    plateau = Plateau(
        config.reduce_on_plateau.factor, config.reduce_on_plateau.patience, config.early_stopping.patience
    )
    plateau.check_observable(validates)
    model = models.create_model(config.model, classes)
    schedule = build_schedule(config, total_steps, per_epoch)
    params = abstract_params(model, config.image_size, channels)
    optimizer = make_optimizer(**optimizer_options(config), learning_rate=schedule, params=params)
    sharding.fsdp_dimensions(params, mesh, config.mesh.get("fsdp_rules") or ())
    return Outline(model, params, optimizer, schedule, plateau, total_steps, min(eval_every, total_steps))


def optimizer_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return the arguments of `make_optimizer` that `config.optimizer` holds, all but the learning rate."""
    options = config.optimizer.to_dict()
    del options["learning_rate"], options["sam_rho"]  # of the schedule, and of the gradient
    return options


def build_schedule(config: ml_collections.ConfigDict, total_steps: int, steps_per_epoch: int) -> optax.Schedule:
    """Return the schedule of `config.schedule`. Raises UserError for what does not fit together, or into the run."""
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


def make_task(
    config: ml_collections.ConfigDict,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    params: Any,
    mesh: Mesh | None = None,
) -> Task:
    """What a step does, as `config` has it; with a `mesh`, a batch may go over its devices in groups."""
    num_microbatches = num_eval_microbatches = 1
    if mesh is not None:
        size, evaluated = config.image_size, config.eval_batch_size or config.batch_size
        num_microbatches = (
            cpu.num_microbatches(model, params, size, config.batch_size, mesh.size)
            if config.grad_accum_steps == 1
            else 1
        )
        num_eval_microbatches = cpu.num_microbatches(model, params, size, evaluated, mesh.size, train=False)
    return Task(
        model,
        optimizer,
        preprocess,
        config.seed,
        label_smoothing=config.label_smoothing,
        mix=make_mix(config),
        erase=make_erase(config),
        loss=LOSSES[config.loss],
        grad_accum_steps=config.grad_accum_steps,
        num_microbatches=num_microbatches,
        num_eval_microbatches=num_eval_microbatches,
        mesh=mesh,
        sam_radius=config.optimizer.sam_rho,
        frozen=frozen_params(config.optimizer.frozen, params) if config.optimizer.frozen else None,
        ema_decay=config.ema_decay,
    )


def make_mix(config: ml_collections.ConfigDict) -> Mix | None:
    """mixup and CutMix as `config.augment` has them; None for neither."""
    augment = config.augment
    if not augment.mixup and not augment.cutmix:
        return None
    return functools.partial(
        mixup.mix,
        mixup=augment.mixup,
        cutmix=augment.cutmix,
        switch=augment.mix_switch_prob,
        probability=augment.mix_prob,
        mode=augment.mix_mode,
    )


def make_erase(config: ml_collections.ConfigDict) -> Erase | None:
    """Random erasing as `config.augment` has it; None for none."""
    probability, mode = config.augment.random_erasing_prob, config.augment.random_erasing_mode
    return functools.partial(random_erasing.random_erasing, probability=probability, mode=mode) if probability else None
