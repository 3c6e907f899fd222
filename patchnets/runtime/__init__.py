"""The process and its machine: cores, memory, huge pages, compilation cache, log levels."""

import contextlib
import functools
import os
import pathlib
import sys
import tempfile
import warnings

from patchnets.runtime.disconnect import open_closed_streams
from patchnets.runtime.files import refuse_url
from patchnets.runtime.signals import exit_on_signals, hold_signals

HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")  # the active setting is in []
TUNABLE = "glibc.malloc.hugetlb"


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> float | None:
    """Return the bytes of memory available without swapping (Linux's estimate, else all memory); None if unknown."""
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return None


def tunables() -> str | None:
    """Return GLIBC_TUNABLES that put large arrays into pages of 2 MiB, added to those already set.

    None if they would change nothing (Linux's setting is not madvise, or glibc is absent or older than 2.35), if the
    user has set this tunable, or if PATCHNETS_HUGE_PAGES=0.
    """
    if os.environ.get("PATCHNETS_HUGE_PAGES") == "0":
        return None
    preset = os.environ.get("GLIBC_TUNABLES", "")
    try:
        library, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        supported = library == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
        madvise = "[madvise]" in HUGE_PAGES.read_text()
    except (AttributeError, OSError, ValueError):  # not Linux, or another C library
        return None
    if TUNABLE in preset or not (supported and madvise):
        return None
    return ":".join(filter(None, [preset, f"{TUNABLE}=1"]))


def start_program(program: str = "patchnets") -> None:
    """Prepare the process of a command, called `program` in messages. Call this first.

    Closed standard streams are opened, SIGTERM and SIGINT end the process in one line, and large arrays are put into
    huge pages, for which the process starts again.
    """
    open_closed_streams()
    exit_on_signals(program)
    with hold_signals():
        reexec_with_huge_pages()


def reexec_with_huge_pages() -> None:
    """Restart this program in the same process, with large arrays in huge pages.

    On a CPU, XLA allocates its working memory at each dispatch, and the kernel maps it page by page; with pages of
    4 KiB that takes up to a fifth of a training step. glibc reads the setting only from the environment at program
    start. Call this first, because everything before it runs twice. Does nothing under a debugger, or if `tunables`
    returns None.
    """
    setting = tunables()
    if setting is not None and sys.executable and sys.gettrace() is None:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": setting})


def cache_root(configured: str | None = None) -> pathlib.Path:
    """Return the cache directory: `configured`, $PATCHNETS_CACHE, $XDG_CACHE_HOME/patchnets or ~/.cache/patchnets.

    If nothing can be written there, as in containers without a home: a folder for temporary files, named in one line.
    Raise UserError if it is a URL.
    """
    name = configured or os.environ.get("PATCHNETS_CACHE")
    refuse_url(name or "", "PATCHNETS_CACHE=")
    root = pathlib.Path(name or pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "patchnets")
    try:
        root = root.expanduser()
        existing = next(path for path in (root, *root.absolute().parents) if path.exists())
        if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
            return root
        reason = f"{existing} is not a folder that can be written"
    except (RuntimeError, OSError):  # there is no home, or it cannot be looked at
        reason = f"{root} is not available"
    return _temporary_cache(reason)


@functools.cache
def _temporary_cache(reason: str) -> pathlib.Path:
    """Return this user's own cache folder among temporary files, and print that it is used."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    root = pathlib.Path(tempfile.gettempdir()) / f"patchnets-{user}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        mine = not root.is_symlink() and root.stat().st_uid == user and os.access(root, os.W_OK)
    except OSError:
        mine = False
    if not mine:  # another user could put programs there
        root = pathlib.Path(tempfile.mkdtemp(prefix="patchnets-"))
    print(f"the cache is {root}, because {reason}; PATCHNETS_CACHE=DIR names another place", file=sys.stderr)
    return root


def enable_compilation_cache() -> None:
    """Cache compiled programs on disk, in `cache_root`, unless JAX's own setting names another directory."""
    import jax

    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # A cache that cannot be read or written only slows the start; it does not deserve a page of warnings.
    warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")


def silence_logs() -> None:
    """Silence the logs of absl and TensorFlow. Errors are raised as exceptions and reported in one line."""
    from absl import logging

    logging.set_verbosity(logging.FATAL)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
