"""Describe this machine, without any of the measured libraries."""

import datetime
import os
import pathlib
import platform
import shutil
import subprocess

from patchnets import runtime

# TFLOP/s, dense bfloat16 with float32 accumulation, by a part of the device's name. Source: the makers' data sheets.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
}


def gpus() -> list[str]:
    """Return the names of this machine's NVIDIA GPUs; none if JAX_PLATFORMS=cpu."""
    if os.environ.get("JAX_PLATFORMS") == "cpu" or shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return [line.strip() for line in lines if line.strip()]


def gpu_slots() -> list[str]:
    """Return one value of CUDA_VISIBLE_DEVICES per GPU: its current entries if set, else all GPUs by number."""
    slots = list(map(str, range(len(gpus()))))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return slots if visible is None else [name.strip() for name in visible.split(",") if name.strip()] if slots else []


def gpu_name() -> str:
    """Return the name of the first GPU, or ""."""
    return next(iter(gpus()), "")


def peak_tflops(gpu: str) -> float | None:
    """Return the peak TFLOP/s of a GPU in bfloat16 by its data sheet; None if it is not in the table."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in gpu), None)


def cpu_name() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit of the source tree, with "+" if it has changes; "" outside a repository."""
    directory = pathlib.Path(__file__).parent
    command = ["git", "-C", str(directory), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def described() -> dict[str, str | int | float]:
    """Return date, processor, memory, system, Python, GPU and commit."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts: dict[str, str | int | float] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "cores": runtime.cores(),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    if gpu := gpu_name():
        facts["gpu"] = gpu
    if revision := commit():
        facts["commit"] = revision
    return facts
