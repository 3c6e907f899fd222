"""Write the files of a report, each atomically."""

import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

from experiments.runner import learning_curves
from experiments.runner.results import Result
from patchnets.errors import first_line
from patchnets.runtime.files import write_atomically


def write(directory: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Write {name: content} into `directory`."""
    for name, content in files.items():
        write_atomically(directory / name, content)


def draw(
    directory: pathlib.Path,
    results: Sequence[Result],
    pictures: Mapping[str, Callable[[Sequence[Result], pathlib.Path], bool]],
) -> list[str]:
    """Draw {name: function} and return the names of plots drawn; functions return False if there is nothing to draw.

    Plotting errors are printed, not raised. A plot that was not drawn is deleted if an earlier one exists.
    """
    drawn = []
    for name, make in pictures.items():
        try:
            if make(results, directory / name):
                drawn.append(name)
                continue
        except Exception as error:  # the report is useful without the plot
            print(f"{name} could not be drawn: {first_line(error)}", file=sys.stderr)
        (directory / name).unlink(missing_ok=True)
    return drawn


def curves(results: Sequence[Result], path: pathlib.Path) -> bool:
    """Plot the learning curves of all results; return False if there are none."""
    drawn = learning_curves.curves(results)
    if drawn:
        write_atomically(path, drawn)
    return drawn is not None


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Format headings and rows as lines with aligned columns."""
    lines = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths)).rstrip() for line in lines]
