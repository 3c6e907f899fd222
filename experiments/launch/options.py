"""Parse the command line of a job, and check it and the configuration before anything is written."""

import argparse
import dataclasses
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.launch import devices as devices_lib
from experiments.reproduce import options as reproduce
from experiments.runner import jobs as jobs_lib
from experiments.sweep import options as sweep
from patchnets.config import flags
from patchnets.errors import UserError
from patchnets.runtime.cli import ArgumentParser, count, path
from patchnets.runtime.files import refuse_url

SUFFIX = {"slurm": ".sbatch", "k8s": ".yaml", "tpu": ".sh"}
LABEL = r"[a-z](?:[a-z0-9-]{0,48}[a-z0-9])?"


def matching(pattern: str, expected: str) -> Callable[[str], str]:
    """Return a parser of values that fully match `pattern`."""

    def parse(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {value[:120]!r}")
        return value

    return parse


word = matching(r"[A-Za-z0-9][A-Za-z0-9_.,-]{0,99}", "a word")
tpu_type = matching(r"[a-z0-9][a-z0-9-]*", "a type, such as v5litepod-16 (Cloud TPU) or tpu-v5-lite-podslice (GKE)")


def make_parser(description: str | None = None) -> ArgumentParser:
    """Return the parser of the command line, with a subparser per engine."""
    parser = ArgumentParser("python -m experiments.launch", description=description)
    engines = parser.add_subparsers(dest="engine", required=True, metavar="{slurm,k8s,tpu}")
    engines.type = str  # the subparser checks the rest
    slurm, k8s, tpu = (
        engines.add_parser(engine, help=text, argument_default=argparse.SUPPRESS)
        for engine, text in (
            ("slurm", "an sbatch script; several runs are an array"),
            ("k8s", "one JobSet per run"),
            ("tpu", "a script of gcloud commands; several runs execute one after the other"),
        )
    )
    for each, suffix in ((slurm, "sbatch"), (k8s, "yaml"), (tpu, "sh")):
        each.add_argument("--config", metavar="FILE[:ARGUMENT]", help="the configuration to train")
        each.add_argument("--sweep", metavar="FILE", help="several runs: the entries of a sweep (experiments.sweep)")
        each.add_argument("--seeds", type=count, help="runs of each entry or row, with seeds 0 to N - 1")
        each.add_argument(
            "--workdir",
            help="the run's folder, the same path on all nodes (default: runs/NAME; k8s: /runs/NAME)",
        )
        each.add_argument("--name", type=word, help="name of the job (default: from the configuration)")
        each.add_argument("--out", type=path, help=f"file to write (default: jobs/NAME.{suffix})")
        each.add_argument("--dry-run", action="store_true", help="print the job, write nothing")
        each.add_argument("--submit", action="store_true", help="submit it with sbatch, kubectl or bash")
    for each in (slurm, k8s):
        each.add_argument("--nodes", type=count, help="number of nodes (default: 1)")
        each.add_argument("--gpus-per-node", type=count)
        each.add_argument("--cpus-per-task", type=count)
    for each, position in ((slurm, "this one"), (k8s, "python")):
        each.add_argument("--python", help=f"the interpreter on the nodes (default: {position})")
    for each, position in ((slurm, "before the run"), (tpu, "on every host, such as a mount")):
        each.add_argument("--setup", metavar="COMMAND", help=f"a command {position}")
    slurm.add_argument("--tasks-per-node", type=count, help="default: 1, which uses all GPUs of its node")
    slurm.add_argument("--mem", type=matching(r"[1-9]\d*[KMGT]?", "memory of a node, such as 64G"))
    slurm.add_argument(
        "--time",
        type=matching(r"\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2}", "minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS"),
        help="limit: minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS",
    )
    slurm.add_argument("--partition", type=word)
    slurm.add_argument("--account", type=word)
    slurm.add_argument("--max-requeues", type=count, help="requeues after a time limit or preemption (default: 100)")
    slurm.add_argument("--table", help="several runs: the rows of a table of experiments.reproduce")
    slurm.add_argument("--rows", metavar="ID,ID...", help="ids of rows (default: all)")
    slurm.add_argument("--data", help="data set to use instead of the table's own, as in experiments.reproduce")
    k8s.add_argument(
        "--image", type=matching(r"[A-Za-z0-9][\w./:@-]*", "the name of an image, such as registry/patchnets:1")
    )
    k8s.add_argument(
        "--volume-claim",
        type=matching(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", "the name of a PersistentVolumeClaim"),
        help="volume of the runs, which outlives the pods",
    )
    k8s.add_argument("--mem", type=matching(r"[1-9]\d*([KMGT]i?)?", "memory of a pod, such as 64Gi"))
    k8s.add_argument("--namespace", type=matching(LABEL, "lower-case letters, digits and -"))
    k8s.add_argument("--max-restarts", type=count, help="default: 100")
    k8s.add_argument("--tpu-type", type=tpu_type, help="GKE type, such as tpu-v5-lite-podslice")
    k8s.add_argument("--tpu-topology", type=matching(r"\d+x\d+(x\d+)?", "a topology, such as 4x4"), help="such as 4x4")
    k8s.add_argument("--tpus-per-node", type=count, help="chips per pod, such as 4")
    tpu.add_argument("--tpu-type", type=tpu_type, help="such as v5litepod-16")
    tpu.add_argument("--zone", type=matching(r"[a-z]+-[a-z0-9]+-[a-z]", "a zone, such as us-west4-a"))
    tpu.add_argument("--project", type=matching(r"[a-z][a-z0-9:.-]*", "the id of a project"))
    tpu.add_argument(
        "--runtime",
        type=matching(r"[a-z0-9][a-z0-9.-]*", "a runtime version, such as tpu-ubuntu2204-base"),
        help="a runtime version (default: by the type)",
    )
    return parser


@dataclasses.dataclass(frozen=True)
class Options:
    """A valid command line.

    Attributes:
      values: {option: value} of the options on the command line.
      runs: arguments of `python -m patchnets.main` for each run, --config first; several for a table or sweep.
      report: the command that reports the runs; empty for a single run.
    """

    engine: str
    values: Mapping[str, Any]
    name: str
    workdir: pathlib.PurePath
    nodes: int
    tasks: int
    runs: tuple[tuple[str, ...], ...]
    report: tuple[str, ...]
    out: pathlib.Path

    @property
    def python(self) -> str:
        """The interpreter on the nodes: by default this one under SLURM, whose nodes share files."""
        return self.values.get("python", sys.executable if self.engine == "slurm" else "python")


def parse_args(arguments: Sequence[str], description: str | None = None) -> Options:
    """Parse the command line; raise UserError if it is invalid or cannot be launched."""
    options, overrides = make_parser(description).parse_with_overrides(arguments)
    values = {name.replace("_", "-"): value for name, value in vars(options).items()}
    engine = values.pop("engine")
    _check(values)
    nodes, tasks = values.get("nodes", 1), values.get("tasks-per-node", 1)
    name = values.get("name") or _name(values)
    if engine != "slurm":
        name = name.lower().replace("_", "-").replace(".", "-")
        if not re.fullmatch(LABEL, name):
            raise UserError(f"--name={name!r}: expected a letter, then lower-case letters, digits and -, at most 50")
    gpus = values.get("gpus-per-node")
    if gpus and tasks not in (1, gpus):
        raise UserError(f"--tasks-per-node={tasks}: a task uses one GPU or all; use 1, or {gpus} as in --gpus-per-node")
    workdir = _workdir(engine, values, name)
    runs, report = _runs(engine, values, workdir, overrides)
    if engine == "k8s":
        _check_pods(name, nodes, len(runs))
    devices = devices_lib.known(engine, values, nodes)
    processes = devices_lib.hosts(devices) if engine == "tpu" else nodes * tasks
    for run in runs:
        with jobs_lib.at_root():
            config = flags.parse_flags(["launch", *run])[0]
        file = run[0].removeprefix("--config=").partition(":")[0]
        if engine != "slurm":
            _check_inside(file)
        if engine == "tpu":
            _check_committed(file)
        devices_lib.check(config, processes, devices)
    out = values.get("out") or pathlib.Path("jobs", f"{name}{SUFFIX[engine]}")
    if out.is_dir():
        raise UserError(f"--out={out} is a folder; use a file")
    return Options(engine, values, name, workdir, nodes, tasks, runs, report, out)


def _check(values: Mapping[str, Any]) -> None:
    if "submit" in values and "dry-run" in values:
        raise UserError("--submit and --dry-run are both given; use one")
    several = [option for option in ("table", "sweep") if option in values]
    if len(several) == 2 or ("table" in values and "config" in values):
        raise UserError("--config, --table and --sweep exclude each other, except --config with --sweep; use one")
    if not several and "config" not in values:
        raise UserError("--config is not given; for example --config=configs/mixer_digits.py, and --help explains")
    for option, needs in (("rows", "table"), ("data", "table"), ("tpu-topology", "tpu-type")):
        if option in values and needs not in values:
            raise UserError(f"--{option}={values[option]} needs --{needs}, which is not given")
    if "seeds" in values and not several:
        raise UserError(f"--seeds={values['seeds']} needs --table or --sweep; for one run use --config.seed")


def _name(values: Mapping[str, Any]) -> str:
    source = values.get("table") or values.get("sweep") or values["config"].partition(":")[0]
    return re.sub(r"[^A-Za-z0-9_.-]", "-", pathlib.PurePath(source).stem)


def _workdir(engine: str, values: Mapping[str, Any], name: str) -> pathlib.PurePath:
    """Return an absolute path: of this machine, shared with the nodes, under SLURM; else of the nodes."""
    path = values.get("workdir")
    refuse_url(path or "", "--workdir=")
    if engine == "slurm":
        shared = pathlib.Path(path or f"runs/{name}").expanduser().absolute()
        jobs_lib.check_workdir(shared)
        return shared
    if path is None and engine == "k8s":
        path = f"/runs/{name}"
    if path is None:
        raise UserError("--workdir is not given: a path that all hosts share, such as /mnt/share/runs/NAME")
    mount = pathlib.PurePosixPath(path)
    if not re.match("/[^/]", path) or ".." in mount.parts:
        raise UserError(
            f"--workdir={path}: expected an absolute path on the hosts, such as /runs/NAME; mount a bucket there"
        )
    return mount


def _check_pods(name: str, nodes: int, runs: int) -> None:
    """Raise UserError if pod names, NAME[-RUN]-run-0-POD-XXXXX, exceed the 63 characters that JobSet accepts."""
    longest = 63 - len(f"-run-0-{nodes - 1}-XXXXX") - (len(f"-{runs - 1}") if runs > 1 else 0)
    if len(name) > longest:
        size = f"--nodes={nodes}" + (f" and {runs} runs" if runs > 1 else "")
        raise UserError(f"--name={name}: expected at most {longest} characters with {size}: pod names contain it")


def _check_inside(file: str) -> None:
    """Raise UserError if the configuration is outside this repository, which is all that the hosts have."""
    path = pathlib.PurePath(file)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"--config={file}: the hosts have only this repository; use a path in it, such as configs/FILE")


def _check_committed(file: str) -> None:
    """Raise UserError if the file is not in HEAD."""
    command = ["git", "-C", str(jobs_lib.ROOT), "ls-tree", "--name-only", "HEAD", "--", file]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{jobs_lib.ROOT} is not a git repository, and the hosts get its HEAD; use a clone") from error
    if not listed:
        raise UserError(f"--config={file} is not committed, and the hosts get HEAD by git archive; commit it")


def _runs(engine: str, values: Mapping[str, Any], workdir: pathlib.PurePath, overrides: Sequence[str]):
    """Return (arguments of each run, the command that reports)."""
    if "table" not in values and "sweep" not in values:
        return ((f"--config={values['config']}", *overrides, f"--workdir={workdir}"),), ()
    program = "reproduce" if "table" in values else "sweep"
    own = {"reproduce": ("table", "rows", "data"), "sweep": ("sweep", "config")}[program]
    own_options = [f"--{option}={values[option]}" for option in (*own, "seeds") if option in values]
    command = [*own_options, *overrides, f"--workdir={workdir}"]
    if program == "reproduce":
        selected = reproduce.parse_args(command)
        if row := next((row for row in selected.rows if selected.missing_weights(row)), None):
            raise UserError(
                f"--table={values['table']}: {row.id} starts from {row.weights}, which is not in "
                f"{selected.weights.absolute()}; put it there, or leave the row out of --rows"
            )
        jobs = reproduce.jobs_of(selected)
    else:
        jobs = sweep.jobs_of(sweep.parse_args(command))
    if not jobs:
        raise UserError(f"--table={values['table']} needs no training: use python -m experiments.reproduce")
    if engine == "slurm":
        jobs_lib.check_unmixed(jobs)
    runs = tuple((*job.arguments, f"--workdir={job.workdir}") for job in jobs)
    return runs, ("-m", f"experiments.{program}", *command, "--report")
