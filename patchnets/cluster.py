"""Which process of how many this is: told by flags, or by the engine that started it.

SLURM (srun), Open MPI (mpirun), Kubernetes (an indexed Job or a JobSet) and TPU pods say so in the environment, or on
their metadata server; elsewhere --coordinator, --processes and --process say it, or PATCHNETS_COORDINATOR,
PATCHNETS_PROCESSES and PATCHNETS_PROCESS.
"""

import dataclasses
import os
import pathlib
import re
import urllib.request
from collections.abc import Mapping, Sequence

from patchnets.errors import UserError

PORT = 8476  # where process 0 waits for the others, unless told otherwise; under SLURM each job has its own
FLAGS = ("coordinator", "processes", "process")
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")


@dataclasses.dataclass(frozen=True)
class Member:
    """One of the processes of a run. `local` is its number among those on its machine that see the same GPUs, None
    where it has some of its own; `beside` is how many are on its machine, 0 where no engine says so."""

    index: int
    count: int
    host: str
    port: int
    local: int | None = 0
    beside: int = 0

    def __str__(self) -> str:
        return f"process {self.index} of {self.count}"

    def address(self, port: int | None = None) -> str:
        """Where process 0 is to be found, at its own port or another."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port if port is None else port}"


def find(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> tuple[Member | None, list[str]]:
    """(this process among those of its run, or None where it is alone; the arguments less those that say so).

    Raises:
      UserError: what is told is not complete, or does not fit.
    """
    told, rest = _flags(arguments)
    for name in FLAGS:
        if value := environ.get(f"PATCHNETS_{name.upper()}"):
            told.setdefault(name, value)
    # In a job of SLURM, mpirun starts one task on each other machine, whose variables its own processes inherit.
    engines = [_told, _open_mpi, _slurm, _tpu_pod]
    if set(told) == {"coordinator"}:  # an engine has to say the rest
        engines = [_open_mpi, _slurm, _told, _tpu_pod]
    for engine in engines:
        member = engine(told, environ)
        if member is None:
            continue
        if member.index >= member.count:
            raise UserError(
                f"the cluster's variables say process {member.index} of {member.count}, and numbers from 0 are below "
                "how many there are; start every process through its engine"
            )
        if "coordinator" in told:
            host, port = _address(told["coordinator"], member.port)
            member = dataclasses.replace(member, host=host, port=port)
        return (member if member.count > 1 else None), rest
    return None, rest


def _flags(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    found, rest = {}, []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        name = name.lstrip("-") if name.startswith("-") else ""
        if name in FLAGS:
            if not equals or not value:
                raise UserError(f"{argument}: expected --{name}=VALUE, in one word")
            found[name] = value
        else:
            rest.append(argument)
    return found, rest


def _told(told: Mapping[str, str], environ: Mapping[str, str]) -> Member | None:
    """By flags or PATCHNETS_*; the number of a process of an indexed Job by what Kubernetes sets."""
    if not told:
        return None
    told = dict(told)
    if "process" not in told and "JOB_COMPLETION_INDEX" in environ:
        told["process"] = environ["JOB_COMPLETION_INDEX"]
    if missing := [name for name in FLAGS if name not in told]:
        raise UserError(
            f"--{missing[0]} (or PATCHNETS_{missing[0].upper()}) is not given, and --{next(iter(told))} is; a run of "
            "several processes needs --coordinator=HOST[:PORT], --processes=N, and --process=0 to N - 1 in each of them"
        )
    count, index = (_whole(told[name], f"--{name}") for name in ("processes", "process"))
    if count == 0:
        raise UserError("--processes=0: expected how many there are, a whole number from 1 on")
    if index >= count:
        raise UserError(f"--process={index} is not one of 0 to {count - 1}, which --processes={count} makes")
    return Member(index, count, "", PORT)  # where it is told in `find`


def _slurm(told: Mapping[str, str], environ: Mapping[str, str]) -> Member | None:
    """A task of srun: what srun did not start, as the job script itself, is alone."""
    if "SLURM_STEP_NODELIST" not in environ:
        return None
    tasks = "SLURM_STEP_NUM_TASKS" if environ.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
    if "SLURM_PROCID" not in environ and environ.get(tasks, "1") == "1":
        return None
    names = ("SLURM_JOB_ID", tasks, "SLURM_PROCID", "SLURM_LOCALID")
    job, count, index, local = (_variable(environ, name) for name in names)
    first = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", environ["SLURM_STEP_NODELIST"])
    if first is None:
        raise UserError(f"SLURM_STEP_NODELIST={environ['SLURM_STEP_NODELIST']!r} names no node; start by srun")
    step = environ.get("SLURM_STEP_ID", "0")
    port = 61000 + (job + (int(step) if step.isdigit() else 0)) % 4000  # jobs that share a node do not meet
    beside = _tasks_here(environ, count)
    return Member(index, count, "".join(filter(None, first.groups())), port, local, beside)


def _tasks_here(environ: Mapping[str, str], count: int) -> int:
    """How many tasks of the step this node has, of "2(x3),1"; node after node."""
    told = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or ""
    each: list[int] = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", told):
        each += [int(tasks)] * int(times or 1)
    node = environ.get("SLURM_NODEID", "0")
    return each[int(node)] if node.isdigit() and int(node) < len(each) else 1


def _open_mpi(told: Mapping[str, str], environ: Mapping[str, str]) -> Member | None:
    if not {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"} & environ.keys():
        return None
    names = ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE")
    count, index, local, beside = (_variable(environ, f"OMPI_COMM_WORLD_{name}") for name in names)
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")  # of Open MPI 4: "123.0;tcp://10.0.0.1,192.168.0.1:45678"
    address = re.search(r"tcp://([\d.]+)", uri)
    host = address[1] if address else "127.0.0.1" if beside == count else None
    if host is None and "coordinator" not in told:
        raise UserError(
            "this Open MPI does not say where process 0 runs, and there are several machines; give "
            "--coordinator=HOST, the first of them"
        )
    return Member(index, count, host or "", PORT, local, beside)


def _tpu_pod(told: Mapping[str, str], environ: Mapping[str, str]) -> Member | None:
    """A host of a TPU slice: Kubernetes says in the environment what the metadata server says elsewhere."""
    if not any(pathlib.Path(device).exists() for device in TPU_DEVICES):
        return None
    if "TPU_WORKER_HOSTNAMES" in environ and "TPU_WORKER_ID" in environ:
        hosts = environ["TPU_WORKER_HOSTNAMES"].split(",")
        return Member(_variable(environ, "TPU_WORKER_ID"), len(hosts), hosts[0], PORT)
    if environ.get("TPU_SKIP_MDS_QUERY"):
        return None
    try:
        index = metadata("agent-worker-number")
        hosts = [endpoint.split(":")[2] for endpoint in metadata("worker-network-endpoints").split(",")]
    except (OSError, IndexError):
        return None
    return Member(_whole(index, "the TPU worker's number"), len(hosts), hosts[0], PORT)


def metadata(name: str) -> str:
    """An attribute that the metadata server of a TPU machine gives. Raises OSError where there is no such server."""
    request = urllib.request.Request(METADATA + name, headers={"Metadata-Flavor": "Google"})
    with urllib.request.urlopen(request, timeout=3) as answer:
        return answer.read().decode().strip()


def _variable(environ: Mapping[str, str], name: str) -> int:
    if name not in environ:
        raise UserError(f"{name} is not set, beside others of a cluster's; start every process through its engine")
    return _whole(environ[name], name)


def _whole(text: str, name: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise UserError(f"{name}={text}: expected a whole number from 0 on")
    return int(text)


def _address(text: str, default: int) -> tuple[str, int]:
    """("10.0.0.1", 8476) of "10.0.0.1:8476", or of "10.0.0.1" by default."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/]+)(?::(\d{1,5}))?", text)
    port = int(found[2]) if found and found[2] else default
    if not found or not 0 < port < 65536:
        raise UserError(f"--coordinator={text}: expected HOST or HOST:PORT, of the machine where process 0 runs")
    return found[1].strip("[]"), port
