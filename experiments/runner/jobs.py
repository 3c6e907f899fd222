"""The runs of a table's rows: what each is told, which are done, and carrying out the others."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiments.runner import workdirs
from experiments.runner.cli import join_values
from experiments.runner.run_spec import RunSpec
from patchnets import config as config_lib
from patchnets.config import flags
from patchnets.errors import UserError, first_line
from patchnets.run import workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-m", "patchnets.main")
POLL = 0.2  # seconds between two looks at running processes
GRACE = 120.0  # seconds that a run has to save what it trained, when all of them are to stop


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One row with one seed.

    Attributes:
      arguments: the command line after `python -m patchnets.main`, less the work directory.
      workdir: its work directory.
      config_hash: what `config_hash` of its summary has to be.
      changed: keys in which the command line makes another recipe of it.
      data: what it is run on in place of the row's own data set, as in `job`.
    """

    row: RunSpec
    seed: int
    arguments: tuple[str, ...]
    workdir: pathlib.Path
    config_hash: str
    changed: tuple[str, ...]
    data: str | None = None

    @property
    def command(self) -> str:
        """What a person types to run it alone, where the data lie where they look for them: each run in a folder of its
        own below runs/, which by default is `place`."""
        *_, folder, row, seed = pathlib.Path(os.path.abspath(self.workdir)).parts
        arguments = [*without_paths(self.arguments), f"--workdir=runs/{folder}/{row}/{seed}"]
        return shlex.join(["python", "-m", "patchnets.main", *arguments])

    @property
    def name(self) -> str:
        """ "ROW/seed-N": its work directory, less where that lies on this machine."""
        return f"{self.workdir.parent.name}/{self.workdir.name}"

    @property
    def log(self) -> pathlib.Path:
        return self.workdir.with_name(self.workdir.name + ".log")

    def summary(self) -> dict[str, Any] | None:
        """That of the finished run, or None where there is none of this configuration that can be used."""
        try:
            summary = json.loads((self.workdir / "summary.json").read_text())
        except (OSError, ValueError):
            return None
        return summary if workdirs.usable(summary) and summary["config_hash"] == self.config_hash else None

    def last_log_line(self, since: int = 0) -> str:
        """The last line that the run has put out, or its one-line error; `since` is where in the log it began."""
        try:
            text = self.log.read_bytes()[since:].decode(errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("patchnets: ")]
        last = (errors or lines or [""])[-1]
        return last.replace(f"{self.workdir.absolute().parents[1]}/", "").replace(f"{ROOT}/", "")


def job(row: RunSpec, seed: int, folder: pathlib.Path, data: str | None, handed_on: Sequence[str]) -> Job:
    """A row with a seed, on its own data set or on `data`: the name of one, or folder:PATH.

    Raises:
      UserError: the configuration cannot be had so.
    """
    if seeded := [argument for argument in handed_on if argument.startswith("--config.seed=")]:
        raise UserError(f"{seeded[0]}: each row is run with the seeds from 0 on; give --seeds=N")
    own = [f"--config={row.config}", f"--config.seed={seed}", *(f"--config.{k}={v}" for k, v in row.changes.items())]
    other = []
    if data is not None:
        name, _, path = data.partition(":")
        other = [f"--config.dataset.{k}=None" for k in ("train_split", "val_split", "test_split")]
        other += [f"--config.dataset.name={name}", *([f"--config.dataset.path={path}"] if path else [])]
    arguments = (*own, *other, *handed_on)
    with at_root():
        published = config_lib.flatten(flags.parse_flags(["reproduce", *own, *other])[0])
        config = flags.parse_flags(["reproduce", *arguments])[0]
    changed = config_lib.recipe_diff(published, config_lib.flatten(config))
    directory = _folder_of(row, folder, data) / f"seed-{seed}"
    return Job(row, seed, arguments, directory, config_lib.config_hash(config), tuple(changed), data)


def _folder_of(row: RunSpec, folder: pathlib.Path, data: str | None) -> pathlib.Path:
    """A folder's path is no part of a configuration's digest: runs on other data have places of their own."""
    apart = f"-on-{hashlib.sha256(data.encode()).hexdigest()[:8]}" if data is not None else ""
    return folder / f"{row.id}{apart}"


def started_seeds(row: RunSpec, folder: pathlib.Path, data: str | None) -> list[int]:
    """The seeds of the runs of a row that lie in `folder`, finished or not."""
    paths = (path for path in _folder_of(row, folder, data).glob("seed-*") if path.is_dir())
    return sorted(int(match[1]) for p in paths if (match := re.fullmatch(r"seed-(0|[1-9]\d{0,3})", p.name)))


def stored_hash(job: Job) -> str | None:
    """That of the configuration with which a run was begun in its place; None where none was.

    Raises UserError where it cannot be read.
    """
    path = job.workdir / "config.json"
    if not path.exists():
        return None
    try:
        return config_lib.config_hash(config_lib.from_saved(workdir.read_json(path)))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); give another --workdir") from error


def check_unmixed(jobs: Sequence[Job]) -> None:
    """Raises UserError where the place of one holds a run of another configuration."""
    for job in jobs:
        there = stored_hash(job)
        if there not in (None, job.config_hash):
            raise UserError(
                f"--workdir={job.workdir.parents[1]}: {job.row.id} was run there with another configuration "
                f"({there}, not {job.config_hash}); give another --workdir"
            )


def without_paths(arguments: Sequence[str]) -> list[str]:
    """A command line by which others get the same: without this machine's folders, and with the runs reported on."""
    kept = []
    for argument in join_values(arguments):
        option, _, value = argument.partition("=")
        if option in ("--data", "--dataset") and value.startswith("folder:"):
            kept.append(f"{option}=folder:PATH")
        elif option == "--config.dataset.path":
            kept.append(f"{option}=PATH")
        elif option not in ("--workdir", "--config.dataset.data_dir", "--config.dataset.cache_dir", "--report"):
            kept.append(argument)
    return kept


@contextlib.contextmanager
def at_root() -> Iterator[None]:
    """In the folder that holds configs/, from wherever the program was started."""
    before = pathlib.Path.cwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)


@dataclasses.dataclass
class Running:
    """A process at work on a job, in one of the slots; its log begins where those of earlier processes end."""

    job: Job
    slot: int
    process: subprocess.Popen
    began: int


class Interrupted(Exception):
    """SIGINT, SIGTERM or SIGHUP came; `number` says which."""

    def __init__(self, number: int):
        self.number = number


def run_jobs(
    jobs: Sequence[Job],
    parallel: int,
    gpus: Sequence[str],
    show: Callable[[Job, str, str], None],
    failures: dict[Job, str],
) -> None:
    """Runs the jobs, `parallel` at a time, each on one of the `gpus` alone where there are any.

    `show` is told of (job, state, last words), where state is "running", "done" or "failed"; again and again while a
    job runs. What goes wrong is added to `failures`.

    Raises:
      Stopping: a signal came; what ran has saved its state and ended.
    """
    waiting = list(jobs)
    parallel = min(parallel, len(gpus)) if gpus else parallel
    running: list[Running] = []
    with _signals() as came:
        try:
            while waiting or running:
                if came:
                    raise Interrupted(came[0])
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    if workdirs.locked(job.workdir):
                        failures[job] = (
                            f"another process is at work in {job.name}: wait for it, or end it "
                            f"(pgrep -f {job.name} tells which), and give the same command again"
                        )
                        show(job, "failed", failures[job])
                        continue
                    slot = min(set(range(parallel)) - {r.slot for r in running})
                    running.append(_start(job, slot, gpus))
                time.sleep(POLL)
                for each in list(running):
                    status = each.process.poll()
                    if status is None:
                        show(each.job, "running", each.job.last_log_line(each.began))
                        continue
                    running.remove(each)
                    if status or each.job.summary() is None:
                        text = each.job.last_log_line(each.began).removeprefix("patchnets: ")
                        failures[each.job] = f"status {status}: {text}"[:300]
                    show(each.job, "failed" if each.job in failures else "done", failures.get(each.job, ""))
        finally:
            _end(running)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list to which signals that end a program are added, in place of what they do otherwise."""
    came: list[int] = []
    handled = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = [signal.signal(number, lambda number, frame: came.append(number)) for number in handled]
    try:
        yield came
    finally:
        for number, handler in zip(handled, before):
            signal.signal(number, handler)


def environment() -> dict[str, str]:
    """That of a process which imports patchnets from here, wherever it is at work."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": paths}


def _start(job: Job, slot: int, gpus: Sequence[str]) -> Running:
    job.workdir.parent.mkdir(parents=True, exist_ok=True)
    workdirs.move_damaged_aside(job.workdir)
    with job.log.open("ab") as sink:
        began = sink.seek(0, os.SEEK_END)
        # In a session of its own: Ctrl-C reaches this program alone, which then tells each run once.
        process = subprocess.Popen(
            [*PROGRAM, *job.arguments, f"--workdir={job.workdir.absolute()}"],
            cwd=ROOT,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment() | ({"CUDA_VISIBLE_DEVICES": gpus[slot]} if gpus else {}),
            start_new_session=True,
        )
    return Running(job, slot, process, began)


def _end(running: Sequence[Running]) -> None:
    """Asks processes to save and end, and waits for that; ends those that do not."""
    for each in running:
        each.process.terminate()
    until = time.monotonic() + GRACE
    for each in running:
        try:
            each.process.wait(timeout=max(POLL, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.process.kill()
            each.process.wait()


def check_workdir(folder: pathlib.Path) -> None:
    """Raises UserError where `folder` is or lies in a file, or cannot be written to."""
    parent = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"--workdir={folder}: {parent} is no folder that can be written to; give another --workdir")
