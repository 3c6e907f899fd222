"""The runs of a table's rows: their command lines, which are finished, and running the others."""

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
from patchnets.inference.warm_start import fields_of_weights
from patchnets.run import workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-m", "patchnets.main")
WEIGHTS = pathlib.Path("weights")  # the folder of the files that rows start from
POLL = 0.2  # seconds between polls of running processes
GRACE = 120.0  # seconds that a run has to save its state before it is killed


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One row with one seed.

    Attributes:
      arguments: the command line after `python -m patchnets.main`, without the work directory.
      workdir: the work directory.
      config_hash: the expected `config_hash` of the summary.
      changed: keys by which the command line changes the recipe.
      data: the data set used instead of the row's own, as in `job`.
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
        """The command that runs this job alone on any machine: paths replaced, the work directory below runs/."""
        *_, folder, row, seed = pathlib.Path(os.path.abspath(self.workdir)).parts
        arguments = [*without_paths(self.arguments), f"--workdir=runs/{folder}/{row}/{seed}"]
        return shlex.join(["python", "-m", "patchnets.main", *arguments])

    @property
    def name(self) -> str:
        """ "ROW/seed-N": the work directory without its parents."""
        return f"{self.workdir.parent.name}/{self.workdir.name}"

    @property
    def log(self) -> pathlib.Path:
        return self.workdir.with_name(self.workdir.name + ".log")

    def summary(self) -> dict[str, Any] | None:
        """Return the summary of the finished run; None if it is missing, invalid or of another configuration."""
        try:
            summary = json.loads((self.workdir / "summary.json").read_text())
        except (OSError, ValueError):
            return None
        return summary if workdirs.usable(summary) and summary["config_hash"] == self.config_hash else None

    def last_log_line(self, since: int = 0) -> str:
        """Return the last line of the log, or the one-line error; the run's output begins at byte `since`."""
        try:
            text = self.log.read_bytes()[since:].decode(errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("patchnets: ")]
        last = (errors or lines or [""])[-1]
        return last.replace(f"{self.workdir.absolute().parents[1]}/", "").replace(f"{ROOT}/", "")


def job(
    row: RunSpec,
    seed: int,
    folder: pathlib.Path,
    data: str | None,
    handed_on: Sequence[str],
    weights: pathlib.Path = WEIGHTS,
) -> Job:
    """Return the job of a row with a seed, on its own data set or on `data` (a name, or folder:PATH), from its file in
    the folder `weights` if it starts from one.

    Raises:
      UserError: the configuration is invalid.
    """
    if seeded := [argument for argument in handed_on if argument.startswith("--config.seed=")]:
        raise UserError(f"{seeded[0]}: each row runs with seeds 0 to N - 1; use --seeds=N")
    own = [f"--config={row.config}", f"--config.seed={seed}", *(f"--config.{k}={v}" for k, v in row.changes.items())]
    if start := row.weights_in(weights):
        own.append(f"--config.init.weights={start}")
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
    if fields := fields_of_weights(config_lib.flatten(config), directory):  # as the run itself completes it
        config.update_from_flattened_dict(fields)
    return Job(row, seed, arguments, directory, config_lib.config_hash(config), tuple(changed), data)


def _folder_of(row: RunSpec, folder: pathlib.Path, data: str | None) -> pathlib.Path:
    """Return the folder of a row. It depends on `data` because config_hash ignores the path of the images."""
    suffix = f"-on-{hashlib.sha256(data.encode()).hexdigest()[:8]}" if data is not None else ""
    return folder / f"{row.id}{suffix}"


def started_seeds(row: RunSpec, folder: pathlib.Path, data: str | None) -> list[int]:
    """Return the seeds for which `folder` has a run of the row, finished or not."""
    paths = (path for path in _folder_of(row, folder, data).glob("seed-*") if path.is_dir())
    return sorted(int(match[1]) for p in paths if (match := re.fullmatch(r"seed-(0|[1-9]\d{0,3})", p.name)))


def stored_hash(job: Job) -> str | None:
    """Return the config_hash of the run in the job's work directory; None if there is no run.

    Raises:
      UserError: its config.json cannot be read.
    """
    path = job.workdir / "config.json"
    if not path.exists():
        return None
    try:
        return config_lib.config_hash(config_lib.from_saved(workdir.read_json(path)))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); give another --workdir") from error


def check_unmixed(jobs: Sequence[Job]) -> None:
    """Raise UserError if the work directory of a job contains a run of another configuration."""
    for job in jobs:
        stored = stored_hash(job)
        if stored not in (None, job.config_hash):
            raise UserError(
                f"--workdir={job.workdir.parents[1]}: {job.row.id} was run there with another configuration "
                f"({stored}, not {job.config_hash}); give another --workdir"
            )


DROPPED = ("--workdir", "--weights", "--config.dataset.data_dir", "--config.dataset.cache_dir", "--report")


def without_paths(arguments: Sequence[str]) -> list[str]:
    """Make a command line portable: drop or replace this machine's paths, and drop --report."""
    kept = []
    for argument in join_values(arguments):
        option, _, value = argument.partition("=")
        if option in ("--data", "--dataset") and value.startswith("folder:"):
            kept.append(f"{option}=folder:PATH")
        elif option == "--config.dataset.path":
            kept.append(f"{option}=PATH")
        elif option == "--config.init.weights" and pathlib.Path(value).is_absolute():
            kept.append(f"{option}={WEIGHTS / pathlib.Path(value).name}")
        elif option not in DROPPED:
            kept.append(argument)
    return kept


@contextlib.contextmanager
def at_root() -> Iterator[None]:
    """Change to the folder that contains configs/ for the duration of the context."""
    before = pathlib.Path.cwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)


@dataclasses.dataclass
class Running:
    """A running process; `slot` is its index among the parallel ones, `began` the size of the log at its start."""

    job: Job
    slot: int
    process: subprocess.Popen
    began: int


class Interrupted(Exception):
    """Raised after SIGINT, SIGTERM or SIGHUP; `number` is the signal."""

    def __init__(self, number: int):
        self.number = number


def run_jobs(
    jobs: Sequence[Job],
    parallel: int,
    gpus: Sequence[str],
    show: Callable[[Job, str, str], None],
    failures: dict[Job, str],
) -> None:
    """Run the jobs, `parallel` at a time, each on one of the `gpus` if there are any.

    Calls `show(job, state, text)` with state "running" (repeatedly), "done" or "failed", and adds errors to `failures`.

    Raises:
      Interrupted: a signal arrived; running jobs were given time to save and have ended.
    """
    waiting = list(jobs)
    parallel = min(parallel, len(gpus)) if gpus else parallel
    running: list[Running] = []
    with _signals() as received:
        try:
            while waiting or running:
                if received:
                    raise Interrupted(received[0])
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    if workdirs.locked(job.workdir):
                        failures[job] = (
                            f"another process is running in {job.name}: wait for it or end it "
                            f"(pgrep -f {job.name} finds it), then run the same command again"
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
    """Yield a list to which terminating signals are appended instead of being handled."""
    received: list[int] = []
    handled = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = [signal.signal(number, lambda number, frame: received.append(number)) for number in handled]
    try:
        yield received
    finally:
        for number, handler in zip(handled, before):
            signal.signal(number, handler)


def environment() -> dict[str, str]:
    """Return an environment in which patchnets is imported from this tree."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": paths}


def _start(job: Job, slot: int, gpus: Sequence[str]) -> Running:
    job.workdir.parent.mkdir(parents=True, exist_ok=True)
    workdirs.move_damaged_aside(job.workdir)
    with job.log.open("ab") as sink:
        began = sink.seek(0, os.SEEK_END)
        # Its own session, so that Ctrl-C reaches only this program, which then signals each run once.
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
    """Send SIGTERM, wait until the processes have saved and ended, and kill those that have not."""
    for each in running:
        each.process.terminate()
    deadline = time.monotonic() + GRACE
    for each in running:
        try:
            each.process.wait(timeout=max(POLL, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.process.kill()
            each.process.wait()


def check_workdir(folder: pathlib.Path) -> None:
    """Raise UserError if `folder` cannot be created or written to."""
    parent = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"--workdir={folder}: {parent} is not a writable folder; give another --workdir")
