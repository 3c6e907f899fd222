"""A run from its configuration to its final figures: build, restore, (train, evaluate, save)*, test, summary."""

import contextlib
import dataclasses
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from clu import parameter_overview

from patchnets import __version__
from patchnets import config as config_lib
from patchnets.config import published
from patchnets.config.published import Published
from patchnets.data.loader import Loader
from patchnets.errors import Preempted, RunError, UserError, first_line
from patchnets.experiment import Experiment, build_experiment
from patchnets.parallel import distributed, multihost, sharding
from patchnets.parallel.preemption import PreemptionHandler
from patchnets.run import console
from patchnets.run.checkpoints import Checkpoints
from patchnets.run.step_timer import StepTimer
from patchnets.run.tensorboard import TensorBoard
from patchnets.run.workdir import Workdir
from patchnets.step.metrics import EvalMetrics, TrainMetrics
from patchnets.step.multi_step import compile_eval_steps, compile_train_steps

OVERVIEW_LINES = 20
PER_HOST_KEYS = {"dataset.path", "dataset.data_dir", "dataset.cache_dir", "dataset.num_workers"}  # may differ


def train(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike[str],
    began: float | None = None,
    preemption: PreemptionHandler | None = None,
) -> dict[str, Any]:
    """Trains what `config` describes, or goes on where an earlier run in `workdir` was cut, and returns the summary.

    `began` is the time.monotonic() from which the run's seconds are counted, where that is before the call;
    `preemption` notes signals, where that began before it too.

    Raises:
      UserError: the configuration, the data or the work directory cannot be used; nothing was written.
      RunError: the run had to stop; what was saved stays as it is.
      Preempted: a signal asked for it; the state was saved.
    """
    began = time.monotonic() if began is None else began
    flat = config_lib.flatten(config)
    check_same_config(flat)
    run_dir = Workdir(workdir, flat, writes=multihost.is_first_process())
    with multihost.errors_on_all():
        summary = run_dir.load_summary()
    if multihost.broadcast_from_first(summary is not None):
        return _already(Published(**config.published.to_dict()), summary, run_dir) if summary else {}
    with multihost.errors_on_all():
        experiment = build_experiment(config)
    run_dir.check_shared()
    with multihost.errors_on_all():
        run_dir.acquire(experiment.data.fingerprint)
    checkpoints = Checkpoints(
        run_dir.checkpoints, max_to_keep=config.checkpoint.max_to_keep, best_metric=config.checkpoint.best_metric
    )
    board = TensorBoard(run_dir.path, config.tensorboard and multihost.is_first_process())
    lost = False
    try:
        with contextlib.nullcontext(preemption) if preemption else PreemptionHandler() as handler:
            return Run(experiment, run_dir, checkpoints, board, handler, began).complete()
    except Exception as error:
        lost = distributed.lost_peer(error)
        raise
    finally:
        experiment.data.close()
        board.close()
        if not lost:  # it would wait for the process that is gone
            checkpoints.close()
        run_dir.release()


def check_same_config(flat: Mapping[str, Any]) -> None:
    """Raises UserError, in all processes, unless all have the same flat configuration, PER_HOST_KEYS aside."""
    values = {name: value for name, value in flat.items() if name not in PER_HOST_KEYS}
    if (other := multihost.first_different(values)) is not None:
        raise UserError(
            f"--config gives process {other} another configuration than process 0; bring the file, and what it "
            "imports, to the same state on all machines"
        )


def _already(figures: Published, summary: dict[str, Any], run_dir: Workdir) -> dict[str, Any]:
    """Tells what came out of a finished run."""
    print(f"{run_dir.path} holds a finished run of this configuration; nothing to do")
    summary = summary | published.compare(figures, summary)  # which may have changed since
    console.print_summary(summary, run_dir.path)
    return summary


@dataclasses.dataclass
class Progress:
    """What a continued run needs besides the state, to go on as the one that was cut would have.

    Attributes:
      wall_seconds: since the start, over all the processes that worked on this run.
      images, seconds: trained on, and what that took; the first call of a process, which compiles, is not counted.
      plateau: of `Plateau.state_dict`.
      last_eval_step: the last boundary at which all was done that is due.
      skipped: records that could not be read.
    """

    wall_seconds: float = 0.0
    images: int = 0
    seconds: float = 0.0
    plateau: dict[str, Any] = dataclasses.field(default_factory=dict)
    last_eval_step: int = 0
    skipped: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def from_saved(cls, values: Mapping[str, Any]) -> "Progress":
        """Return what `dataclasses.asdict` saved. Raises RunError where another version of patchnets did."""
        names = {field.name for field in dataclasses.fields(cls)}
        if names != set(values):
            different = ", ".join(sorted(names ^ set(values)))
            raise RunError(
                f"the checkpoint was written by another version of patchnets ({different}); use that one, or give "
                "another --workdir"
            )
        return cls(**values)


class Run:
    """An experiment being carried out in a work directory."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: Workdir,
        checkpoints: Checkpoints,
        board: TensorBoard,
        preemption: PreemptionHandler,
        began: float,
    ):
        self.experiment, self.workdir, self.checkpoints, self.tensorboard = experiment, workdir, checkpoints, board
        self.preemption, self.began = preemption, began
        self.first_step_seconds: float | None = None
        self.state = experiment.init_state()
        self.abstract_state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.state
        )
        self.shardings = jax.tree.map(lambda x: x.sharding, self.state)
        restored = checkpoints.restore_latest(self.abstract_state)
        self.restored = Progress()
        if restored:
            self.state, self.restored = restored[0], Progress.from_saved(restored[1])
        self.step = self.resumed_at = int(self.state.step)
        self.last_eval_step = self.restored.last_eval_step
        self.plateau = dataclasses.replace(experiment.plateau)
        self.plateau.load_state_dict(self.restored.plateau)
        self.timer = StepTimer(experiment.config.steps_per_call, self.restored.images, self.restored.seconds)
        workdir.rewind_metrics(self.resumed_at)

    def complete(self) -> dict[str, Any]:
        """Trains to the end, tests the best checkpoint, and writes the summary."""
        params = self.print_header()
        self.fit()
        summary = self.test()
        summary |= published.compare(self.experiment.published, summary) | self.environment(params)
        self.tensorboard.close()
        self.workdir.write_json("summary.json", summary)
        if self.experiment.config.plots and jax.process_count() == 1:  # several draw once they have ended (main)
            self.draw()
        console.print_summary(summary, self.workdir.path)
        return summary

    def print_header(self) -> int:
        """Shows the first screen; returns the number of parameters."""
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
        if self.resumed_at:
            print(f"going on from the checkpoint of step {self.resumed_at:,}", flush=True)
        return count

    def fit(self) -> None:
        """Trains from the state's step to the last one."""
        if number := self.stop_signal():  # meanwhile; compiling may take longer than there is time
            raise Preempted(number, self.step)
        experiment, loader, batch_size = self.experiment, self.experiment.data.train, self.experiment.config.batch_size
        train_steps = compile_train_steps(experiment.task, loader.batch, experiment.mesh, self.shardings)
        evaluate = self.evaluator(experiment.data.val)
        bar = console.ProgressBar(experiment.total_steps, self.step, batch_size)
        try:
            if self.step != self.last_eval_step and experiment.next_boundary(self.step - 1) == self.step:
                self.log_eval_and_save(optax.global_norm(self.state.params), evaluate, bar)
            while self.step < experiment.total_steps and not self.plateau.should_stop:
                boundary = experiment.next_boundary(self.step)  # the next step at which to log, evaluate or save
                began = time.perf_counter()
                with self.saving_if_unreadable():
                    inputs, available = loader.step_inputs(self.step)
                n = multihost.broadcast_from_first(self.timer.steps_per_call(min(boundary - self.step, available)))
                with self.timer.measure(n, n * batch_size, began):
                    self.state, finite, param_norm = train_steps(self.state, inputs, n, self.plateau.lr_scale)
                    healthy = bool(finite) and bool(np.isfinite(param_norm))  # waits for the device
                self.step = int(self.state.step)  # fewer than n later, where a step was not finite
                self.report_first_step(bar)
                if not healthy:
                    raise self.not_finite(f"at step {self.step:,} the loss, its gradient or the parameters")
                bar.advance(n, self.timer, experiment.total_steps - self.step)
                if self.step == boundary:
                    self.log_eval_and_save(param_norm, evaluate, bar)
                if number := self.stop_signal():
                    self.save()
                    self.checkpoints.wait()
                    raise Preempted(number, self.step)
        finally:
            bar.close()
        self.checkpoints.wait()

    def report_first_step(self, bar: console.ProgressBar) -> None:
        """Says, once, how long it took from the start of the process to the end of the first step."""
        if self.first_step_seconds is None:
            self.first_step_seconds = round(time.monotonic() - self.began, 1)
            bar.write(f"first step after {self.first_step_seconds:.1f} s")

    def log_eval_and_save(
        self,
        param_norm: jax.Array,
        evaluate: Callable[[], dict[str, float]] | None,
        bar: console.ProgressBar,
    ) -> None:
        """What is due at a stop: writing figures, validating, saving."""
        experiment, step = self.experiment, self.step
        ending = step == experiment.total_steps
        validating = ending or step % experiment.eval_every == 0
        with self.saving_if_unreadable():
            val_metrics = evaluate() if evaluate and validating else None
        if val_metrics and not np.isfinite(val_metrics["loss"]):
            raise self.not_finite(f"at step {step:,} the validation loss")
        if validating or step % experiment.log_every == 0:
            row = {"step": step, "epoch": round(step / experiment.data.train.steps_per_epoch, 4)}
            measured = self.state.metrics.compute()
            row |= {f"train_{k}": shortest_float(measured[k]) for k in ("loss", "accuracy", "top5_accuracy")}
            row |= {f"val_{k}": v for k, v in (val_metrics or {}).items()}
            row["learning_rate"] = shortest_float(experiment.schedule(step - 1) * self.plateau.lr_scale)
            row |= {"grad_norm": shortest_float(measured["grad_norm"]), "param_norm": shortest_float(param_norm)}
            if rate := self.timer.rate_since_last():
                row["images_per_second"] = round(rate, 1)
            self.workdir.append_metrics(row)
            self.tensorboard.write(step, {k: v for k, v in row.items() if k not in ("step", "epoch")})
            bar.metrics(row)
            self.state = self.state.replace(metrics=sharding.init_replicated(TrainMetrics.empty, experiment.mesh))
        if val_metrics:
            self.plateau.observe(val_metrics["loss"])
            if self.plateau.should_stop:
                bar.write(
                    f"no lower validation loss in {self.plateau.stop_waited} validations; ending at step {step:,}"
                )
        self.last_eval_step = step
        if validating or step % experiment.save_every == 0:
            self.save(val_metrics)

    def stop_signal(self) -> int:
        """The number of the signal that any process got, or 0: all of them stop at the same step."""
        return multihost.max_over_processes(self.preemption.signal_number or 0)

    @contextlib.contextmanager
    def saving_if_unreadable(self) -> Iterator[None]:
        """Saves what was trained where images cannot be read: the same command goes on once they can. Not where only
        one of several processes knows, for saving takes all of them."""
        try:
            yield
        except RunError:
            if jax.process_count() == 1 and self.step and self.step != self.checkpoints.latest_step():
                self.save()
                self.checkpoints.wait()
            raise

    def save(self, val_metrics: dict[str, float] | None = None) -> None:
        """Saves state and progress, in the background; all processes take part."""
        self.checkpoints.save(self.step, self.state, dataclasses.asdict(self.progress()), val_metrics)

    def progress(self) -> Progress:
        """How far the run is; all processes take part."""
        return Progress(
            wall_seconds=self.wall_seconds,
            images=self.timer.images,
            seconds=self.timer.seconds,
            plateau=self.plateau.state_dict(),
            last_eval_step=self.last_eval_step,
            skipped=sorted(multihost.union(set(self.restored.skipped) | self.experiment.data.unreadable)),
        )

    def evaluator(self, loader: Loader | None, may_stop: bool = False) -> Callable[[], dict[str, float]] | None:
        """A function that evaluates the current state on a split, every example once; None without a split.

        Where `may_stop`, because all is saved, it raises Preempted on a signal.
        """
        if loader is None:
            return None
        eval_steps = compile_eval_steps(self.experiment.task, loader.batch, self.experiment.mesh, self.shardings)
        timer = StepTimer(self.experiment.config.steps_per_call)

        def evaluate() -> dict[str, float]:
            metrics, first = sharding.init_replicated(EvalMetrics.empty, self.experiment.mesh), 0
            while first < loader.steps_per_epoch:
                inputs, available = loader.step_inputs(first)
                count = multihost.broadcast_from_first(
                    timer.steps_per_call(min(available, loader.steps_per_epoch - first))
                )
                with timer.measure(count, count * loader.batch_size):
                    metrics = jax.block_until_ready(eval_steps(self.state, metrics, inputs, first, count))
                first += count
                if may_stop and (number := self.stop_signal()):
                    raise Preempted(number, self.step)
            return {name: shortest_float(value) for name, value in metrics.compute().items()}

        return evaluate

    def test(self) -> dict[str, Any]:
        """The figures of the best checkpoint: its validation metrics, and the test split's, looked at only now."""
        best, self.state, val_metrics = self.checkpoints.restore_best(self.abstract_state)
        figures: dict[str, Any] = {"best_step": best}
        figures |= {f"val_{name}": value for name, value in val_metrics.items()}
        if evaluate := self.evaluator(self.experiment.data.test, may_stop=True):
            test_metrics = {f"test_{k}": v for k, v in evaluate().items()}
            if not np.isfinite(test_metrics["test_loss"]):
                raise self.not_finite(f"with the checkpoint of step {best:,} the test loss")
            self.workdir.append_metrics({"step": self.step, "best_step": best} | test_metrics)
            self.tensorboard.write(self.step, test_metrics)
            figures |= test_metrics
        return figures

    def environment(self, params: int) -> dict[str, Any]:
        """The rest of the summary: how long, how fast, on what."""
        experiment, progress = self.experiment, self.progress()
        return {
            "steps": self.step,
            "epochs": round(self.step / experiment.data.train.steps_per_epoch, 4),
            "params": params,
            "skipped_records": len(progress.skipped),
            "images_per_second": self.timer.images_per_second and round(self.timer.images_per_second, 1),
            "first_step_seconds": self.first_step_seconds,
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

    @property
    def wall_seconds(self) -> float:
        """Since the start, over all the processes that worked on this run."""
        return self.restored.wall_seconds + time.monotonic() - self.began

    def not_finite(self, what: str) -> RunError:
        kept = self.checkpoints.latest_step()
        last = "nothing was saved yet" if kept is None else f"the checkpoint of step {kept:,} is untouched"
        return RunError(
            f"{what} stopped being finite; {last}. A lower learning rate, clipping or a longer warm-up may help"
        )

    def draw(self) -> None:
        """Pictures of the best checkpoint; failing to draw is told and changes nothing."""

        def say(text: str) -> None:
            print(text, file=sys.stderr)

        try:
            from patchnets.plots import run

            run.draw(
                self.experiment, self.state, self.workdir.path, say, lambda: self.preemption.signal_number is not None
            )
        except Exception as error:
            say(f"the pictures could not be drawn: {first_line(error)}")


def shortest_float(value: Any) -> float:
    """A float32 as the shortest decimal that stands for it: 0.93, not 0.9300000071525574."""
    return float(str(np.float32(value)))
