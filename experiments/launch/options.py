"""What a command line asks to be launched, held against the configuration before anything is written."""

import dataclasses
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from experiments.launch import devices as devices_lib
from experiments.reproduce import __main__ as reproduce
from experiments.runner import jobs as jobs_lib
from experiments.runner.cli import count, home, split_options
from experiments.sweep import __main__ as sweep
from patchnets.config import flags
from patchnets.errors import UserError

COMMON = ("config", "workdir", "name", "out")
SWITCHES = ("submit", "dry-run")
OPTIONS = {
    "slurm": ("nodes", "tasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "time", "partition", "account",
              "max-requeues", "setup", "python", "table", "rows", "data", "sweep", "seeds"),
    "k8s": ("nodes", "image", "volume-claim", "gpus-per-node", "tpu-type", "tpu-topology", "tpus-per-node", "mem",
            "cpus-per-task", "namespace", "max-restarts", "python", "sweep", "seeds"),
    "tpu": ("tpu-type", "zone", "project", "runtime", "setup", "sweep", "seeds"),
}  # fmt: skip
SUFFIX = {"slurm": ".sbatch", "k8s": ".yaml", "tpu": ".sh"}
WORD = r"[A-Za-z0-9][A-Za-z0-9_.,-]{0,99}"
LABEL = r"[a-z](?:[a-z0-9-]{0,48}[a-z0-9])?"
RULES: dict[str, tuple[str, str]] = {
    "name": (WORD, "a word"),
    "partition": (WORD, "a word"),
    "account": (WORD, "a word"),
    "time": (r"\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2}", "minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS"),
    "image": (r"[A-Za-z0-9][\w./:@-]*", "the name of an image, such as registry/patchnets:1"),
    "volume-claim": (r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", "the name of a PersistentVolumeClaim"),
    "namespace": (LABEL, "small letters, digits and -"),
    "tpu-type": (r"[a-z0-9][a-z0-9-]*", "a type, such as v5litepod-16 (Cloud TPU) or tpu-v5-lite-podslice (GKE)"),
    "tpu-topology": (r"\d+x\d+(x\d+)?", "a topology, such as 4x4"),
    "zone": (r"[a-z]+-[a-z0-9]+-[a-z]", "a zone, such as us-west4-a"),
    "project": (r"[a-z][a-z0-9:.-]*", "the id of a project"),
    "runtime": (r"[a-z0-9][a-z0-9.-]*", "a runtime version, such as tpu-ubuntu2204-base"),
}
MEMORY = {
    "slurm": (r"[1-9]\d*[KMGT]?", "memory of a node, such as 64G"),
    "k8s": (r"[1-9]\d*([KMGT]i?)?", "memory of a pod, such as 64Gi"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """A request that can be carried out.

    Attributes:
      given: the options as they were given.
      runs: for each run the arguments of `python -m patchnets.main`, --config first; of a table or sweep several.
      report: the command that gathers what these leave; empty where one run was asked for.
    """

    engine: str
    given: Mapping[str, str]
    name: str
    workdir: pathlib.PurePath
    nodes: int
    tasks: int
    runs: tuple[tuple[str, ...], ...]
    report: tuple[str, ...]
    out: pathlib.Path

    def count(self, option: str) -> int | None:
        return count(option, self.given)

    @property
    def python(self) -> str:
        """That of this program, where the nodes share its files."""
        return self.given.get("python", sys.executable if self.engine == "slurm" else "python")


def parse_args(arguments: Sequence[str]) -> Options:
    """Raises UserError for what is not understood, or cannot be launched."""
    engine, *rest = arguments or [""]
    if engine not in OPTIONS:
        raise UserError(f"{engine!r} is no engine; the first word is one of {', '.join(OPTIONS)}")
    given, handed_on = split_options(rest, (*COMMON, *OPTIONS[engine]), SWITCHES)
    _check(engine, given)
    nodes, tasks = count("nodes", given) or 1, count("tasks-per-node", given) or 1
    name = given.get("name") or _name(given)
    if engine != "slurm":
        name = name.lower().replace("_", "-").replace(".", "-")
        _hold("name", name, LABEL, "small letters, digits and -, at most 50, from a letter on")
    gpus = count("gpus-per-node", given)
    if gpus and tasks not in (1, gpus):
        raise UserError(f"--tasks-per-node={tasks}: a task uses one GPU or all; give 1, or {gpus} as --gpus-per-node")
    workdir = _workdir(engine, given, name)
    runs, report = _runs(engine, given, workdir, handed_on)
    if engine == "k8s":
        _check_pods(name, nodes, len(runs))
    devices = devices_lib.known(engine, given, nodes)
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
    out = home(given.get("out", f"jobs/{name}{SUFFIX[engine]}"))
    if out.is_dir():
        raise UserError(f"--out={out} is a folder; give a file")
    return Options(engine, given, name, workdir, nodes, tasks, runs, report, out)


def _check(engine: str, given: Mapping[str, str]) -> None:
    rules = RULES | ({"mem": MEMORY[engine]} if engine in MEMORY else {})
    for option, (pattern, expected) in rules.items():
        if option in given:
            _hold(option, given[option], pattern, expected)
    for option, value in given.items():
        if not value.isprintable():
            raise UserError(f"--{option}={value!r} has characters that cannot be printed; leave them out")
    if "submit" in given and "dry-run" in given:
        raise UserError("--submit and --dry-run are both given; give one")
    what = [option for option in ("table", "sweep") if option in given]
    if len(what) == 2 or ("table" in given and "config" in given):
        raise UserError("--config, --table and --sweep each say what is run; give one (--config goes with --sweep)")
    if not what and "config" not in given:
        raise UserError("--config is not given; for example --config=configs/mixer_digits.py, and --help explains")
    for option, needs in (("rows", "table"), ("data", "table"), ("tpu-topology", "tpu-type")):
        if option in given and needs not in given:
            raise UserError(f"--{option}={given[option]} goes with --{needs}, which is not given")
    if "seeds" in given and not what:
        raise UserError(f"--seeds={given['seeds']} goes with --table or --sweep; for one run give --config.seed")


def _hold(option: str, value: str, pattern: str, expected: str) -> None:
    if not re.fullmatch(pattern, value, re.ASCII):
        raise UserError(f"--{option}={value[:120]!r}: expected {expected}")


def _name(given: Mapping[str, str]) -> str:
    told = given.get("table") or given.get("sweep") or given["config"].partition(":")[0]
    return re.sub(r"[^A-Za-z0-9_.-]", "-", pathlib.PurePath(told).stem)


def _workdir(engine: str, given: Mapping[str, str], name: str) -> pathlib.PurePath:
    """A whole path. Under SLURM it is one of this machine, which the nodes share; elsewhere one of the nodes."""
    told = given.get("workdir")
    if engine == "slurm":
        shared = home(told or f"runs/{name}").absolute()
        jobs_lib.check_workdir(shared)
        return shared
    if told is None and engine == "k8s":
        told = f"/runs/{name}"
    if told is None:
        raise UserError("--workdir is not given: a path that all hosts share, such as /mnt/share/runs/NAME")
    place = pathlib.PurePosixPath(told)
    if not re.match("/[^/]", told) or ".." in place.parts:
        raise UserError(
            f"--workdir={told}: expected a whole path on the hosts, such as /runs/NAME; mount a bucket there"
        )
    return place


def _check_pods(name: str, nodes: int, runs: int) -> None:
    """Raises UserError where JobSet would refuse the names that pods get, NAME-run-0-POD-XXXXX, for one is longer than
    63 characters. Of several runs each has its number behind NAME."""
    most = 63 - len(f"-run-0-{nodes - 1}-XXXXX") - (len(f"-{runs - 1}") if runs > 1 else 0)
    if len(name) > most:
        of = f"--nodes={nodes}" + (f" and {runs} runs" if runs > 1 else "")
        raise UserError(f"--name={name}: expected at most {most} characters with {of}, of which pods get their names")


def _check_inside(file: str) -> None:
    """Raises UserError where a configuration is none of this repository's, which is what the hosts have."""
    path = pathlib.PurePath(file)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"--config={file}: the hosts have this repository alone; give a path in it, as configs/FILE")


def _check_committed(file: str) -> None:
    """Raises UserError where a file is not in HEAD."""
    command = ["git", "-C", str(jobs_lib.ROOT), "ls-tree", "--name-only", "HEAD", "--", file]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{jobs_lib.ROOT} is no git repository, of which the hosts get HEAD; clone it") from error
    if not found:
        raise UserError(f"--config={file} is not committed, and the hosts get HEAD by git archive; commit it")


def _runs(engine: str, given: Mapping[str, str], workdir: pathlib.PurePath, handed_on: Sequence[str]):
    """(the arguments of each run, the command that reports)."""
    if "table" not in given and "sweep" not in given:
        return ((f"--config={given['config']}", *handed_on, f"--workdir={workdir}"),), ()
    program = "reproduce" if "table" in given else "sweep"
    own = {"reproduce": ("table", "rows", "data"), "sweep": ("sweep", "config")}[program]
    told = [f"--{option}={given[option]}" for option in (*own, "seeds") if option in given]
    command = [*told, *handed_on, f"--workdir={workdir}"]
    jobs = (
        reproduce.jobs_of(reproduce.parse_args(command))
        if program == "reproduce"
        else sweep.jobs_of(sweep.parse_args(command))
    )
    if not jobs:
        raise UserError(f"--table={given['table']} needs no training: python -m experiments.reproduce does it at once")
    if engine == "slurm":
        jobs_lib.check_unmixed(jobs)
    runs = tuple((*job.arguments, f"--workdir={job.place}") for job in jobs)
    return runs, ("-m", f"experiments.{program}", *command, "--report")
