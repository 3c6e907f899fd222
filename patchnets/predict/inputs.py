"""Which image files the arguments of a command line name: files, folders, patterns, and a list on standard input."""

import glob
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence

from patchnets.data.sources.folder import image_suffixes
from patchnets.errors import UserError

STANDARD_INPUT = "-"


def image_paths(
    arguments: Sequence[str], exclude: pathlib.Path | None = None, lines: Iterable[str] | None = None
) -> Iterator[str]:
    """Yield the paths of the images that arguments name, those of a folder in alphabetical order.

    Args:
      arguments: each a file, a folder (searched with its folders, for names that end as an image's; those that begin
        with a dot are passed over), a pattern as of a shell with `**` for any folders, or `-` for `lines`.
      exclude: a folder that is not searched, for results are written there.
      lines: paths of files or folders, one each; standard input if None.

    Raises:
      UserError: an argument names nothing that is there.
    """
    for argument in arguments:
        if argument != STANDARD_INPUT:
            yield from _expand(argument, exclude)
            continue
        for line in sys.stdin if lines is None else lines:
            if path := line.rstrip("\r\n"):
                yield from _files(path, exclude)


def count_images(arguments: Sequence[str], exclude: pathlib.Path | None = None) -> int | None:
    """Return how many images arguments name; None if it depends on standard input, which is not read.

    Raises:
      UserError: an argument names no image, or standard input is named twice.
    """
    if arguments.count(STANDARD_INPUT) > 1:
        raise UserError("standard input (-) can be read once; name it once")
    counts = []
    for argument in arguments:
        if argument != STANDARD_INPUT:
            counts.append(sum(1 for _ in _expand(argument, exclude)))
            if not counts[-1]:
                raise UserError(f"{argument} holds no images; expected names that end in .jpg, .png or the like")
    return None if STANDARD_INPUT in arguments else sum(counts)


def _expand(argument: str, exclude: pathlib.Path | None) -> Iterator[str]:
    path = os.path.expanduser(argument)
    # A name may hold a * or a bracket itself.
    matches = [path] if os.path.lexists(path) else sorted(glob.iglob(path, recursive=True))
    if not matches:
        raise UserError(f"{argument} is neither a file nor a folder, and as a pattern it matches nothing")
    for match in matches:
        yield from _files(match, exclude)


def _files(path: str, exclude: pathlib.Path | None) -> Iterator[str]:
    """Yield the images below a folder; anything else is taken for an image."""
    if not os.path.isdir(path):
        yield path
        return
    excluded = None if exclude is None else os.path.realpath(exclude)
    for directory, folders, files in os.walk(path):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(directory, name)) != excluded
        )
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in image_suffixes():
                yield os.path.join(directory, name)
