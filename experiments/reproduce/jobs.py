"""The runs of a table's rows: what each is told, which are done, and carrying out the others."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiments.command import home
from experiments.tables.row import Row
from patchnets import config as config_lib
from patchnets import main, workdir
from patchnets.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-m", "patchnets.main")
POLL = 0.2  # seconds between two looks at running processes
GRACE = 120.0  # seconds that a run has to save what it trained, when all of them are to stop


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One row with one seed.

    Attributes:
      arguments: the command line after `python -m patchnets.main`, less the work directory.
      place: its work directory.
      digest: what `config_hash` of its summary has to be.
      changed: keys in which the command line makes another recipe of it.
    """

    row: Row
    seed: int
    arguments: tuple[str, ...]
    place: pathlib.Path
    digest: str
    changed: tuple[str, ...]

    @property
    def command(self) -> str:
        """What a person types to run it alone, where the data lie where they look for them."""
        return shlex.join(["python", "-m", "patchnets.main", *without_places(self.arguments)])

    @property
    def log(self) -> pathlib.Path:
        return self.place.with_name(self.place.name + ".log")

    def summary(self) -> dict[str, Any] | None:
        """That of the finished run, or None where there is none of this configuration."""
        try:
            found = json.loads((self.place / "summary.json").read_text())
        except (OSError, ValueError):
            return None
        return found if found.get("config_hash") == self.digest else None

    def last_words(self) -> str:
        """The last line that the run has put out, or its one-line error."""
        try:
            lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            return ""
        told = [line for line in lines if line.startswith("patchnets: ")]
        said = (told or lines or [""])[-1]
        return said.replace(f"{self.place.absolute().parents[1]}/", "").replace(f"{ROOT}/", "")


def job(row: Row, seed: int, folder: pathlib.Path, data: str | None, handed_on: Sequence[str]) -> Job:
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
        published = config_lib.flatten(main.parse(["reproduce", *own, *other])[0])
        config = main.parse(["reproduce", *arguments])[0]
    changed = config_lib.recipe_changes(published, config_lib.flatten(config))
    # A folder's path is no part of a configuration's digest: runs on other data have places of their own.
    apart = f"-on-{hashlib.sha256(data.encode()).hexdigest()[:8]}" if data is not None else ""
    place = folder / f"{row.id}{apart}" / f"seed-{seed}"
    return Job(row, seed, arguments, place, config_lib.digest(config), tuple(changed))


def data_option(told: str, option: str = "data") -> str:
    """The value of --data, or of another option, with a whole path. Raises UserError where it names no folder."""
    name, _, path = told.partition(":")
    if name != "folder":
        return told
    place = home(path)
    if not path or not place.is_dir():
        raise UserError(f"--{option}={told}: expected folder:PATH, where PATH is a folder with train/CLASS/ in it")
    return f"folder:{place.absolute()}"


def check_unmixed(jobs: Sequence[Job]) -> None:
    """Raises UserError where the place of one holds a run of another configuration."""
    for job in jobs:
        if not (job.place / "config.json").exists():
            continue
        there = config_lib.digest(config_lib.saved(workdir.read_json(job.place / "config.json")))
        if there != job.digest:
            raise UserError(
                f"--workdir={job.place.parents[1]}: {job.row.id} was run there with another configuration "
                f"({there}, not {job.digest}); give another --workdir"
            )


def without_places(arguments: Sequence[str]) -> list[str]:
    """A command line by which others get the same: without this machine's folders, and with the runs reported on."""
    kept = []
    for argument in arguments:
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
    """A process at work on a job, in one of the slots."""

    job: Job
    slot: int
    process: subprocess.Popen


class Stopping(Exception):
    """SIGINT, SIGTERM or SIGHUP came; `number` says which."""

    def __init__(self, number: int):
        self.number = number


def carry_out(
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
                    raise Stopping(came[0])
                while waiting and len(running) < parallel:
                    slot = min(set(range(parallel)) - {r.slot for r in running})
                    running.append(_start(waiting.pop(0), slot, gpus))
                time.sleep(POLL)
                for each in list(running):
                    status = each.process.poll()
                    if status is None:
                        show(each.job, "running", each.job.last_words())
                        continue
                    running.remove(each)
                    if status or each.job.summary() is None:
                        said = each.job.last_words().removeprefix("patchnets: ")
                        failures[each.job] = f"status {status}: {said}"[:300]
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
    job.place.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("wb") as sink:
        # In a session of its own: Ctrl-C reaches this program alone, which then tells each run once.
        process = subprocess.Popen(
            [*PROGRAM, *job.arguments, f"--workdir={job.place.absolute()}"],
            cwd=ROOT,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment() | ({"CUDA_VISIBLE_DEVICES": gpus[slot]} if gpus else {}),
            start_new_session=True,
        )
    return Running(job, slot, process)


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


def check_place(folder: pathlib.Path) -> None:
    """Raises UserError where `folder` is or lies in a file, or cannot be written to."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"--workdir={folder}: {place} is no folder that can be written to; give another --workdir")
