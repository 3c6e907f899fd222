"""Saving and restoring with orbax: the latest checkpoints, and the best one by a validation metric."""

import contextlib
import json
import logging
import math
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from patchnets.errors import RunError, UserError, first_line
from patchnets.parallel import multihost
from patchnets.step.train_state import TrainState

LOWER_IS_BETTER = ("loss",)


class Checkpoints:
    """The checkpoints of one work directory. Saving returns at once and is finished in the background.

    A checkpoint is written under another name and renamed when it is whole, so a process killed inside a save leaves
    the ones before as they were.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        max_to_keep: int = 2,
        best_metric: str = "accuracy",
        read_only: bool = False,
    ):
        """Open `directory`, where the latest `max_to_keep` checkpoints stay, and the best by a validation metric.

        `read_only` leaves the directory as it is, for a run may be writing there."""
        self.directory, self._read_only = directory.absolute(), read_only
        with multihost.errors_on_all():  # nobody looks before that
            if multihost.is_first_process():
                self._move_aside_unranked()
        sign = -1.0 if best_metric in LOWER_IS_BETTER else 1.0
        score = lambda metrics: sign * metrics[best_metric]
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(max_to_keep),
                checkpoint_managers.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        self._score = score
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=("state", "progress"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=score,
                cleanup_tmp_directories=not read_only,
                enable_async_checkpointing=True,
                read_only=read_only,
                create=not read_only,
            ),
        )

    def save(
        self, step: int, state: TrainState, progress: Mapping[str, Any], val_metrics: Mapping[str, float] | None
    ) -> None:
        """Saves `state` under `step`, with `progress` (anything JSON holds) beside it.

        `val_metrics` ranks it; without them it is only kept as long as it is among the latest. A step that is already
        saved is left alone.

        Raises:
          RunError: this save, or the one before it in the background, could not be written.
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(dict(progress)))
        with self._telling_failures():
            self._manager.save(step, args=items, metrics=None if val_metrics is None else dict(val_metrics))

    def wait(self) -> None:
        """Returns when everything is on disk. Raises RunError where something could not be written."""
        with self._telling_failures():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _telling_failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise many kinds for a full or lost disk
            raise RunError(f"a checkpoint could not be written to {self.directory}: {_reason(error)}") from error

    def close(self) -> None:
        with contextlib.suppress(Exception):  # what matters was raised by wait()
            self._manager.close()

    def restore_latest(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, and its progress; None where there are none.

        `like` holds the shape, dtype and sharding of every array (`jax.ShapeDtypeStruct`).

        One that cannot be read is named on the terminal and moved aside, to unreadable/ beside the others.

        Raises:
          RunError: there are checkpoints, and none can be read.
        """
        _silence_asyncio()
        steps = sorted(self._manager.all_steps(), reverse=True)
        broken: list[int] = []
        for step in steps:
            if restored := self._try_restore(step, like, broken):
                self._quarantine(broken)
                return restored
        if broken:
            raise self._none_readable()
        return None

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def restore_best(self, like: TrainState) -> tuple[int, TrainState, dict[str, float]]:
        """(step, state, validation metrics) of the checkpoint whose metrics are best, of the later one of two equals;
        the latest where none has metrics. One that cannot be read is named and moved aside, as by `restore_latest`.

        Raises:
          RunError: none can be read.
        """
        _silence_asyncio()
        ranked = [(step, dict(self._manager.metrics(step) or {})) for step in self._manager.all_steps()]
        ranked.sort(key=lambda row: (self._score(row[1]) if row[1] else -math.inf, row[0]), reverse=True)
        broken: list[int] = []
        for step, metrics in ranked:
            if restored := self._try_restore(step, like, broken):
                self._quarantine(broken)
                return step, restored[0], metrics
        raise self._none_readable()

    def restore_variables(self, like: Any, which: str | int, *, ema: bool) -> Any:
        """Return the variables by which the network of a checkpoint is evaluated.

        Args:
          like: shape, dtype and sharding of {"params", "batch_stats"}.
          which: "best" by validation, the latest of equal ones; "latest"; or a step.
          ema: whether they are the running mean that the checkpoint holds.

        Raises:
          UserError: there is no checkpoint of that step.
          RunError: there is none, or the one asked for cannot be read.
        """
        steps = self._manager.all_steps()
        if not steps:
            raise RunError(f"there is no checkpoint in {self.directory} yet")
        if which == "best":
            ranked = [(step, dict(self._manager.metrics(step) or {})) for step in steps]
            step = max(ranked, key=lambda row: (self._score(row[1]) if row[1] else -math.inf, row[0]))[0]
        else:
            step = max(steps) if which == "latest" else which
        if step not in steps:
            kept = ", ".join(f"{step:,}" for step in sorted(steps))
            raise UserError(f"there is no checkpoint of step {which} in {self.directory}; kept are those of {kept}")
        _silence_asyncio()
        item = {"ema": like} if ema else dict(like)
        restore = ocp.args.PyTreeRestore(
            item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(state=restore)).state
        except Exception as error:  # orbax and tensorstore raise many kinds for a broken file
            raise RunError(f"checkpoint {self.directory / str(step)} cannot be read: {_reason(error)}") from error
        return restored["ema"] if ema else restored

    def _try_restore(self, step: int, like: TrainState, broken: list[int]) -> tuple[TrainState, dict[str, Any]] | None:
        """A checkpoint; or, with a word on the terminal and its step added to `broken`, None if it cannot be read."""
        restored = None
        try:
            restored = self._restore(step, like)
        except Exception as error:  # orbax and tensorstore raise many kinds for a broken file
            print(f"checkpoint {self.directory / str(step)} cannot be read: {_reason(error)}", file=sys.stderr)
        if multihost.all_true(restored is not None):
            return restored
        broken.append(step)
        return None

    def _restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return restored.state, restored.progress

    def _move_aside_unranked(self) -> None:
        """Orbax reads the metrics of every checkpoint when it opens a directory, and opens none where one is broken."""
        steps = [int(path.name) for path in self.directory.glob("[0-9]*") if path.name.isdigit()]
        broken = []
        for step in steps:
            try:
                json.loads((self.directory / str(step) / "metrics" / "metrics").read_text())
            except FileNotFoundError:
                pass  # saved between two validations
            except ValueError as error:
                print(f"checkpoint {self.directory / str(step)} cannot be read: {_reason(error)}", file=sys.stderr)
                broken.append(step)
        if broken and len(broken) == len(steps):
            raise self._none_readable()
        self._move_aside(broken)

    def _none_readable(self) -> RunError:
        return RunError(f"no checkpoint in {self.directory} can be read; to start anew, give another --workdir")

    def _quarantine(self, steps: list[int]) -> None:
        if steps:
            if multihost.is_first_process():
                self._move_aside(steps)
            multihost.all_true(True)
            self._manager.reload()

    def _move_aside(self, steps: list[int]) -> None:
        """Move checkpoints to unreadable/, so that nothing is deleted and their steps can be saved again.

        Orbax's option todelete_subdir would do so with every checkpoint that is no longer kept.
        """
        if self._read_only:
            return
        aside = self.directory / "unreadable"
        for step in steps:
            aside.mkdir(exist_ok=True)
            target = aside / str(step)
            number = 1
            while target.exists():
                number += 1
                target = aside / f"{step}-{number}"
            (self.directory / str(step)).rename(target)
            print(f"going on without it; moved to {target}", file=sys.stderr)


def _silence_asyncio() -> None:
    """Keeps threads from printing a traceback for every array once one of a checkpoint could not be read.

    Orbax then closes its event loop under the reads of all the others. The failure itself is raised; these add nothing.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(args: Any) -> None:
        if "Event loop is closed" not in str(args.exc_value):
            before(args)

    if getattr(before, "__module__", "") != __name__:
        sys.unraisablehook = hook


def _reason(error: BaseException) -> str:
    """The operating system's reason where there is one, else the beginning of what was said."""
    text = first_line(error, limit=200)
    reason = re.search(r": ([^:\[\]]+) \[[^\]]*os_error_code", " ".join(str(error).split()))
    return reason[1].strip() if reason else text
