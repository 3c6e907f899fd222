"""A run from its configuration to its summary: build, restore, (train, evaluate, save)*, test."""

import contextlib
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from clu import parameter_overview

from patchnets import config as config_lib
from patchnets.config import published
from patchnets.config.published import Published
from patchnets.errors import Preempted, RunError, UserError, first_line
from patchnets.experiment import Experiment, build_experiment
from patchnets.inference.probes import ProbeResult
from patchnets.inference.run_probes import RunProbes
from patchnets.parallel import distributed, multihost, sharding
from patchnets.parallel.preemption import PreemptionHandler
from patchnets.run import console, environment, model_spec
from patchnets.run.checkpoints import Checkpoints
from patchnets.run.evaluator import Evaluator
from patchnets.run.frozen_features import FrozenFeatures, keeps_features
from patchnets.run.model_spec import ModelSpec
from patchnets.run.progress import Progress
from patchnets.run.step_timer import StepTimer
from patchnets.run.tensorboard import TensorBoard
from patchnets.run.workdir import Workdir
from patchnets.runtime.format import shortest_float
from patchnets.step.head_steps import compile_head_steps
from patchnets.step.metrics import TrainMetrics
from patchnets.step.multi_step import compile_train_steps
from patchnets.weights.initialize import FILE_NAME as INIT_FILE
from patchnets.weights.initialize import Initialization

OVERVIEW_LINES = 20
PER_HOST_KEYS = {"dataset.path", "dataset.data_dir", "dataset.cache_dir", "dataset.num_workers"}  # may differ


def train(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike[str],
    began: float | None = None,
    preemption: PreemptionHandler | None = None,
) -> dict[str, Any]:
    """Train as `config` describes, or resume the run in `workdir`, and return the summary.

    Args:
      config: complete and valid (`patchnets.config`).
      workdir: the folder that receives checkpoints, metrics and plots.
      began: time.monotonic() at the start of the process, if the run's seconds count from there.
      preemption: a handler that is already installed.

    Raises:
      UserError: the configuration, the data or the work directory cannot be used; nothing was written.
      RunError: the run had to stop; checkpoints stay as they are.
      Preempted: a signal arrived; the state was saved.
    """
    began = time.monotonic() if began is None else began
    check_same_config(config_lib.flatten(config))
    if config_lib.network_of_weights(config_lib.flatten(config)):
        from patchnets.inference.warm_start import fields_of_weights

        with multihost.errors_on_all():
            fields = fields_of_weights(config_lib.flatten(config), pathlib.Path(workdir).expanduser())
        config = config.copy_and_resolve_references()
        config.update_from_flattened_dict(fields)
    flat = config_lib.flatten(config)
    run_dir = Workdir(workdir, flat, writes=multihost.is_first_process())
    with multihost.errors_on_all():
        summary = run_dir.load_summary()
    if multihost.broadcast_from_first(summary is not None):
        return print_finished(Published(**config.published.to_dict()), summary, run_dir) if summary else {}
    with multihost.errors_on_all():
        experiment = build_experiment(config)
        keep_features = keeps_features(experiment)
        probes = RunProbes(experiment) if config.probes.names else None
    initialization = read_initialization(experiment, run_dir) if config.init.weights else None
    run_dir.check_shared()
    return run_in(run_dir, experiment, initialization, began, preemption, keep_features, probes)


def read_initialization(experiment: Experiment, run_dir: Workdir) -> Initialization | None:
    """Return the trained weights that a run starts from; None if it resumes, and they are gone.

    Raises:
      UserError: they cannot be read or do not fit, or are not the same for all processes.
    """
    from patchnets.inference.warm_start import warm_start

    initialization = warm_start(experiment, run_dir.path)
    if len(multihost.union({initialization.sha256} if initialization else set())) > 1:
        raise UserError(f"config.init.weights={experiment.config.init.weights} is not the same for all processes")
    return initialization


def run_in(
    run_dir: Workdir,
    experiment: Experiment,
    initialization: Initialization | None,
    began: float,
    preemption: PreemptionHandler | None,
    keep_features: bool,
    probes: RunProbes | None,
) -> dict[str, Any]:
    """Start or resume a run in its locked work directory, and return the summary; everything is closed afterwards."""
    settings, lost = experiment.config, False
    with contextlib.ExitStack() as stack:
        stack.callback(run_dir.release)
        stack.callback(experiment.data.close)
        with multihost.errors_on_all():
            run_dir.acquire(experiment.data.fingerprint)
            if initialization:
                run_dir.write_json(INIT_FILE, initialization.to_json())
            run_dir.write_json(model_spec.FILE_NAME, ModelSpec.of_experiment(experiment).to_json())
        if run_dir.grown_from:
            console.print_growth(run_dir.grown_from, experiment)
        checkpoints = Checkpoints(
            run_dir.checkpoints,
            max_to_keep=settings.checkpoint.max_to_keep,
            best_metric=settings.checkpoint.best_metric,
        )
        stack.callback(lambda: None if lost else checkpoints.close())  # it would wait for a lost process
        board = TensorBoard(run_dir.path, settings.tensorboard and multihost.is_first_process())
        stack.callback(board.close)
        handler = preemption or stack.enter_context(PreemptionHandler())
        try:
            run = Run(experiment, run_dir, checkpoints, board, handler, began, initialization, keep_features, probes)
            return run.complete()
        except Exception as error:
            lost = distributed.lost_peer(error)
            raise


def check_same_config(flat: Mapping[str, Any]) -> None:
    """Raise UserError, in all processes, unless all have the same flat configuration, PER_HOST_KEYS aside."""
    values = {name: value for name, value in flat.items() if name not in PER_HOST_KEYS}
    if (other := multihost.first_different(values)) is not None:
        raise UserError(
            f"--config gives process {other} another configuration than process 0; bring the file, and what it "
            "imports, to the same state on all machines"
        )


def print_finished(figures: Published, summary: dict[str, Any], run_dir: Workdir) -> dict[str, Any]:
    """Print and return the summary of a finished run, compared with today's published figures."""
    print(f"{run_dir.path} holds a finished run of this configuration; nothing to do")
    summary = summary | published.compare(figures, summary)
    console.print_summary(summary, run_dir.path)
    return summary


class Run:
    """One experiment in one work directory: its state, and everything that changes while it trains.

    `step` counts the steps of `state`; `last_eval_step` is the last boundary at which everything due was done.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: Workdir,
        checkpoints: Checkpoints,
        board: TensorBoard,
        preemption: PreemptionHandler,
        began: float,
        initialization: Initialization | None = None,
        keep_features: bool = False,
        probes: RunProbes | None = None,
    ):
        """Restore the state from the latest checkpoint, or initialize it, from trained weights if there are any.

        With `keep_features` the head is trained on features that are computed once.
        """
        self.experiment, self.workdir, self.checkpoints, self.tensorboard = experiment, workdir, checkpoints, board
        self.preemption, self.began, self.probes = preemption, began, probes
        self.first_step_seconds: float | None = None
        self.abstract_state = experiment.abstract_state
        self.restored = Progress()
        restored = checkpoints.restore_latest(self.abstract_state)
        self.initialization = None if restored else initialization
        if restored:
            self.state, self.restored = restored[0], Progress.from_saved(restored[1])
        else:
            self.state = experiment.init_state(initial=initialization.arrays if initialization else None)
        variables = {"params": self.state.params, "batch_stats": self.state.batch_stats}
        self.features = FrozenFeatures(experiment, variables, self.stop_if_preempted) if keep_features else None
        self.step = self.resumed_at = int(self.state.step)
        self.last_eval_step = self.restored.last_eval_step
        self.early_stopping = dataclasses.replace(experiment.early_stopping)
        self.early_stopping.load_state_dict(self.restored.early_stopping)
        self.plateau = dataclasses.replace(experiment.reduce_on_plateau)
        self.plateau.load_state_dict(self.restored.reduce_on_plateau)
        self.timer = StepTimer(experiment.config.steps_per_call, self.restored.images, self.restored.seconds)
        self.bar = console.ProgressBar(experiment.total_steps, self.step, experiment.config.batch_size)
        workdir.rewind_metrics(self.resumed_at)
        board.resume_from(self.resumed_at)

    def complete(self) -> dict[str, Any]:
        """Train to the end, test the best checkpoint, write the summary and plot."""
        num_params = self.print_header()
        with self.bar:
            self.fit()
        self.checkpoints.wait()
        summary = self.test()
        summary |= published.compare(self.experiment.published, summary)
        summary |= environment.describe_run(
            self.experiment,
            self.progress(),
            self.step,
            num_params,
            self.timer.images_per_second,
            self.first_step_seconds,
        )
        self.tensorboard.close()
        self.workdir.write_json("summary.json", summary)
        if self.experiment.config.plots and jax.process_count() == 1:  # several processes plot after their end (main)
            self.plot()
        console.print_summary(summary, self.workdir.path)
        return summary

    def print_header(self) -> int:
        """Print the first screen; return the number of parameters."""
        experiment, params = self.experiment, self.state.params
        if not self.resumed_at:
            shown = params if jax.process_count() == 1 else self.abstract_state.params  # no process has them all
            overview = parameter_overview.get_parameter_overview(shown, include_stats=jax.process_count() == 1)
            self.workdir.write_text("parameters.txt", overview + "\n")
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        console.print_header(
            experiment,
            self.workdir.path,
            count,
            parameter_overview.get_parameter_overview(
                self.abstract_state.params, include_stats=False, max_lines=OVERVIEW_LINES
            ),
        )
        if self.initialization:
            console.print_initialization(experiment.config.init.weights, self.initialization.summary())
        if self.resumed_at:
            print(f"resuming from the checkpoint of step {self.resumed_at:,}", flush=True)
        return count

    def fit(self) -> None:
        """Train from the state's step to the last one."""
        self.stop_if_preempted()  # compiling may take longer than there is time
        experiment = self.features.experiment if self.features else self.experiment
        loader, batch_size = experiment.data.train, experiment.config.batch_size
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        compile_steps = compile_head_steps if self.features else compile_train_steps
        train_steps = compile_steps(experiment.task, loader.batch, experiment.mesh, shardings)
        evaluate = Evaluator(experiment, experiment.data.val) if experiment.data.val else None
        if self.step != self.last_eval_step and experiment.next_boundary(self.step - 1) == self.step:
            self.log_eval_and_save(optax.global_norm(self.state.params), evaluate)
        while self.step < experiment.total_steps and not self.early_stopping.should_stop:
            boundary = experiment.next_boundary(self.step)  # the next step at which to log, evaluate or save
            began = time.perf_counter()
            with self.saving_if_unreadable():
                inputs, available = loader.step_inputs(self.step)
            n = multihost.broadcast_from_first(self.timer.steps_per_call(min(boundary - self.step, available)))
            with self.timer.measure(n, n * batch_size, began):
                self.state, finite, param_norm = train_steps(self.state, inputs, n, self.plateau.lr_scale)
                all_finite = bool(finite) and bool(np.isfinite(param_norm))  # waits for the device
            self.step = int(self.state.step)  # fewer than n later if a step was not finite
            self.print_first_step()
            if not all_finite:
                raise self.not_finite(f"at step {self.step:,} the loss, its gradient or the parameters")
            self.bar.advance(self.step, self.timer)
            if self.step == boundary:
                self.log_eval_and_save(param_norm, evaluate)
            self.stop_if_preempted(save=True)

    def print_first_step(self) -> None:
        """Print, once, the time from the start of the process to the end of the first step."""
        if self.first_step_seconds is None:
            self.first_step_seconds = round(time.monotonic() - self.began, 1)
            self.bar.write(f"first step after {self.first_step_seconds:.1f} s")

    def log_eval_and_save(self, param_norm: jax.Array, evaluate: Evaluator | None) -> None:
        """Do what is due at a boundary: write metrics, validate, save."""
        experiment, step = self.experiment, self.step
        validating = step == experiment.total_steps or step % experiment.eval_every == 0
        with self.saving_if_unreadable():
            val_metrics = evaluate(self.state) if evaluate and validating else None
        if val_metrics and not np.isfinite(val_metrics["loss"]):
            raise self.not_finite(f"at step {step:,} the validation loss")
        probed = []
        if val_metrics and self.probes:
            variables, number = self.state.eval_variables, experiment.num_validations(step)
            probed = self.probes.at_validation(number, variables, self.features, self.stop_if_preempted)
        if validating or step % experiment.log_every == 0:
            self.log(param_norm, (val_metrics or {}) | {result.metric: result.accuracy for result in probed})
        if val_metrics:
            self.early_stopping.observe(val_metrics["loss"])
            self.plateau.observe(val_metrics["loss"])
            if self.early_stopping.should_stop:
                self.bar.write(
                    f"no lower validation loss in {self.early_stopping.waited} validations; ending at step {step:,}"
                )
        self.last_eval_step = step
        if validating or step % experiment.save_every == 0:
            self.save(val_metrics)

    def log(self, param_norm: jax.Array, val_metrics: Mapping[str, float]) -> None:
        """Write a row of metrics to metrics.jsonl, TensorBoard and the screen, and reset the training metrics."""
        experiment, step, train_metrics = self.experiment, self.step, self.state.metrics.compute()
        row = {"step": step, "epoch": round(step / experiment.data.train.steps_per_epoch, 4)}
        row |= {f"train_{k}": shortest_float(train_metrics[k]) for k in ("loss", "accuracy", "top5_accuracy")}
        row |= {f"val_{k}": v for k, v in val_metrics.items()}
        row["learning_rate"] = shortest_float(experiment.schedule(step - 1) * self.plateau.lr_scale)
        row |= {"grad_norm": shortest_float(train_metrics["grad_norm"]), "param_norm": shortest_float(param_norm)}
        if rate := self.timer.rate_since_last():
            row["images_per_second"] = round(rate, 1)
        self.workdir.append_metrics(row)
        self.tensorboard.write(step, {k: v for k, v in row.items() if k not in ("step", "epoch")})
        self.bar.metrics(row)
        self.state = self.state.replace(metrics=sharding.init_replicated(TrainMetrics.empty, experiment.mesh))

    def stop_if_preempted(self, save: bool = False) -> None:
        """Raise Preempted if any process got a signal, so that all stop at the same step; first save, if asked to."""
        if number := multihost.max_over_processes(self.preemption.signal_number or 0):
            if save:
                self.save()
                self.checkpoints.wait()
            raise Preempted(number, self.step)

    @contextlib.contextmanager
    def saving_if_unreadable(self) -> Iterator[None]:
        """Save the state if images cannot be read, so that the same command resumes once they can.

        Not in one of several processes, where the others, which a save needs, do not know of the error.
        """
        try:
            yield
        except RunError:
            self.workdir.allow_repair()
            if jax.process_count() == 1 and self.step and self.step != self.checkpoints.latest_step():
                self.save()
                self.checkpoints.wait()
            raise

    def save(self, val_metrics: Mapping[str, float] | None = None) -> None:
        """Save state and progress in the background; a collective of all processes."""
        self.checkpoints.save(self.step, self.state, dataclasses.asdict(self.progress()), val_metrics)

    def progress(self) -> Progress:
        """Return how far the run is; a collective of all processes."""
        return Progress(
            wall_seconds=self.restored.wall_seconds + time.monotonic() - self.began,
            images=self.timer.images,
            seconds=self.timer.seconds,
            early_stopping=self.early_stopping.state_dict(),
            reduce_on_plateau=self.plateau.state_dict(),
            last_eval_step=self.last_eval_step,
            skipped=sorted(multihost.union(set(self.restored.skipped) | self.experiment.data.unreadable)),
        )

    def test(self) -> dict[str, Any]:
        """Return the metrics of the best checkpoint: on validation, and on the test split, evaluated only now."""
        best, self.state, val_metrics = self.checkpoints.restore_best(self.abstract_state)
        metrics: dict[str, Any] = {}
        if loader := self.experiment.data.test:
            if self.features:
                evaluate = Evaluator(self.features.experiment, self.features.loader("test"))
            else:
                evaluate = Evaluator(self.experiment, loader)
            figures = evaluate(self.state, after_call=self.stop_if_preempted)  # everything is saved
            metrics = {f"test_{name}": value for name, value in figures.items()}
            if not np.isfinite(metrics["test_loss"]):
                raise self.not_finite(f"with the checkpoint of step {best:,} the test loss")
        results = self.probe()
        if self.probes:
            metrics |= {f"{self.probes.role}_{result.metric}": result.accuracy for result in results}
        if metrics:
            self.workdir.append_metrics({"step": self.step, "best_step": best} | metrics)
            self.tensorboard.write(self.step, metrics)
        val_figures = {f"val_{name}": value for name, value in val_metrics.items()}
        probes = {"probes": [dataclasses.asdict(result) for result in results]} if results else {}
        return {"best_step": best} | val_figures | metrics | probes

    def probe(self) -> list[ProbeResult]:
        """Return the results of the probes of the state, the best checkpoint; none if there are no probes."""
        if self.probes is None:
            return []
        results, notes = self.probes.at_end(self.state.eval_variables, self.features, self.stop_if_preempted)
        for note in notes:
            print(note, file=sys.stderr)
        return results

    def not_finite(self, what: str) -> RunError:
        """Return the error for a value that stopped being finite."""
        kept = self.checkpoints.latest_step()
        last = "nothing was saved yet" if kept is None else f"the checkpoint of step {kept:,} is untouched"
        return RunError(
            f"{what} stopped being finite; {last}. A lower learning rate, clipping or a longer warm-up may help"
        )

    def plot(self) -> None:
        """Plot the best checkpoint. Plotting errors are reported but never fail the run."""

        def report(text: str) -> None:
            print(text, file=sys.stderr)

        try:
            from patchnets.plots import run

            stopped = lambda: self.preemption.signal_number is not None
            run.draw(self.experiment, self.state, self.workdir.path, report, stopped)
        except Exception as error:
            report(f"the pictures could not be drawn: {first_line(error)}")
