"""All that a run is made of, built from its configuration before the first step."""

import dataclasses

import flax.linen as nn
import ml_collections
import optax
from jax.sharding import Mesh

from patchnets import models, sharding
from patchnets.data import Data, load_data
from patchnets.optimizers import make_optimizer, make_schedule, steps_of
from patchnets.patience import Patience
from patchnets.steps import Task
from patchnets.train_state import TrainState, create_train_state


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run to be."""

    config: ml_collections.ConfigDict
    mesh: Mesh
    data: Data
    model: nn.Module
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    task: Task
    patience: Patience
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
        )

    def next_stop(self, step: int) -> int:
        """The step, after `step`, at which something other than training happens."""
        periods = (self.eval_every, self.log_every, self.config.checkpoint.every_steps or self.total_steps)
        return min(self.total_steps, *(step + period - step % period for period in periods))


def make_plan(config: ml_collections.ConfigDict) -> Plan:
    """Builds everything that `config` describes. Raises UserError for what cannot be built."""
    mesh = sharding.make_mesh(config.mesh, (config.batch_size, config.eval_batch_size or config.batch_size))
    data = load_data(config, mesh)
    per_epoch = data.train.steps_per_epoch
    total_steps = max(1, steps_of(config, "total", per_epoch) or 0)
    eval_every = steps_of(config, "eval_every", per_epoch)
    eval_every = per_epoch if eval_every is None else max(1, eval_every)
    model = models.create_model(config.model, len(data.class_names))
    schedule = make_schedule(config, total_steps, per_epoch)
    optimizer = make_optimizer(config.optimizer, schedule)
    task = Task(model, optimizer, data.preprocess, config.seed, config.label_smoothing)
    patience = Patience.from_config(config, validates=data.val is not None)
    eval_every = min(eval_every, total_steps)
    return Plan(config, mesh, data, model, optimizer, schedule, task, patience, total_steps, eval_every)
