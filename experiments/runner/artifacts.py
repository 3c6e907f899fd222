"""The files of a report, each written whole or not at all."""

import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

from experiments.runner import learning_curves
from experiments.runner.results import Result
from patchnets.errors import first_line
from patchnets.runtime.files import write_atomically


def write(directory: pathlib.Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        write_atomically(directory / name, content)


def draw(
    directory: pathlib.Path,
    results: Sequence[Result],
    pictures: Mapping[str, Callable[[Sequence[Result], pathlib.Path], bool]],
) -> list[str]:
    """The names of the pictures that were drawn: each function says whether there was something to draw.

    A failure to draw is told, and nothing is left of an earlier picture.
    """
    drawn = []
    for name, make in pictures.items():
        try:
            if make(results, directory / name):
                drawn.append(name)
                continue
        except Exception as error:  # a report without its picture is one
            print(f"{name} could not be drawn: {first_line(error)}", file=sys.stderr)
        (directory / name).unlink(missing_ok=True)
    return drawn


def curves(results: Sequence[Result], path: pathlib.Path) -> bool:
    """The learning curves of all results; false where there are none."""
    drawn = learning_curves.curves(results)
    if drawn:
        write_atomically(path, drawn)
    return drawn is not None


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines for a terminal, in columns."""
    lines = [heads, *rows]
    wide = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(f"{cell:<{w}}" for cell, w in zip(line, wide)).rstrip() for line in lines]
