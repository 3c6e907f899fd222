"""Real processes of a run, for the tests in this folder: they train, or only exchange numbers (worker.py)."""

import os
import pathlib
import socket
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
CONFIG = f"--config={HERE / 'processes_config.py'}"
TIMEOUT = 300.0
DEVICE_COUNT = "--xla_force_host_platform_device_count"
FAST_COMPILE = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(DEVICE_COUNT)]  # conftest.py's


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def start(workdir, action, index=0, count=1, port=0, devices=2, options=(), wait="120"):
    """Start one process; `action` is worker.py's, None for a run of its own."""
    environ = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    environ["XLA_FLAGS"] = " ".join([f"{DEVICE_COUNT}={devices}", *FAST_COMPILE])
    environ |= {"PATCHNETS_WAIT_SECONDS": wait, "PYTHONPATH": str(ROOT), "WORKER_ACTION": action or ""}
    program = ["-m", "patchnets.main"] if action is None else [str(HERE / "worker.py")]
    command = [sys.executable, *program, CONFIG, f"--workdir={workdir}", *options]
    if count > 1:
        command += [f"--coordinator=localhost:{port}", f"--processes={count}", f"--process={index}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=pipe, stderr=pipe, text=True)


def start_processes(workdir, action, count, **options):
    port = free_port()
    return [start(workdir, action, index, count, port, **options) for index in range(count)]


def wait_all(processes, seconds=TIMEOUT):
    """[(status, stdout, stderr)]"""
    end, actual = time.monotonic() + seconds, []
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(1.0, end - time.monotonic()))
            actual.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return actual


def wait_until(condition, processes):
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end and processes[0].poll() is None, wait_all(processes)
        time.sleep(0.02)


def wait_until_joined(workdir, processes):
    wait_until(lambda: all((workdir / f"joined.{i}").exists() for i in range(len(processes))), processes)


def error_of(err: str) -> str:
    """The one line of what a process wrote to stderr."""
    assert err.count("\n") == 1, err
    return err
