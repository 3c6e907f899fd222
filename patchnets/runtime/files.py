"""Atomic writes, checksums, and file locks between processes."""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from typing import IO

from patchnets.errors import UserError

_partial: set[pathlib.Path] = set()  # files and folders under temporary names, which this process is writing


@contextlib.contextmanager
def removed_afterwards(partial: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the path of a file or folder that this process has made, and remove what is still there afterwards.

    `remove_partial` removes it too, where the process ends without leaving the block.
    """
    _partial.add(partial)
    try:
        yield partial
    finally:
        _remove(partial)
        _partial.discard(partial)


def remove_partial() -> None:
    """Remove everything in a block of `removed_afterwards`; for a process that is about to end by os._exit."""
    for partial in list(_partial):
        _remove(partial)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the path of an empty file in the same folder, with the same suffix, and rename it to `path` afterwards.

    If the block raises, `path` is unchanged.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    with removed_afterwards(pathlib.Path(name)) as partial:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)


def write_atomically(path: pathlib.Path, content: str | bytes, durable: bool = False) -> None:
    """Write a file atomically; a `durable` one is on the disk before it has its name, so that no power cut tears it."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def crc32(path: pathlib.Path) -> int:
    """Return the CRC-32 of a file's contents, which any flipped bit changes."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether a path begins with a scheme, as gs:// or file:/ (a drive has one letter)."""
    return re.match(r"[a-z][a-z0-9+.-]+:/", os.fspath(path), re.IGNORECASE) is not None


def refuse_url(path: str | os.PathLike[str], option: str = "") -> None:
    """Raise UserError if a path is a URL: all files are read and written as local ones."""
    if is_url(path):
        raise UserError(f"{option}{path} is a URL; mount the bucket or the share, and give a path in the mount")


def lock_file(path: pathlib.Path, wait: bool) -> IO[str]:
    """Open a file, created if missing, and lock it until the returned file is closed or the process ends.

    Without `fcntl`, the file is opened but not locked.

    Raises:
      BlockingIOError: another process holds the lock, and `wait` is false.
      OSError: the file cannot be opened, or its file system has no locks.
    """
    file = path.open("a")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except ImportError:
        pass
    except BaseException:
        file.close()
        raise
    return file
