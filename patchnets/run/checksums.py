"""Checksums of the files of a checkpoint.

Orbax verifies none: of most bytes of a checkpoint, a bit that has changed on the disk restores another weight.
"""

import json
import pathlib

from patchnets.runtime.files import crc32, write_atomically

FILE_NAME = "checksums.json"
METRICS = "metrics/metrics"
WRITTEN_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")  # by orbax: when the checkpoint was committed


def write_checksums(directory: pathlib.Path) -> None:
    """Write the CRC-32 of every file of a checkpoint into it."""
    files = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}
    checksums = {name: crc32(path) for name, path in files.items() if name not in WRITTEN_LATER}
    write_atomically(directory / FILE_NAME, json.dumps({"crc32": checksums}, indent=1) + "\n")


def verify_checksums(directory: pathlib.Path, share: slice = slice(None), name: str | None = None) -> None:
    """Compare the files of a checkpoint, or a share of them, or the `name`d one, with their checksums.

    A checkpoint without checksums, from before they were written, passes.

    Raises:
      ValueError: a file has changed since it was saved; the message names it.
      OSError: a file is missing or cannot be read.
    """
    if not (directory / FILE_NAME).exists():
        return
    try:
        checksums = dict(json.loads((directory / FILE_NAME).read_bytes())["crc32"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{FILE_NAME} has changed since it was saved") from error
    for file in [name] if name else sorted(checksums)[share]:
        if file in checksums and crc32(directory / file) != checksums[file]:
            raise ValueError(f"{file} has changed since it was saved")
