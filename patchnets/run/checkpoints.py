"""Save and restore checkpoints with orbax: the latest ones, and the best one by a validation metric."""

import contextlib
import functools
import itertools
import json
import logging
import math
import pathlib
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from patchnets.errors import RunError, UserError, first_line
from patchnets.parallel import multihost
from patchnets.run import checksums
from patchnets.step.train_state import TrainState

LOWER_IS_BETTER = ("loss",)
ATTEMPTS = 5  # to read a checkpoint while a run replaces checkpoints
DELETED_WITHIN = 1.0  # seconds


class Checkpoints:
    """Checkpoints of one work directory. Saving returns at once and finishes in the background.

    A checkpoint is written under another name and renamed when complete, so that a process killed while saving leaves
    the earlier ones intact. Checksums, written before it is renamed, are verified before it is restored.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        max_to_keep: int = 2,
        best_metric: str = "accuracy",
        read_only: bool = False,
    ):
        """Open `directory`, which keeps the latest `max_to_keep` checkpoints and the best by `best_metric`.

        `read_only` changes nothing in the directory, because a run may be writing to it."""
        self.directory, self._read_only, self._max_to_keep = directory.absolute(), read_only, max_to_keep
        self._best_metric = best_metric
        self._saving: int | None = None  # the step of the latest save
        self._left_out: set[int] = set()  # steps with damaged metrics, where they cannot be moved aside
        with multihost.errors_on_all():  # before any process opens the directory
            if multihost.is_first_process():
                self._set_aside_unranked()
        self._manager = self._open_manager()

    def _score(self, metrics: Mapping[str, float]) -> float:
        """Return by what checkpoints are ranked: the larger the better."""
        return (-1.0 if self._best_metric in LOWER_IS_BETTER else 1.0) * metrics[self._best_metric]

    def _open_manager(self) -> ocp.CheckpointManager:
        read_only = self._read_only
        best = checkpoint_managers.BestN(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False)
        policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(self._max_to_keep), best])
        return ocp.CheckpointManager(
            self.directory,
            item_names=("state", "progress"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=self._score,
                cleanup_tmp_directories=not read_only,
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
                read_only=read_only,
                lightweight_initialize=read_only,  # reads no metrics: `_rank` does, of those that can be read
                create=not read_only,
            ),
        )

    def save(
        self, step: int, state: TrainState, progress: Mapping[str, Any], val_metrics: Mapping[str, float] | None
    ) -> None:
        """Save `state` and `progress` (JSON) under `step`.

        `val_metrics` ranks it; without them it is kept only while it is among the latest. A step that is already saved
        is not saved again.

        Raises:
          RunError: this save, or the previous one in the background, could not be written.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        self._saving = step
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(dict(progress)))
        with self._raise_run_error():
            self._manager.save(step, args=items, metrics=None if val_metrics is None else dict(val_metrics))

    def _write_checksums(self) -> None:
        """Write the checksums of the checkpoint that process 0 is about to rename, in the thread that saves it."""
        for path in self.directory.glob(f"{self._saving}{ocp.utils.TMP_DIR_SUFFIX}*"):
            checksums.write_checksums(path)

    def wait(self) -> None:
        """Wait until all saves are on disk. Raise RunError if one could not be written."""
        with self._raise_run_error():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _raise_run_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise many kinds for a full or lost disk
            raise RunError(f"a checkpoint could not be written to {self.directory}: {_reason(error)}") from error

    def close(self) -> None:
        with contextlib.suppress(Exception):  # wait() has raised the errors of saves
            self._manager.close()

    def restore_latest(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Return the newest checkpoint that can be read, and its progress; None if there are none.

        `like` has the shape, dtype and sharding of every array (`jax.ShapeDtypeStruct`). Checkpoints that cannot be
        read are reported and moved to unreadable/.

        Raises:
          RunError: there are checkpoints, but none can be read.
        """
        _silence_asyncio()
        steps = sorted(self._steps(), reverse=True)
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
        """Return (step, state, validation metrics) of the best checkpoint that can be read: the later of equal ones, or
        the latest if none has metrics. Others are reported and moved, as by `restore_latest`.

        Raises:
          RunError: none can be read.
        """
        _silence_asyncio()
        broken: list[int] = []
        for step, metrics in self._rank(self._steps()):
            if restored := self._try_restore(step, like, broken):
                self._quarantine(broken)
                return step, restored[0], metrics
        raise self._none_readable()

    def _rank(self, steps: Iterable[int]) -> list[tuple[int, dict[str, float]]]:
        """Return (step, validation metrics), best first; of equal ones the later first, those without metrics last."""
        ranked = [(step, dict(self._manager.metrics(step) or {})) for step in steps]
        return sorted(ranked, key=lambda row: (self._score(row[1]) if row[1] else -math.inf, row[0]), reverse=True)

    def restore_variables(self, like: Any, which: str | int, *, ema: bool) -> tuple[int, Any]:
        """Return (step, the variables with which to evaluate the network) of a checkpoint.

        If a run deletes the checkpoint meanwhile, choose again among those that there are then.

        Args:
          like: shape, dtype and sharding of {"params", "batch_stats"}.
          which: "best" by `best_metric` (the latest of equal ones), "latest", or a step.
          ema: whether to return the running mean of the parameters.

        Raises:
          UserError: there is no checkpoint of that step.
          RunError: there are no checkpoints, or this one cannot be read.
        """
        _silence_asyncio()
        item = {"ema": like} if ema else dict(like)
        restore = ocp.args.PyTreeRestore(
            item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        for attempt in itertools.count(1):
            step: int | None = None
            try:
                step = self._choose(which)
                checksums.verify_checksums(self.directory / str(step))
                restored = self._manager.restore(step, args=ocp.args.Composite(state=restore)).state
                return step, restored["ema"] if ema else restored
            except (UserError, RunError):
                raise
            except Exception as error:  # orbax and tensorstore raise many kinds for a broken or missing file
                if attempt == ATTEMPTS or (step is not None and not self._is_deleted(step)):
                    path = self.directory / str(which if step is None else step)
                    others = sorted(set(self._steps()) - {step})
                    advice = f"; there are also those of steps {', '.join(map(str, others))}" if others else ""
                    raise RunError(f"checkpoint {path} cannot be read: {_reason(error)}{advice}") from error
            with contextlib.suppress(ValueError, OSError):  # another was deleted since it was listed
                self._reload()
        raise AssertionError

    def _choose(self, which: str | int) -> int:
        """Return the step of the best or the latest checkpoint, or a step that is kept."""
        steps = self._steps()
        if not steps:
            raise RunError(f"there is no checkpoint in {self.directory} yet")
        if which in ("best", "latest"):
            return self._rank(steps)[0][0] if which == "best" else max(steps)
        if which not in steps:
            kept = ", ".join(f"{step:,}" for step in sorted(steps))
            raise UserError(f"there is no checkpoint of step {which} in {self.directory}; kept are those of {kept}")
        return int(which)

    def _is_deleted(self, step: int) -> bool:
        """Return whether the folder of a checkpoint is gone, or soon is: files go one by one."""
        deadline = time.monotonic() + DELETED_WITHIN
        while (self.directory / str(step)).exists():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _try_restore(self, step: int, like: TrainState, broken: list[int]) -> tuple[TrainState, dict[str, Any]] | None:
        """Restore a step, or print why it cannot be read, add it to `broken` and return None."""
        share = slice(jax.process_index(), None, jax.process_count())
        verify = functools.partial(checksums.verify_checksums, self.directory / str(step), share)
        restored = None
        for read in (verify, functools.partial(self._restore, step, like)):
            readable = True
            try:
                restored = read()
            except Exception as error:  # orbax and tensorstore raise many kinds for a broken file
                print(f"checkpoint {self.directory / str(step)} cannot be read: {_reason(error)}", file=sys.stderr)
                readable = False
            if not multihost.all_true(readable):
                broken.append(step)
                return None
        return restored

    def _restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return restored.state, restored.progress

    def _steps(self) -> list[int]:
        return [step for step in self._manager.all_steps() if step not in self._left_out]

    def _reload(self) -> None:
        """List the checkpoints again, as they are by now."""
        if self._read_only:  # else orbax would read all metrics
            self._set_aside_unranked()
            self._manager = self._open_manager()
        else:
            self._manager.reload()

    def _set_aside_unranked(self) -> None:
        """Move checkpoints with damaged metrics aside: orbax cannot open a directory that has one, and another could
        pass for the best. If nothing may be changed, leave them out, and say so.

        Raises:
          RunError: there are checkpoints, all of them such.
        """
        steps = [int(path.name) for path in self.directory.glob("[0-9]*") if path.name.isdigit()]
        broken = []
        for step in steps:
            path = self.directory / str(step)
            try:
                checksums.verify_checksums(path, name=checksums.METRICS)
                float(json.loads((path / checksums.METRICS).read_text())[self._best_metric])
            except FileNotFoundError:
                pass  # saved between two validations
            except (ValueError, TypeError, KeyError) as error:
                broken.append(step)
                if step not in self._left_out:
                    left_out = "; it is left out" if self._read_only else ""
                    print(f"checkpoint {path} cannot be read: {_reason(error)}{left_out}", file=sys.stderr)
        if broken and len(broken) == len(steps):
            raise self._none_readable()
        self._left_out = set(broken) if self._read_only else set()
        self._move_aside(broken)

    def _none_readable(self) -> RunError:
        return RunError(f"no checkpoint in {self.directory} can be read; to start over, use another --workdir")

    def _quarantine(self, steps: list[int]) -> None:
        if steps:
            if multihost.is_first_process():
                self._move_aside(steps)
            multihost.all_true(True)
            self._reload()

    def _move_aside(self, steps: list[int]) -> None:
        """Move checkpoints to unreadable/: none is deleted, and their steps can be saved again.

        Orbax's option todelete_subdir would also move every checkpoint that is no longer kept.
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
            print(f"skipped and moved to {target}", file=sys.stderr)


def _silence_asyncio() -> None:
    """Silence tracebacks for every other array after one array of a checkpoint could not be read.

    Orbax then closes its event loop while the others are being read. The first error itself is raised.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(args: Any) -> None:
        if "Event loop is closed" not in str(args.exc_value):
            before(args)

    if getattr(before, "__module__", "") != __name__:
        sys.unraisablehook = hook


def _reason(error: BaseException) -> str:
    """Return the operating system's reason, if any, or else the beginning of the message."""
    text = first_line(error, limit=200)
    reason = re.search(r": ([^:\[\]]+) \[[^\]]*os_error_code", " ".join(str(error).split()))
    return reason[1].strip() if reason else text
