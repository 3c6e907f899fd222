"""Which image files the arguments of a command line name: files, folders, patterns, and a list on standard input."""

import collections
import glob
import io
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence

from patchnets.data.sources.folder import image_suffixes
from patchnets.data.sources.walk import walk_files
from patchnets.errors import RunError, UserError
from patchnets.runtime.format import printable

STANDARD_INPUT = "-"


class UnreadableFolder(RunError):
    """A folder among those to search that cannot be listed, in place of its images."""

    def __init__(self, error: OSError):
        self.path = os.fsdecode(error.filename)
        super().__init__(f"{self.path} cannot be searched ({error.strerror})")


def image_paths(
    arguments: Sequence[str],
    exclude: pathlib.Path | None = None,
    lines: Iterable[str] | None = None,
    passed_over: collections.Counter[str] | None = None,
) -> Iterator[str | UnreadableFolder]:
    """Yield the paths of the images that arguments name, those of a folder in alphabetical order.

    Args:
      arguments: each a file, a folder (searched with its folders, and those that links lead to, for names that end as
        an image's; those that begin with a dot are left out), a pattern as of a shell with `**` for any folders, or
        `-` for `lines`.
      exclude: a folder that is not searched, for results are written there.
      lines: paths of files or folders, one each; standard input if None, whose names need not be UTF-8.
      passed_over: counts the files in folders that are no images, by suffix.

    Raises:
      UserError: an argument names nothing that is there.
    """
    for argument in arguments:
        if argument != STANDARD_INPUT:
            yield from _expand(argument, exclude, passed_over)
            continue
        if lines is None and isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")
        for line in sys.stdin if lines is None else lines:
            if path := line.rstrip("\r\n"):
                yield from _files(path, exclude, passed_over)


def count_images(arguments: Sequence[str], exclude: pathlib.Path | None = None) -> int | None:
    """Return how many images, and folders that cannot be searched, arguments name; None if it depends on standard
    input, which is not read.

    Raises:
      UserError: an argument names no image, or standard input is named twice.
    """
    if arguments.count(STANDARD_INPUT) > 1:
        raise UserError("standard input (-) can be read once; name it once")
    counts = []
    for argument in arguments:
        if argument != STANDARD_INPUT:
            passed_over = collections.Counter[str]()
            counts.append(sum(1 for _ in _expand(argument, exclude, passed_over)))
            if not counts[-1]:
                kinds = f" but {by_suffix(passed_over)}" if passed_over else ""
                raise UserError(f"{argument} holds no images{kinds}; expected names that end in .jpg, .png or the like")
    return None if STANDARD_INPUT in arguments else sum(counts)


def by_suffix(passed_over: collections.Counter[str]) -> str:
    """Return the most frequent suffixes with their counts, as can be printed: ".heic 10, .txt 2"."""
    return ", ".join(f"{printable(suffix)} {number:,}" for suffix, number in passed_over.most_common(5))


def _expand(
    argument: str, exclude: pathlib.Path | None, passed_over: collections.Counter[str] | None
) -> Iterator[str | UnreadableFolder]:
    path = os.path.expanduser(argument)
    # A name may hold a * or a bracket itself.
    matches = [path] if os.path.lexists(path) else sorted(glob.iglob(path, recursive=True))
    if not matches:
        raise UserError(f"{argument} is neither a file nor a folder, and as a pattern it matches nothing")
    for match in matches:
        yield from _files(match, exclude, passed_over)


def _files(
    path: str, exclude: pathlib.Path | None, passed_over: collections.Counter[str] | None
) -> Iterator[str | UnreadableFolder]:
    """Yield the images below a folder, which are those of training; anything else is taken for an image."""
    if not os.path.isdir(path):
        yield path
        return
    errors: list[OSError] = []
    excluded = None if exclude is None else exclude.resolve()
    for name, _ in walk_files(pathlib.Path(path), exclude=excluded, on_error=errors.append):
        yield from _taken(errors)
        suffix = os.path.splitext(name)[1].lower()
        if suffix in image_suffixes():
            yield os.path.join(path, name)
        elif passed_over is not None:
            passed_over[suffix or "no suffix"] += 1
    yield from _taken(errors)


def _taken(errors: list[OSError]) -> Iterator[UnreadableFolder]:
    """Yield the errors of a list, which is emptied."""
    while errors:
        yield UnreadableFolder(errors.pop(0))
