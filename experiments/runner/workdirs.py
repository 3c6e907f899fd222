"""The folders of runs: whether a process is at work in one, and whether the figures there can be used."""

import json
import math
import pathlib
from typing import Any

from patchnets.runtime.files import lock_file

METRICS = {"accuracy": "top-1", "top5_accuracy": "top-5"}
COUNTED = ("steps", "epochs", "params", "wall_seconds")  # which every summary has
FIGURES = ("images_per_second", *(f"{split}_{metric}" for split in ("val", "test") for metric in METRICS))


def locked(directory: pathlib.Path) -> bool:
    """Whether a process is at work in a run's folder, such as one that outlived the program that had started it."""
    if not (directory / ".lock").exists():
        return False
    try:
        lock_file(directory / ".lock", wait=False).close()
    except BlockingIOError:
        return True
    except OSError:  # what else is wrong, the run tells
        return False
    return False


def is_number(value: Any) -> bool:
    """Whether a value from a file is a number that can be reckoned with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def usable(summary: Any) -> bool:
    """Whether what was read as a summary has all that reports need, each of its kind."""
    return (
        isinstance(summary, dict)
        and all(is_number(summary.get(name)) for name in COUNTED)
        and all(is_number(summary[name]) for name in FIGURES if name in summary)
        and isinstance(summary.get("config_hash"), str)
        and isinstance(summary.get("device"), str)
        and isinstance(summary.get("versions"), dict)
    )


def move_damaged_aside(directory: pathlib.Path) -> None:
    """Renames a summary that cannot be used, for which the training program would take the run as finished."""
    path = directory / "summary.json"
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError):  # which that program takes for none itself
        return
    if not usable(summary):
        path.replace(path.with_name(f"{path.name}.damaged"))
