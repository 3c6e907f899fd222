"""The work directory of a run: its lock, its configuration, and its metrics.

It holds config.json (the configuration), data.json (which examples), metrics.jsonl (one object per line), summary.json
(the final metrics), checkpoints/, plots/, parameters.txt and TensorBoard events, and is self-contained.
"""

import contextlib
import errno
import itertools
import json
import math
import os
import pathlib
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

import jax

from patchnets import config as config_lib
from patchnets.errors import UserError
from patchnets.parallel import multihost
from patchnets.runtime.files import lock_file, refuse_url, write_atomically

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)  # Lustre, NFS
LENGTHS = ("total_epochs", "total_steps")  # keys by which a run may grow
SHOWS_SECONDS = 10.0  # within which a file written by one machine must be visible on the others


class Workdir:
    """The folder of one run. Nothing is written before `acquire`, nor without `writes`: one process of a run writes."""

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any], writes: bool = True):
        """`config` is the configuration that identifies the run, flat: {"optimizer.name": "adamw", ...}.

        Raise UserError if `path` is a URL."""
        refuse_url(path, "--workdir=")
        self.writes = writes
        self.path = pathlib.Path(path).expanduser()
        self._config = dict(config)
        self._lock: IO[str] | None = None
        self.grown_from: str | None = None  # the run's former length, if this configuration asks for a longer one

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    def load_summary(self) -> dict[str, Any] | None:
        """Return the summary if the run with this configuration is finished, else None.

        Raises:
          UserError: the folder belongs to a run with another configuration, is in use, or cannot be written.
        """
        if not self.writes:
            return None
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir={self.path} is a file; give a folder or a new path")
        parent = next(parent for parent in (self.path, *self.path.absolute().parents) if parent.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError(f"--workdir={self.path}: {parent} cannot be written to; give another --workdir")
        self._compare_configuration()
        if (self.path / ".lock").exists():
            self._take_lock()
            self.release()
        if self.grown_from:
            return None
        try:
            summary = json.loads((self.path / "summary.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return summary if _is_summary(summary) else None  # a damaged one is written again

    def acquire(self, data: Mapping[str, Any]) -> None:
        """Create the folder and lock it until `release` or the end of the process.

        `data` identifies the examples of the run; it is written the first time and compared afterwards.

        Raises:
          UserError: another process holds the lock, or the folder belongs to another configuration or other data.
          OSError: the folder cannot be written.
        """
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self._compare_configuration()
        stored = self._read_json("data.json")
        if stored is None:
            self.write_json("data.json", data)
        elif (changed := changed_data(stored, data)) == ["level_bits"]:
            raise UserError(
                f"{self.path} is of a version that made 8 bits of images of more, and they keep 16 now; give another "
                "--workdir, or continue with that version"
            )
        elif changed:
            raise UserError(
                f"the data have changed since {self.path} was created ({', '.join(changed)} differ from its data.json)"
                "; give another --workdir, or restore the data"
            )
        elif missing := {name: data[name] for name in data if name not in stored}:
            self.write_json("data.json", {**stored, **missing})
        if self.grown_from and (self.path / "summary.json").exists():
            (self.path / "summary.json").rename(self._unused_name("summary", ".json"))
        if self.grown_from or not (self.path / "config.json").exists():
            self.write_json("config.json", config_lib.unflatten(self._config))

    def allow_repair(self) -> None:
        """Let the next process record the contents of files again: an unreadable one may be repaired or removed."""
        stored = self._read_json("data.json")
        if self.writes and stored is not None and stored.pop("records_crc32", None) is not None:
            self.write_json("data.json", stored)

    def check_shared(self) -> None:
        """Raise UserError in all processes unless all of them see the same folder. Leaves the folder unchanged."""
        if jax.process_count() == 1:
            return
        token = multihost.broadcast_from_first(secrets.randbelow(2**31))
        with contextlib.ExitStack() as stack:
            with multihost.errors_on_all():  # no process looks before the file exists: file systems cache absence
                stack.enter_context(self.probe_file(token))
            other = multihost.first_false(self.probe_visible(token))
            if other is not None:
                raise UserError(
                    f"--workdir={self.path} is not the same folder in process {other}, which does not see the files of "
                    "process 0; give a folder on a file system that all machines share"
                )

    @contextlib.contextmanager
    def probe_file(self, token: int) -> Iterator[None]:
        """Keep a file in the folder meanwhile, for `probe_visible` in other processes. On an error, also remove the
        folders created for it."""
        if not self.writes:
            yield
            return
        created = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / f".run-{token}"
        file.touch()
        try:
            yield
            created = []
        finally:
            file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                for path in created:
                    path.rmdir()

    def probe_visible(self, token: int, seconds: float = SHOWS_SECONDS) -> bool:
        """Return whether the `probe_file` of another process appears in the folder within `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError):
                if f".run-{token}" in os.listdir(self.path):  # shared file systems cache lookups, but not listings
                    return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)

    def _compare_configuration(self) -> None:
        stored = self._read_json("config.json")
        if stored is None:
            return
        flat = config_lib.with_defaults(config_lib.flatten(stored))
        changed = config_lib.diff(flat, self._config)
        if not changed:
            return
        for key in LENGTHS:
            if (
                len(changed) == 1
                and changed[0].startswith(f"{key}: ")
                and flat.get(key, math.inf) < self._config.get(key, 0)
            ):
                self.grown_from = f"{flat[key]:g} {key.removeprefix('total_')}"
                return
        raise UserError(
            f"{self.path} belongs to a run with another configuration ({'; '.join(changed)}); give another --workdir. "
            "Only config.total_epochs or total_steps may change, and only grow; to go on from its weights, add "
            f"--config.init.weights={self.path}"
        )

    def _read_json(self, name: str) -> dict[str, Any] | None:
        return read_json(self.path / name) if (self.path / name).exists() else None

    def _take_lock(self) -> None:
        try:
            self._lock = lock_file(self.path / ".lock", wait=False)
        except BlockingIOError as error:
            raise UserError(
                f"another process is running in {self.path}; wait for it, or give another --workdir"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(f"{self.path}: this file system has no locks; start no second run there", file=sys.stderr)

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a file atomically."""
        self.write_text(name, json.dumps(_without_none(content), indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        if self.writes:
            write_atomically(self.path / name, text)

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines of metrics.jsonl after `step`, which a resumed run writes again, and truncated lines.

        A run that starts at step 0, because its checkpoints are gone or there were none yet, keeps the lines of before
        in another file, and says so.
        """
        if not self.writes:
            return
        try:
            lines = (self.path / "metrics.jsonl").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return
        rows = _parse_rows(lines)
        if step == 0 and rows:
            before = self._unused_name("metrics", ".jsonl")
            (self.path / "metrics.jsonl").rename(before)
            last = max(row.get("step", 0) for _, row in rows)
            print(
                f"{self.path} has metrics up to step {last:,} but no checkpoint; starting at step 0, and keeping these "
                f"metrics in {before.name}",
                file=sys.stderr,
            )
            return
        at_end = ("test_loss", "best_step")  # of what was measured after the last step
        kept = [line for line, row in rows if row.get("step", math.inf) <= step and row.keys().isdisjoint(at_end)]
        self.write_text("metrics.jsonl", "".join(f"{line}\n" for line in kept))

    def _unused_name(self, stem: str, suffix: str) -> pathlib.Path:
        """Return the first of stem-1, stem-2, ... that does not exist yet."""
        return next(path for i in itertools.count(1) if not (path := self.path / f"{stem}-{i}{suffix}").exists())

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        if not self.writes:
            return
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def changed_data(stored: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """Return the keys in which data.json and a data set differ; both loaders, and older versions, lack some.

    Without `value_ranges`, images of more than 8 bits were scaled by another range; without `level_bits`, to 8 bits.
    """
    changed = [name for name in data if name in stored and data[name] != stored[name]]
    return changed + [name for name in ("value_ranges", "level_bits") if (name in data) != (name in stored)]


def _is_summary(content: Any) -> bool:
    """Return whether the content of a summary.json has the numbers of a finished run."""
    if not isinstance(content, dict):
        return False
    names = {"best_step", "steps", "epochs", "wall_seconds"}
    names |= {name for name in content if name.startswith(("val_", "test_"))}
    return all(isinstance(content.get(name), int | float) for name in names)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON file of a work directory. Raises UserError if it cannot be read, or is no JSON object."""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__} and no object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); give another --workdir") from error
    return content


def _parse_rows(lines: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return (line, its object) of all lines that hold a row of metrics."""
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step", 0), int | float):
                rows.append((line, row))
    return rows


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the rows of a work directory's metrics.jsonl; damaged lines are counted on stderr and left out.

    Raises:
      UserError: there is no such file, or it cannot be read.
    """
    try:
        lines = (path / "metrics.jsonl").read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} is not a work directory: it has no metrics.jsonl") from error
    except OSError as error:
        raise UserError(f"{path / 'metrics.jsonl'} cannot be read ({error})") from error
    rows = [row for _, row in _parse_rows(lines)]
    if damaged := len(lines) - len(rows):
        print(f"{path / 'metrics.jsonl'}: left out {damaged:,} damaged of {len(lines):,} lines", file=sys.stderr)
    return rows


def _without_none(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in content.items()
        if value is not None
    }
