"""Measure the accuracy that a network reaches within a wall-time limit.

    python -m experiments.time_to_accuracy --config=configs/convmixer_cifar10.py:sprint-{epochs} --seconds=60,120,300
    --out=DIR
    python -m experiments.time_to_accuracy --config=configs/mixer_digits.py --seconds=20

Every run is a process `python -m patchnets.main`, timed from outside, with imports, images, compilation, training, the
last validation (if there is a validation split), test and summary. A pilot with an empty compilation cache comes first,
and with --compile=before a second one with a warm cache. Their speed determines the number of steps with which a run
completes its schedule in 95 % of the limit. Later limits use the speed of the run before.

The test split selects nothing. Exit status: 0; 1 if a run failed or exceeded its limit (see the table); 2 for an
invalid command line or configuration.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.time_to_accuracy_report import Row, markdown, write
from patchnets.config import flags
from patchnets.errors import RunError, UserError
from patchnets.runtime.cli import ArgumentParser, out_folder, positive_float, positive_int, run_cli

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = (sys.executable, "-m", "patchnets.main")
SHARE = 0.95  # of the limit, the planned length of a run
LEAST_PILOT = 10
STARTED_TRAINING = "first step after"  # printed by patchnets.main after the first step
POLL = 0.05
LENGTH = ("total_steps", "total_epochs", "eval_every_steps", "eval_every_epochs")
# Only training, one validation and the test.
LEAN = {"tensorboard": "False", "plots": "False", "log_every_steps": "None", "checkpoint.save_interval_steps": "None"}
# Pilots are too short for a warm-up, cooldown or steps of the learning rate.
FLAT = {"schedule.name": "constant"} | {
    f"schedule.{part}_{unit}": "None" for part in ("warmup", "cooldown", "step_every") for unit in ("steps", "epochs")
}


@dataclasses.dataclass(frozen=True)
class Options:
    config: str
    limits: tuple[float, ...]
    handed_on: tuple[str, ...] = ()
    compiled_before: bool = True
    pilot: int = 100
    out: pathlib.Path | None = None

    def named(self, epochs: int) -> str:
        """Return the configuration for a run of about `epochs` epochs."""
        return self.config.replace("{epochs}", str(epochs))

    def command(self, steps: int, epochs: int, workdir: pathlib.Path, keys: Mapping[str, str] = LEAN) -> list[str]:
        """Return the arguments of patchnets.main for a run of `steps` steps with one validation at its end."""
        keys = dict(keys) | {"total_steps": str(steps), "eval_every_steps": str(steps)}
        own = [f"--config.{name}={value}" for name, value in keys.items()]
        return [f"--config={self.named(epochs)}", f"--workdir={workdir}", *self.handed_on, *own]


@dataclasses.dataclass(frozen=True)
class Speed:
    """Measured speed of a run.

    Attributes:
      overhead: seconds of the run outside its steps.
      step: seconds per step.
      per_epoch: steps per epoch.
      first_step: seconds until the end of the first step.
    """

    overhead: float
    step: float
    per_epoch: float
    first_step: float

    @classmethod
    def of(cls, seconds: float, summary: Mapping[str, Any], batch_size: int) -> "Speed":
        """Compute the speed from the wall time of a run and its summary."""
        step = batch_size / summary["images_per_second"]
        overhead = max(0.0, seconds - summary["steps"] * step)
        return cls(overhead, step, summary["steps"] / summary["epochs"], summary["first_step_seconds"])

    def steps_within(self, limit: float) -> int:
        """Return the number of steps of a run that takes 95 % of `limit`; 0 if there is no time for any."""
        return max(0, int((SHARE * limit - self.overhead) / self.step))


def data_options(path: str) -> list[str]:
    """Return the options of patchnets.main for `path`: class folders if it contains train/, else a TFDS data_dir.

    Raises:
      UserError: `path` is not a folder.
    """
    directory = pathlib.Path(path).expanduser()
    if not directory.is_dir():
        raise UserError(f"--data={path}: there is no such folder; give one of train/CLASS/*.png, or a TFDS data_dir")
    if (directory / "train").is_dir():
        return ["--config.dataset.name=folder", f"--config.dataset.path={directory.resolve()}"]
    return [f"--config.dataset.data_dir={directory.resolve()}"]


def limits_type(value: str) -> tuple[float, ...]:
    """Parse --seconds: numbers of at least 1, sorted."""
    limits = tuple(sorted(map(positive_float, value.split(","))))
    if limits[0] < 1:
        raise argparse.ArgumentTypeError(f"expected seconds of at least 1, got {limits[0]:g}")
    return limits


def pilot_type(value: str) -> int:
    """Parse --pilot."""
    steps = positive_int(value)
    if steps < LEAST_PILOT:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {LEAST_PILOT}, got {value!r}")
    return steps


def parse_args(arguments: Sequence[str]) -> Options:
    """Parse the command line; raise UserError if it is invalid."""
    parser = ArgumentParser("python -m experiments.time_to_accuracy", description=__doc__)
    parser.add_argument(
        "--config",
        required=True,
        help="a configuration; {epochs} in it becomes the number of epochs that fit, for recipes that depend on it",
    )
    parser.add_argument(
        "--seconds",
        required=True,
        type=limits_type,
        metavar="N,N...",
        help="wall-time limits, such as 60,120,300; one run from scratch for each",
    )
    parser.add_argument(
        "--data",
        type=data_options,
        default=(),
        help="the images: a folder of train/CLASS/* and test/CLASS/*, or a TFDS data_dir",
    )
    parser.add_argument(
        "--compile",
        choices=("before", "within"),
        default="before",
        help="before (default): programs are compiled by a run of the same configuration that is stopped after its "
        "first step; within: compilation counts",
    )
    parser.add_argument(
        "--pilot",
        type=pilot_type,
        default=100,
        help="steps of the runs that measure the time of a step (default: 100)",
    )
    parser.add_argument(
        "--out",
        type=out_folder,
        metavar="DIR",
        help="folder for sprint.jsonl and sprint.md; without it nothing is kept",
    )
    values, overrides = parser.parse_with_overrides(arguments)
    if lengths := [a for a in overrides if a.removeprefix("--config.").partition("=")[0] in LENGTH]:
        raise UserError(f"{lengths[0]}: the length of a run follows from --seconds; leave it out")
    return Options(
        values.config, values.seconds, (*values.data, *overrides), values.compile == "before", values.pilot, values.out
    )


class Runs:
    """Starts the runs of one command, each in its own process."""

    def __init__(self, options: Options, directory: pathlib.Path, batch_size: int):
        self.options, self.directory, self.batch_size = options, directory, batch_size
        self._count = 0

    def environment(self, cache: str) -> dict[str, str]:
        """Return the environment of a run, with a compilation cache below `directory`."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return dict(os.environ) | {
            "PYTHONPATH": os.pathsep.join(paths),
            "JAX_COMPILATION_CACHE_DIR": str(self.directory / cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }

    def run(
        self, steps: int, epochs: int, cache: str, patience: float, pilot: bool = False, end_early: bool = False
    ) -> tuple[float, dict[str, Any]]:
        """Run `steps` steps with the compilation cache `cache`; with `end_early`, stop after the first step.

        Returns:
          (wall seconds, summary); the summary is empty with `end_early`.

        Raises:
          UserError: the configuration is invalid.
          RunError: the run failed, or took longer than `patience` seconds.
        """
        self._count += 1
        workdir, log = self.directory / f"run-{self._count}", self.directory / f"run-{self._count}.log"
        keys = LEAN | FLAT if pilot else LEAN
        command = [*PROGRAM, *self.options.command(steps, epochs, workdir, keys)]
        with log.open("wb") as sink:
            began = time.monotonic()
            process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=self.environment(cache))
            try:
                while end_early and process.poll() is None and STARTED_TRAINING not in log.read_text(errors="replace"):
                    if time.monotonic() - began > patience:
                        raise subprocess.TimeoutExpired(command, patience)
                    time.sleep(POLL)
                if end_early and process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                status = process.wait(timeout=max(POLL, began + patience - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise RunError(f"a run of {steps:,} steps was stopped after {patience:.0f} s") from None
            finally:
                process.kill()  # after a timeout; no effect if the process has ended
                process.wait()
            seconds = time.monotonic() - began
        if end_early and status in (0, 128 + signal.SIGTERM, -signal.SIGTERM):
            return seconds, {}
        if status:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("patchnets: ")] or lines or ["no output"]
            kind = UserError if status == UserError.status else RunError
            raise kind(f"a run of {steps:,} steps ended with status {status}: {errors[-1].strip()[:300]}")
        return seconds, json.loads((workdir / "summary.json").read_text())


def described(
    options: Options, limit: float, seconds: float, epochs: int, cold: Speed, summary: Mapping[str, Any]
) -> Row:
    """Return the results of a run within a limit, without paths of this machine."""
    names = "test_accuracy", "test_top5_accuracy", "test_loss", "steps", "epochs", "images_per_second"
    return {
        "limit": limit,
        "seconds": round(seconds, 2),
        "over": seconds > limit,
        **{name: summary.get(name) for name in names},
        "first_step_seconds": summary["first_step_seconds"],
        "cold_first_step_seconds": cold.first_step,
        "compiled": "before" if options.compiled_before else "within",
        "config": options.named(epochs),
        "changed": [each for each in options.handed_on if not each.startswith("--config.dataset.")],
        "device": summary["device"],
        "versions": summary["versions"],
    }


def sprint(options: Options, runs: Runs, say: Callable[[str], None]) -> list[Row]:
    """Run the pilots and all limits; write the results after every limit.

    Raises:
      UserError: the configuration is invalid.
      RunError: a pilot failed.
    """
    patience = 2 * max(options.limits) + 600
    longest = 1000  # epochs: the recipe with the most expensive step
    seconds, summary = runs.run(options.pilot, longest, "compiled", patience, pilot=True)
    cold = pace = Speed.of(seconds, summary, runs.batch_size)
    say(
        f"nothing compiled: first step after {cold.first_step:.1f} s, {options.pilot} steps and test in {seconds:.1f} s"
    )
    if options.compiled_before:
        seconds, summary = runs.run(options.pilot, longest, "compiled", patience, pilot=True)
        pace = Speed.of(seconds, summary, runs.batch_size)
        say(
            f"compiled before: first step after {pace.first_step:.1f} s, {options.pilot} steps and test {seconds:.1f} s"
        )
    rows: list[Row] = []
    for limit in options.limits:
        try:
            steps = pace.steps_within(limit)
            say(f"{limit:g} s: {steps:,} steps of {1000 * pace.step:.2f} ms, and {pace.overhead:.1f} s for the rest")
            if not steps:
                raise RunError(f"start and test take {pace.overhead:.1f} s, which leaves no time for a step")
            epochs = max(1, int(steps / pace.per_epoch))
            cache = "compiled" if options.compiled_before else f"compiled-{limit}"
            if options.compiled_before:
                runs.run(steps, epochs, cache, patience, end_early=True)
            seconds, summary = runs.run(steps, epochs, cache, patience)
            pace = Speed.of(seconds, summary, runs.batch_size)
            rows.append(described(options, limit, seconds, epochs, cold, summary))
        except RunError as error:
            say(f"{limit:g} s: {error}")
            rows.append({"limit": limit, "failure": str(error)})
        if options.out:
            write(rows, options.out)
    return rows


def execute(arguments: list[str]) -> int:
    """Run pilots and limits, print the table, and return the exit status."""
    options = parse_args(arguments)
    config, _ = flags.parse_flags(["sprint", *options.command(options.pilot, 1000, pathlib.Path("."))])
    try:
        with tempfile.TemporaryDirectory() as directory:
            runs = Runs(options, pathlib.Path(directory), config.batch_size)
            rows = sprint(options, runs, lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        print("patchnets: interrupted; finished limits are written", file=sys.stderr)
        return 130
    print(f"\n{markdown(rows)}" + (f"\nwritten to {options.out}/: sprint.jsonl, sprint.md" if options.out else ""))
    return int(any("failure" in row or row["over"] for row in rows))


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status."""
    return run_cli(argv, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
