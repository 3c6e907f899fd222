"""What the machine offers to this process."""

import contextlib
import os
import pathlib
import sys
import warnings

from absl import logging

HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")  # Linux's own setting, the chosen one in []
TUNABLE = "glibc.malloc.hugetlb"


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> float | None:
    """Bytes that programs can still take without paging (Linux's own estimate, else all there are); None if unknown."""
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return None


def tunables() -> str | None:
    """The GLIBC_TUNABLES with which a program's large arrays lie in pages of 2 MiB, those that are set included.

    None where they do already, or cannot: where the system decides by itself, or glibc is older than 2.35 or absent.
    Where the user has set that very tunable, or PATCHNETS_HUGE_PAGES=0, None too.
    """
    if os.environ.get("PATCHNETS_HUGE_PAGES") == "0":
        return None
    preset = os.environ.get("GLIBC_TUNABLES", "")
    try:
        library, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        able = library == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
        asked_by_programs = "[madvise]" in HUGE_PAGES.read_text()
    except (AttributeError, OSError, ValueError):  # not Linux, or another C library
        return None
    if TUNABLE in preset or not (able and asked_by_programs):
        return None
    return ":".join(filter(None, [preset, f"{TUNABLE}=1"]))


def reexec_with_huge_pages() -> None:
    """Starts this program anew, as the same process, so that its large arrays lie in huge pages.

    On a CPU, XLA asks for its working memory anew at each dispatch, and the system hands it out page by page; in pages
    of 4 KiB that takes up to a fifth of a training step. glibc asks for larger ones if it is told to by the environment
    in which a program starts, and there is no later way. Call it first of all, for what was done before is done twice;
    it does nothing under a debugger, nor where PATCHNETS_HUGE_PAGES=0.
    """
    wanted = tunables()
    if wanted is not None and sys.executable and sys.gettrace() is None:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": wanted})


def cache_root(configured: str | None = None) -> pathlib.Path:
    """Where patchnets keeps what it can make again: the configured place, PATCHNETS_CACHE, or ~/.cache/patchnets."""
    root = configured or os.environ.get("PATCHNETS_CACHE")
    if root:
        return pathlib.Path(root).expanduser()
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "patchnets"


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, beside decoded images, unless JAX was told where to keep them."""
    import jax

    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # A cache that cannot be written or read back is a slow start, not a reason for a page of warnings.
    warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")


def silence_logs() -> None:
    """What matters is raised, and told in one line: libraries' remarks, as TensorFlow's on the CPU, help nobody."""
    logging.set_verbosity(logging.FATAL)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
