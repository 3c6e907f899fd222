"""Folders and files below a folder: links are followed, and what is hidden or no file is skipped."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator

from patchnets.errors import UserError
from patchnets.runtime.format import same_name


def list_folders(directory: pathlib.Path) -> tuple[str, ...]:
    """Return the names of the folders in a folder, in alphabetical order, hidden ones left out."""
    return tuple(sorted(e.name for e in os.scandir(directory) if _is_folder(e) and not e.name.startswith(".")))


def folder_of(directory: pathlib.Path) -> dict[str, str]:
    """Return {class name, composed: its folder}. Raise UserError for two folders whose names look alike."""
    folders: dict[str, str] = {}
    for name in list_folders(directory):
        if other := folders.get(same_name(name)):
            raise UserError(
                f"{directory} holds two folders whose names look alike, {other!a} and {name!a}, in two forms of "
                "Unicode; merge them, or rename one"
            )
        folders[same_name(name)] = name
    return folders


def walk_files(
    directory: pathlib.Path,
    prefix: str = "",
    *,
    exclude: pathlib.Path | None = None,
    on_error: Callable[[OSError], None] | None = None,
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield (path below `directory`, entry) of every file in it and in the folders within, in alphabetical order.

    Hidden names are skipped, and what is no file: pipes, sockets and devices, which may never end. Links are followed,
    except to a folder around them; those that lead nowhere count as files, for reading to report.

    Args:
      prefix: put before the paths.
      exclude: a folder that is not searched.
      on_error: called for a folder that cannot be listed, which is skipped then; None to raise the error.
    """
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError as error:
        if on_error is None:
            raise
        on_error(error)
        return
    entries = [entry for entry in entries if not entry.name.startswith(".")]
    folders = [entry for entry in entries if _is_folder(entry)]
    yield from ((prefix + e.name, e) for e in entries if not _is_folder(e) and _is_file(e))
    for entry in folders:
        here, target = pathlib.Path(directory).resolve(), pathlib.Path(entry.path).resolve()
        if (entry.is_symlink() and (target == here or target in here.parents)) or target == exclude:
            continue
        yield from walk_files(pathlib.Path(entry.path), f"{prefix}{entry.name}/", exclude=exclude, on_error=on_error)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):  # a link to itself
        return entry.is_dir()
    return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a file, or a link that leads nowhere."""
    with contextlib.suppress(OSError):
        return entry.is_file() or not os.path.exists(entry.path)
    return True


def status(entry: os.DirEntry[str]) -> os.stat_result:
    """Return the status of a file; of a link that leads nowhere, its own."""
    with contextlib.suppress(OSError):
        return entry.stat()
    return entry.stat(follow_symlinks=False)
