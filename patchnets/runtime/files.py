"""Atomic writes, and file locks between processes."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the path of an empty file in the same folder, with the same suffix, and rename it to `path` afterwards.

    If the block raises, `path` is unchanged.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    partial = pathlib.Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


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
