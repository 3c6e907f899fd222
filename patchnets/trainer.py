"""A run from its configuration to its final figures: build, restore, (train, evaluate, save)*, test, summary."""

import contextlib
import dataclasses
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from clu import parameter_overview

from patchnets import __version__, claims, console, models, sharding
from patchnets import config as config_lib
from patchnets.checkpoints import Checkpoints
from patchnets.errors import Preempted, RunError, UserError, one_line
from patchnets.feeds import Feed
from patchnets.metrics import EvalMetrics, TrainMetrics
from patchnets.pace import Pace
from patchnets.parallel import distributed, multihost
from patchnets.parallel.preemption import PreemptionHandler
from patchnets.plan import Plan, make_plan
from patchnets.steps import compile_eval_steps, compile_train_steps
from patchnets.tensorboard import TensorBoard
from patchnets.workdir import Workdir

OVERVIEW_LINES = 20
PER_HOST_KEYS = {"dataset.path", "dataset.data_dir", "dataset.cache_dir", "dataset.workers"}  # may differ


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
    check_same_config(config)
    place = Workdir(workdir, config, writes=multihost.is_first_process())
    with multihost.errors_on_all():
        summary = place.finished()
    if multihost.broadcast_from_first(summary is not None):
        return _already(config, summary, place) if summary else {}
    with multihost.errors_on_all():
        plan = make_plan(config)
    place.check_shared()
    with multihost.errors_on_all():
        place.claim(plan.data.identity)
    checkpoints = Checkpoints(place.checkpoints, config.checkpoint)
    board = TensorBoard(place.path, config.tensorboard and multihost.is_first_process())
    lost = False
    try:
        with contextlib.nullcontext(preemption) if preemption else PreemptionHandler() as handler:
            return Run(plan, place, checkpoints, board, handler, began).complete()
    except Exception as error:
        lost = distributed.lost_peer(error)
        raise
    finally:
        plan.data.close()
        board.close()
        if not lost:  # it would wait for the process that is gone
            checkpoints.close()
        place.release()


def check_same_config(config: ml_collections.ConfigDict) -> None:
    """Raises UserError, in all processes, unless all have the same configuration, PER_HOST_KEYS aside."""
    values = {name: value for name, value in config_lib.flatten(config).items() if name not in PER_HOST_KEYS}
    if (other := multihost.first_different(values)) is not None:
        raise UserError(
            f"--config gives process {other} another configuration than process 0; bring the file, and what it "
            "imports, to the same state on all machines"
        )


def _already(config: ml_collections.ConfigDict, summary: dict[str, Any], place: Workdir) -> dict[str, Any]:
    """Tells what came out of a finished run."""
    print(f"{place.path} holds a finished run of this configuration; nothing to do")
    summary = summary | claims.compared(config, summary)  # which may have changed since
    console.conclude(summary, place.path)
    return summary


class Run:
    """A plan being carried out in a work directory."""

    def __init__(
        self,
        plan: Plan,
        place: Workdir,
        checkpoints: Checkpoints,
        board: TensorBoard,
        preemption: PreemptionHandler,
        began: float,
    ):
        self.plan, self.place, self.checkpoints, self.board = plan, place, checkpoints, board
        self.preemption, self.began = preemption, began
        self.first_step_seconds: float | None = None
        self.state = plan.initial_state()
        self.like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.state)
        self.where = jax.tree.map(lambda x: x.sharding, self.state)
        restored = checkpoints.restore_latest(self.like)
        progress: dict[str, Any] = {}
        if restored:
            self.state, progress = restored
        self.step = self.resumed_at = int(self.state.step)
        self.earlier_seconds = progress.get("wall_seconds", 0.0)
        self.patience = dataclasses.replace(plan.patience)
        self.patience.resume(progress.get("patience", {}))
        self.looked_at = progress.get("looked_at", self.step)  # the last stop of which all was done
        self.unreadable = set(progress.get("unreadable", ()))  # records that earlier processes skipped
        self.pace = Pace(plan.config.steps_per_dispatch, progress.get("images", 0), progress.get("seconds", 0.0))
        place.rewind_metrics(self.resumed_at)

    def complete(self) -> dict[str, Any]:
        """Trains to the end, tests the best checkpoint, and writes the summary."""
        params = self.introduce()
        self.fit()
        summary = self.test()
        summary |= claims.compared(self.plan.config, summary) | self.circumstances(params)
        self.board.close()  # which imports, in its thread, what drawing imports too
        self.place.write_json("summary.json", summary)
        if self.plan.config.plots and jax.process_count() == 1:  # several draw once they have ended (main)
            self.draw()
        console.conclude(summary, self.place.path)
        return summary

    def introduce(self) -> int:
        """Shows the first screen; returns the number of parameters."""
        plan, params = self.plan, self.state.params
        if not self.resumed_at:
            told = params if jax.process_count() == 1 else self.like.params  # no process has them all
            overview = parameter_overview.get_parameter_overview(told, include_stats=jax.process_count() == 1)
            self.place.write_text("parameters.txt", overview + "\n")
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        console.introduce(
            plan.config,
            workdir=self.place.path,
            data=plan.data,
            params=count,
            overview=parameter_overview.get_parameter_overview(
                self.like.params, include_stats=False, max_lines=OVERVIEW_LINES
            ),
            devices=console.devices(plan.mesh.size),
            total_steps=plan.total_steps,
            eval_every=plan.eval_every,
            model_fields=models.settings(plan.config.model),
        )
        if self.resumed_at:
            print(f"going on from the checkpoint of step {self.resumed_at:,}", flush=True)
        return count

    def fit(self) -> None:
        """Trains from the state's step to the last one."""
        if number := self.asked_to_stop():  # meanwhile; compiling may take longer than there is time
            raise Preempted(number, self.step)
        plan = self.plan
        train_steps = compile_train_steps(plan.task, plan.data.train.batch, plan.mesh, self.where)
        evaluate = self.evaluator(plan.data.val)
        batch_size = plan.config.batch_size
        progress = console.Progress(plan.total_steps, self.step, batch_size)
        try:
            if self.step != self.looked_at and plan.next_stop(self.step - 1) == self.step:
                self.look(optax.global_norm(self.state.params), evaluate, progress)
            while self.step < plan.total_steps and not self.patience.over:
                until, asked = plan.next_stop(self.step), time.perf_counter()
                with self.saving_if_unreadable():
                    operands, serves = plan.data.train.operands(self.step)
                count = multihost.broadcast_from_first(self.pace.steps(min(until - self.step, serves)))
                with self.pace.measure(count, count * batch_size, asked):
                    self.state, finite, param_norm = train_steps(self.state, operands, count, self.patience.scale)
                    healthy = bool(finite) and bool(np.isfinite(param_norm))
                self.step = int(self.state.step)
                if self.first_step_seconds is None:
                    self.first_step_seconds = round(time.monotonic() - self.began, 1)
                    progress.say(f"first step after {self.first_step_seconds:.1f} s")
                if not healthy:
                    raise self.not_finite(f"at step {self.step:,} the loss, its gradient or the parameters")
                progress.advance(count, self.pace, plan.total_steps - self.step)
                if self.step == until:
                    self.look(param_norm, evaluate, progress)
                if number := self.asked_to_stop():
                    self.save()
                    self.checkpoints.wait()
                    raise Preempted(number, self.step)
        finally:
            progress.close()
        self.checkpoints.wait()

    def look(
        self,
        param_norm: jax.Array,
        evaluate: Callable[[], dict[str, float]] | None,
        progress: console.Progress,
    ) -> None:
        """What is due at a stop: writing figures, validating, saving."""
        plan, step = self.plan, self.step
        ending = step == plan.total_steps
        validating = ending or step % plan.eval_every == 0
        with self.saving_if_unreadable():
            val_metrics = evaluate() if evaluate and validating else None
        if val_metrics and not np.isfinite(val_metrics["loss"]):
            raise self.not_finite(f"at step {step:,} the validation loss")
        if validating or step % plan.log_every == 0:
            row = {"step": step, "epoch": round(step / plan.data.train.steps_per_epoch, 4)}
            measured = self.state.metrics.compute()
            row |= {f"train_{k}": decimal(measured[k]) for k in ("loss", "accuracy", "top5_accuracy")}
            row |= {f"val_{k}": v for k, v in (val_metrics or {}).items()}
            row["learning_rate"] = decimal(plan.schedule(step - 1) * self.patience.scale)
            row |= {"grad_norm": decimal(measured["grad_norm"]), "param_norm": decimal(param_norm)}
            if rate := self.pace.lap():
                row["images_per_second"] = round(rate, 1)
            self.place.append_metrics(row)
            self.board.write(step, {k: v for k, v in row.items() if k not in ("step", "epoch")})
            progress.metrics(row)
            self.state = self.state.replace(metrics=sharding.on_mesh(TrainMetrics.empty, plan.mesh))
        if val_metrics:
            self.patience.observe(val_metrics["loss"])
            if self.patience.over:
                progress.say(
                    f"no lower validation loss in {self.patience.stop_waited} validations; ending at step {step:,}"
                )
        self.looked_at = step
        if validating or step % (plan.config.checkpoint.every_steps or plan.total_steps) == 0:
            self.save(val_metrics)

    def asked_to_stop(self) -> int:
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
        progress: dict[str, Any] = {
            "wall_seconds": self.wall_seconds,
            "images": self.pace.images,
            "seconds": self.pace.seconds,
            "patience": self.patience.seen(),
            "looked_at": self.looked_at,
            "unreadable": sorted(multihost.union(self.unreadable | self.plan.data.unreadable)),
        }
        self.checkpoints.save(self.step, self.state, progress, val_metrics)

    def evaluator(self, feed: Feed | None, may_stop: bool = False) -> Callable[[], dict[str, float]] | None:
        """A function that evaluates the current state on a split, every example once; None without a split.

        Where `may_stop`, because all is saved, it raises Preempted on a signal.
        """
        if feed is None:
            return None
        eval_steps = compile_eval_steps(self.plan.task, feed.batch, self.plan.mesh, self.where)
        pace = Pace(self.plan.config.steps_per_dispatch)

        def evaluate() -> dict[str, float]:
            metrics, first = sharding.on_mesh(EvalMetrics.empty, self.plan.mesh), 0
            while first < feed.steps_per_epoch:
                operands, serves = feed.operands(first)
                count = multihost.broadcast_from_first(pace.steps(min(serves, feed.steps_per_epoch - first)))
                with pace.measure(count, count * feed.batch_size):
                    metrics = jax.block_until_ready(eval_steps(self.state, metrics, operands, first, count))
                first += count
                if may_stop and (number := self.asked_to_stop()):
                    raise Preempted(number, self.step)
            return {name: decimal(value) for name, value in metrics.compute().items()}

        return evaluate

    def test(self) -> dict[str, Any]:
        """The figures of the best checkpoint: its validation metrics, and the test split's, looked at only now."""
        best, self.state, val_metrics = self.checkpoints.restore_best(self.like)
        found: dict[str, Any] = {"best_step": best}
        found |= {f"val_{name}": value for name, value in val_metrics.items()}
        if evaluate := self.evaluator(self.plan.data.test, may_stop=True):
            test_metrics = {f"test_{k}": v for k, v in evaluate().items()}
            if not np.isfinite(test_metrics["test_loss"]):
                raise self.not_finite(f"with the checkpoint of step {best:,} the test loss")
            self.place.append_metrics({"step": self.step, "best_step": best} | test_metrics)
            self.board.write(self.step, test_metrics)
            found |= test_metrics
        return found

    def circumstances(self, params: int) -> dict[str, Any]:
        """The rest of the summary: how long, how fast, on what."""
        plan = self.plan
        return {
            "steps": self.step,
            "epochs": round(self.step / plan.data.train.steps_per_epoch, 4),
            "params": params,
            "skipped_records": len(multihost.union(self.unreadable | plan.data.unreadable)),
            "images_per_second": self.pace.images_per_second and round(self.pace.images_per_second, 1),
            "first_step_seconds": self.first_step_seconds,
            "wall_seconds": round(self.wall_seconds, 1),
            "device": console.devices(plan.mesh.size) + f", host with {os.cpu_count()} cores",
            "versions": {
                "patchnets": __version__,
                "python": platform.python_version(),
                **{module.__name__: module.__version__ for module in (jax, optax, np)},
            },
            "config_hash": config_lib.digest(plan.config),
            "dataset": plan.data.name,
            "splits": plan.data.specs,
        }

    @property
    def wall_seconds(self) -> float:
        """Since the start, over all the processes that worked on this run."""
        return self.earlier_seconds + time.monotonic() - self.began

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

            run.draw(self.plan, self.state, self.place.path, say, lambda: self.preemption.signal_number is not None)
        except Exception as error:
            say(f"the pictures could not be drawn: {one_line(error)}")


def decimal(value: Any) -> float:
    """A float32 as the shortest decimal that stands for it: 0.93, not 0.9300000071525574."""
    return float(str(np.float32(value)))
