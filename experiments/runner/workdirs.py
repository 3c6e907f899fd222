"""Inspect the work directories of runs: locks and summaries."""

import json
import math
import pathlib
from typing import Any

from patchnets.runtime.files import lock_file

METRICS = {"accuracy": "top-1", "top5_accuracy": "top-5"}
COUNTED = ("steps", "epochs", "params", "wall_seconds")  # in every summary
FIGURES = ("images_per_second", *(f"{split}_{metric}" for split in ("val", "test") for metric in METRICS))


def locked(directory: pathlib.Path) -> bool:
    """Return whether a process, perhaps started by an earlier program, is running in a work directory."""
    if not (directory / ".lock").exists():
        return False
    try:
        lock_file(directory / ".lock", wait=False).close()
    except BlockingIOError:
        return True
    except OSError:  # the run itself reports other errors
        return False
    return False


def is_number(value: Any) -> bool:
    """Return whether a value read from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def usable(summary: Any) -> bool:
    """Return whether a summary has all values that reports need, with the right types."""
    return (
        isinstance(summary, dict)
        and all(is_number(summary.get(name)) for name in COUNTED)
        and all(is_number(summary[name]) for name in FIGURES if name in summary)
        and isinstance(summary.get("config_hash"), str)
        and isinstance(summary.get("device"), str)
        and isinstance(summary.get("versions"), dict)
    )


def move_damaged_aside(directory: pathlib.Path) -> None:
    """Rename an unusable summary, so that the training program does not take the run as finished."""
    path = directory / "summary.json"
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError):  # the training program ignores such a file
        return
    if not usable(summary):
        path.replace(path.with_name(f"{path.name}.damaged"))
