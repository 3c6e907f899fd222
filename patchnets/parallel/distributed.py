"""The processes of a run: find out which one this is, join the others through JAX, and leave without hanging.

JAX itself finds the processes of SLURM (srun), Open MPI (mpirun) and TPU pods. Elsewhere --coordinator, --processes and
--process tell, or PATCHNETS_COORDINATOR, PATCHNETS_PROCESSES and PATCHNETS_PROCESS; in an indexed Job of Kubernetes
JOB_COMPLETION_INDEX is the last of these.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import socket
import sys
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import NoReturn

from patchnets.errors import UserError, first_line

PORT = 8482  # of process 0, where the coordinator is given as HOST; JAX's own default on TPUs
FLAGS = ("coordinator", "processes", "process")
WAIT_SECONDS = 300.0  # for all processes to start; PATCHNETS_WAIT_SECONDS
HEARTBEAT_TIMEOUT_SECONDS = 40  # of silence, after which JAX takes a process for lost and ends the others
SERVICE_SECONDS = 3.0  # that process 0 outlives the others: JAX aborts those that lose its service
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
GPU_KEYS = ("jax_cuda_visible_devices", "jax_rocm_visible_devices")
_runs_service = False  # whether JAX's coordination service runs in this process


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """One process of a run.

    Attributes:
      index, count: rank and world size; None on TPUs, where JAX asks the metadata server.
      local_rank, processes_on_host: the same among the processes on one machine.
      coordinator: HOST:PORT of process 0; None where JAX finds it.
      port: of process 0 where JAX finds only its host.
    """

    index: int | None = None
    count: int | None = None
    local_rank: int = 0
    processes_on_host: int = 1
    coordinator: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        return "patchnets" + (f": process {self.index} of {self.count}" if self.index else "")


def detect_cluster(
    arguments: Sequence[str], environ: Mapping[str, str] = os.environ
) -> tuple[ProcessInfo | None, list[str]]:
    """Find this process's rank and the world size, from flags or from the launcher's environment.

    Returns:
      The process, None if it is the only one; and the arguments without the flags that were read.

    Raises:
      UserError: the flags or variables are incomplete or do not fit.
    """
    options = {name: value for name in FLAGS if (value := environ.get(f"PATCHNETS_{name.upper()}"))}
    rest = []
    for argument in arguments:
        name, _, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or name not in FLAGS:
            rest.append(argument)
        elif value:
            options[name] = value
        else:
            raise UserError(f"{argument}: expected --{name}=VALUE, in one word")
    process = None
    if set(options) - {"coordinator"}:
        process = _from_flags(options, environ)
    elif "OMPI_COMM_WORLD_SIZE" in environ or "OMPI_COMM_WORLD_RANK" in environ:
        process = _from_open_mpi(options, environ)  # before SLURM, in whose jobs mpirun may run
    elif "SLURM_STEP_NODELIST" in environ:
        process = _from_slurm(options, environ)
    elif options:
        process = _from_flags(options, environ)
    elif any(pathlib.Path(device).exists() for device in TPU_DEVICES):
        process = ProcessInfo()
    if process is None or process.count is None or process.index is None:
        return process, rest
    if process.index >= process.count:
        raise UserError(f"process {process.index} of {process.count}: expected an index from 0 to {process.count - 1}")
    return (process if process.count > 1 else None), rest


def _from_flags(options: Mapping[str, str], environ: Mapping[str, str]) -> ProcessInfo:
    options = dict(options)
    if "JOB_COMPLETION_INDEX" in environ:
        options.setdefault("process", environ["JOB_COMPLETION_INDEX"])
    if missing := [name for name in FLAGS if name not in options]:
        raise UserError(
            f"--{missing[0]} (or PATCHNETS_{missing[0].upper()}) is not given, and --{next(iter(options))} is; several "
            "processes need --coordinator=HOST[:PORT], --processes=N, and --process=0 to N - 1, each its own"
        )
    count, index = _integer(options["processes"], "--processes"), _integer(options["process"], "--process")
    if count == 0:
        raise UserError("--processes=0: expected a whole number from 1 on")
    coordinator = _address(options["coordinator"], PORT)
    local = coordinator.rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]")
    return ProcessInfo(index, count, index if local else 0, count if local else 1, coordinator)


def _from_open_mpi(options: Mapping[str, str], environ: Mapping[str, str]) -> ProcessInfo:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    index, count, local_rank, on_host = (_variable(environ, f"OMPI_COMM_WORLD_{name}") for name in names)
    launcher = environ.get("OMPI_MCA_orte_hnp_uri")  # not set by Open MPI 5
    port = _port(launcher or environ.get("PMIX_NAMESPACE", ""))
    coordinator = _address(options["coordinator"], port) if options else None
    if coordinator is None and on_host == count:
        coordinator = f"localhost:{port}"
    if coordinator is None and launcher is None:
        raise UserError("this Open MPI does not say where process 0 runs; give --coordinator=HOST, the first machine")
    return ProcessInfo(index, count, local_rank, on_host, coordinator, port)


def _from_slurm(options: Mapping[str, str], environ: Mapping[str, str]) -> ProcessInfo | None:
    count = _integer(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or "1", "SLURM_STEP_NUM_TASKS")
    if count == 1:
        return None
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID")
    index, local_rank, job = (_variable(environ, name) for name in names)
    nodes = _integer(environ.get("SLURM_STEP_NUM_NODES") or "1", "SLURM_STEP_NUM_NODES")
    port = _port(f"{job}.{environ.get('SLURM_STEP_ID')}")  # JAX has one port for a job, where its steps would meet
    coordinator = _address(options["coordinator"], port) if options else None
    if coordinator is None and re.match(r"[^,\[]+\[[^\]]*\][^,]", node_list := environ["SLURM_STEP_NODELIST"]):
        raise UserError(f"JAX cannot read SLURM_STEP_NODELIST={node_list}; give --coordinator=HOST, the first node")
    return ProcessInfo(index, count, local_rank, -(-count // nodes), coordinator, port)


def _port(key: str) -> int:
    return 61000 + zlib.crc32(key.encode()) % 4000


def _variable(environ: Mapping[str, str], name: str) -> int:
    if name not in environ:
        raise UserError(f"{name} is not set, but other variables of its launcher are; start every process through it")
    return _integer(environ[name], name)


def _integer(text: str, name: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise UserError(f"{name}={text}: expected a whole number from 0 on")
    return int(text)


def _address(text: str, default_port: int) -> str:
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/]+)(?::(\d{1,5}))?", text)
    port = int(match[2] or default_port) if match else 0
    if match is None or not 0 < port < 65536:
        raise UserError(f"--coordinator={text}: expected HOST or HOST:PORT, of the machine where process 0 runs")
    return f"{match[1]}:{port}"


def initialize(process: ProcessInfo) -> None:
    """Wait for all processes and join them by `jax.distributed`; call it before JAX looks for devices.

    Where they do not all start in time, the process ends with one line and status 1.

    Raises:
      UserError: process 0 cannot listen on its port.
    """
    import jax

    wait = _wait_seconds()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from PreemptionHandler
    if process.port:
        os.environ.setdefault("JAX_COORDINATOR_PORT", str(process.port))
    if process.index == 0:
        _check_free(int((process.coordinator or os.environ["JAX_COORDINATOR_PORT"]).rpartition(":")[2]))
    address = process.coordinator or "process 0"
    timer = threading.Timer(wait, _give_up, [f"{process}: not all processes reached {address} within {wait:g} s"])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            process.coordinator,
            process.count,
            process.index,
            cluster_detection_method="deactivate" if process.coordinator else None,
            initialization_timeout=int(wait) + 60,  # later than the timer, for JAX aborts with a page of stack
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
        )
    except (OSError, ValueError):
        if process.count is not None:
            raise
        return  # a TPU that is not part of a pod
    finally:
        timer.cancel()
    if "JAX_LOCAL_DEVICE_IDS" not in os.environ:  # JAX gives each task of a launcher one GPU, even a lone task
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        shares = process.processes_on_host > 1 and (visible is None or "," in visible)
        for key in GPU_KEYS:
            jax.config.update(key, str(process.local_rank) if shares else "all")
    global _runs_service
    _runs_service = (jax.process_index() if process.index is None else process.index) == 0
    if not _runs_service:  # process 0 prints for all; the others print errors only
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.environ["TQDM_DISABLE"] = "1"


def _wait_seconds() -> float:
    text = os.environ.get("PATCHNETS_WAIT_SECONDS", str(WAIT_SECONDS))
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1e6:
            return float(text)
    raise UserError(f"PATCHNETS_WAIT_SECONDS={text}: expected a number of seconds above 0")


def _check_free(port: int) -> None:
    """Raise UserError if a program listens on the port: gRPC would share it, and mix the processes of two runs."""
    dual = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
    try:
        socket.create_server(("", port), **dual).close()  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} ({error.strerror}); give another, by --coordinator=HOST:PORT"
        ) from error


def _give_up(message: str) -> NoReturn:
    print(f"{message}; start all of them, each with the same --coordinator", file=sys.stderr)
    exit_now(1)


def lost_peer(error: BaseException | None) -> bool:
    """Return whether an exception, or one that caused it, says that another process is gone."""
    words = r"\bGloo\b|\bNCCL\b|heartbeat|coordination.service"
    return error is not None and (re.search(words, str(error), re.IGNORECASE) is not None or lost_peer(error.__cause__))


def describe_loss(error: BaseException) -> str:
    return f"another process was lost ({first_line(error, 160)}); what was saved stays, and the same command continues"


def leave(status: int) -> bool:
    """Disconnect once all processes have come here, and return whether this is the first of several. Where one never
    comes, end this process with `status`."""
    import jax

    first = _runs_service and jax.process_count() > 1
    try:
        jax.distributed.shutdown()
    except RuntimeError:
        exit_now(status)
    return first


def exit_now(status: int) -> NoReturn:
    """End a process that cannot go on, without JAX's barrier at exit, in which it would wait for the others."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    if _runs_service:
        time.sleep(SERVICE_SECONDS)
    os._exit(status)
