"""Multi-process runs: find this process's rank, join the others through `jax.distributed`, and exit without hanging.

JAX detects the processes of SLURM (srun), Open MPI (mpirun) and TPU pods. Elsewhere, pass --coordinator, --processes
and --process, or set PATCHNETS_COORDINATOR, PATCHNETS_PROCESSES and PATCHNETS_PROCESS. In an indexed Job of Kubernetes,
the last defaults to JOB_COMPLETION_INDEX.
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
from patchnets.runtime.files import remove_partial

PORT = 8482  # of process 0 if the coordinator is given as HOST; JAX's default on TPUs
FLAGS = ("coordinator", "processes", "process")
WAIT_SECONDS = 300.0  # for all processes to start, unless PATCHNETS_WAIT_SECONDS is set
HEARTBEAT_TIMEOUT_SECONDS = 40  # without a heartbeat, JAX considers a process lost and ends the others
SERVICE_SECONDS = 3.0  # by which process 0 exits last: JAX aborts processes that lose its coordination service
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
GPU_KEYS = ("jax_cuda_visible_devices", "jax_rocm_visible_devices")
_runs_service = False  # whether JAX's coordination service runs in this process


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """One process of a run.

    Attributes:
      index, count: rank and world size; None on TPUs, where JAX asks the metadata server.
      local_rank, processes_on_host: rank and number of processes on this machine.
      coordinator: HOST:PORT of process 0; None if JAX finds it.
      port: port of process 0, if JAX finds only its host.
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
      The process, or None if it is the only one; and the remaining arguments.

    Raises:
      UserError: the flags or variables are incomplete or inconsistent.
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
            raise UserError(f"{argument}: expected --{name}=VALUE, without a space")
    process = None
    if set(options) - {"coordinator"}:
        process = _from_flags(options, environ)
    elif "OMPI_COMM_WORLD_SIZE" in environ or "OMPI_COMM_WORLD_RANK" in environ:
        process = _from_open_mpi(options, environ)  # before SLURM: mpirun may run inside a SLURM job
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
            f"--{missing[0]} (or PATCHNETS_{missing[0].upper()}) is not given, but --{next(iter(options))} is; several "
            "processes need --coordinator=HOST[:PORT], --processes=N, and a different --process (0 to N - 1) each"
        )
    count, index = _integer(options["processes"], "--processes"), _integer(options["process"], "--process")
    if count == 0:
        raise UserError("--processes=0: expected at least 1")
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
        raise UserError("this Open MPI does not name the host of process 0; pass --coordinator=HOST, the first machine")
    return ProcessInfo(index, count, local_rank, on_host, coordinator, port)


def _from_slurm(options: Mapping[str, str], environ: Mapping[str, str]) -> ProcessInfo | None:
    count = _integer(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or "1", "SLURM_STEP_NUM_TASKS")
    if count == 1:
        return None
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID")
    index, local_rank, job = (_variable(environ, name) for name in names)
    nodes = _integer(environ.get("SLURM_STEP_NUM_NODES") or "1", "SLURM_STEP_NUM_NODES")
    port = _port(f"{job}.{environ.get('SLURM_STEP_ID')}")  # JAX's port is per job; job steps would collide
    coordinator = _address(options["coordinator"], port) if options else None
    if coordinator is None and re.match(r"[^,\[]+\[[^\]]*\][^,]", node_list := environ["SLURM_STEP_NODELIST"]):
        raise UserError(f"JAX cannot read SLURM_STEP_NODELIST={node_list}; pass --coordinator=HOST, the first node")
    return ProcessInfo(index, count, local_rank, -(-count // nodes), coordinator, port)


def _port(key: str) -> int:
    return 61000 + zlib.crc32(key.encode()) % 4000


def _variable(environ: Mapping[str, str], name: str) -> int:
    if name not in environ:
        raise UserError(f"{name} is not set, but other variables of its launcher are; start every process through it")
    return _integer(environ[name], name)


def _integer(text: str, name: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise UserError(f"{name}={text}: expected a whole number of at least 0")
    return int(text)


def _address(text: str, default_port: int) -> str:
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/]+)(?::(\d{1,5}))?", text)
    port = int(match[2] or default_port) if match else 0
    if match is None or not 0 < port < 65536:
        raise UserError(f"--coordinator={text}: expected HOST or HOST:PORT of process 0")
    return f"{match[1]}:{port}"


def initialize(process: ProcessInfo) -> None:
    """Wait for all processes and join them by `jax.distributed`. Call it before JAX initializes its backends.

    Exits with one line and status 1 if not all processes start in time.

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
            initialization_timeout=int(wait) + 60,  # after the timer: JAX aborts with a page of stack trace
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
        )
    except (OSError, ValueError):
        if process.count is not None:
            raise
        return  # a TPU that is not part of a pod
    finally:
        timer.cancel()
    if "JAX_LOCAL_DEVICE_IDS" not in os.environ:  # JAX assigns one GPU to each task, even if it is alone on its host
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        shares = process.processes_on_host > 1 and (visible is None or "," in visible)
        for key in GPU_KEYS:
            jax.config.update(key, str(process.local_rank) if shares else "all")
    global _runs_service
    _runs_service = (jax.process_index() if process.index is None else process.index) == 0
    if not _runs_service:  # only process 0 prints to stdout; all print errors
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.environ["TQDM_DISABLE"] = "1"


def _wait_seconds() -> float:
    text = os.environ.get("PATCHNETS_WAIT_SECONDS", str(WAIT_SECONDS))
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1e6:
            return float(text)
    raise UserError(f"PATCHNETS_WAIT_SECONDS={text}: expected a number of seconds above 0")


def _check_free(port: int) -> None:
    """Raise UserError if the port is in use: gRPC would share it and mix the processes of two runs."""
    dual = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
    try:
        socket.create_server(("", port), **dual).close()  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} ({error.strerror}); choose another with --coordinator=HOST:PORT"
        ) from error


def _give_up(message: str) -> NoReturn:
    print(f"{message}; start all of them with the same --coordinator", file=sys.stderr)
    exit_now(1)


def lost_peer(error: BaseException | None) -> bool:
    """Return whether an exception, or one of its causes, reports the loss of another process."""
    words = r"\bGloo\b|\bNCCL\b|heartbeat|coordination.service"
    return error is not None and (re.search(words, str(error), re.IGNORECASE) is not None or lost_peer(error.__cause__))


def describe_loss(error: BaseException) -> str:
    return f"another process was lost ({first_line(error, 160)}); the same command resumes from the last checkpoint"


def leave(status: int) -> bool:
    """Disconnect once all processes have called this, and return whether this is process 0 of several. Exit with
    `status` if one of them never does."""
    import jax

    first = _runs_service and jax.process_count() > 1
    try:
        jax.distributed.shutdown()
    except RuntimeError:
        exit_now(status)
    return first


def exit_now(status: int) -> NoReturn:
    """Exit after a failure, without JAX's exit barrier, which would wait for the other processes, and without waiting
    for threads."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    remove_partial()
    if _runs_service:
        time.sleep(SERVICE_SECONDS)
    os._exit(status)
