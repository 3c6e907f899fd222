"""Checksums of the files of a checkpoint.

Orbax verifies none: of most bytes of a checkpoint, a bit that has changed on the disk restores another weight.
"""

import json
import pathlib
import re
import sys
from collections.abc import Mapping

from patchnets.runtime.files import crc32, write_atomically

FILE_NAME = "checksums.json"
METRICS = "metrics/metrics"
LINE = re.compile(r'^ *("[^"]+"): (\d+),?\n', re.MULTILINE)  # of one file, to its end
WRITTEN_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")  # by orbax: when the checkpoint was committed


def write_checksums(directory: pathlib.Path) -> None:
    """Write the CRC-32 of every file of a checkpoint into it."""
    files = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}
    checksums = {name: crc32(path) for name, path in files.items() if name not in WRITTEN_LATER}
    write_atomically(directory / FILE_NAME, json.dumps({"crc32": checksums}, indent=1) + "\n", durable=True)


def verify_checksums(directory: pathlib.Path, share: slice = slice(None), name: str | None = None) -> None:
    """Compare the files of a checkpoint, or a share of them, or the `name`d one, with their checksums.

    A checkpoint without checksums, from before they were written, passes. So does one whose checksums are torn, as by a
    power cut: files whose lines are left are compared, and a line on stderr says that others are not.

    Raises:
      ValueError: a file has changed since it was saved; the message names it.
      OSError: a file is missing or cannot be read.
    """
    if not (directory / FILE_NAME).exists():
        return
    checksums, torn = _read_checksums(directory / FILE_NAME)
    if torn and name is None and not share.start:
        print(
            f"{directory / FILE_NAME} cannot be read; of the files of this checkpoint {len(checksums)} are verified, "
            "the others are not",
            file=sys.stderr,
        )
    for file in [name] if name else sorted(checksums)[share]:
        if file in checksums and crc32(directory / file) != checksums[file]:
            raise ValueError(f"{file} has changed since it was saved")


def _read_checksums(path: pathlib.Path) -> tuple[Mapping[str, int], bool]:
    """Return {file: CRC-32}, and whether some are missing, for the file is torn."""
    content = path.read_bytes()
    try:
        return dict(json.loads(content)["crc32"]), False
    except (ValueError, KeyError, TypeError):
        lines = LINE.findall(content.decode(errors="replace"))
        return {json.loads(name): int(value) for name, value in lines}, True
