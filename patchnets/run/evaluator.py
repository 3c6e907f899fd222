"""Evaluation of a state on a split, every example once."""

from collections.abc import Callable

import jax

from patchnets.data.loader import Loader
from patchnets.experiment import Experiment
from patchnets.parallel import multihost, sharding
from patchnets.run.step_timer import StepTimer
from patchnets.runtime.format import shortest_float
from patchnets.step.metrics import EvalMetrics
from patchnets.step.multi_step import compile_eval_steps
from patchnets.step.train_state import TrainState


class Evaluator:
    """A compiled evaluation on the split of one loader."""

    def __init__(self, experiment: Experiment, loader: Loader):
        shardings = jax.tree.map(lambda x: x.sharding, experiment.abstract_state)
        self._eval_steps = compile_eval_steps(experiment.task, loader.batch, experiment.mesh, shardings)
        self._loader, self._mesh = loader, experiment.mesh
        self._timer = StepTimer(experiment.config.steps_per_call)

    def __call__(self, state: TrainState, after_call: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Return the metrics of `state` on the split.

        Args:
          after_call: called after every few steps; it may raise to stop the evaluation.
        """
        metrics, step, num_steps = self._empty(), 0, self._loader.steps_per_epoch
        while step < num_steps:
            inputs, available = self._loader.step_inputs(step)
            n = multihost.broadcast_from_first(self._timer.steps_per_call(min(available, num_steps - step)))
            with self._timer.measure(n, n * self._loader.batch_size):
                metrics = jax.block_until_ready(self._eval_steps(state, metrics, inputs, step, n))
            step += n
            after_call()
        return {name: shortest_float(value) for name, value in metrics.compute().items()}

    def _empty(self) -> EvalMetrics:
        return sharding.init_replicated(EvalMetrics.empty, self._mesh)
