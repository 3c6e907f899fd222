"""Cache of decoded images on disk: each split of a data set is decoded once, to uint8 or uint16, and memory-mapped.

An entry is a folder of images.npy, labels.npy and entry.json. It is written to a temporary folder and renamed, so that
it is either complete or absent. Its checksums are verified whenever it is opened. Records that could not be read, where
these may be skipped, are black, with label 0, and tried again whenever it is opened.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt
from tqdm import tqdm

from patchnets.data.loader import MAX_CONSECUTIVE_FAILURES, too_many_unreadable
from patchnets.data.sources.base import Example, Records, Source
from patchnets.errors import RunError, UserError
from patchnets.runtime.files import crc32, lock_file, removed_afterwards
from patchnets.runtime.format import format_bytes

STALE_SECONDS = 24 * 3600
FRESH_SECONDS = 5.0  # until when a temporary folder may not be locked yet
LOCK = "writer.lock"  # in a temporary folder
CHUNK = 64  # images that a worker decodes at a time


class Decoded(NamedTuple):
    """The images and labels of a split; `unreadable` maps positions of those that could not be read to the errors."""

    images: UInt[np.ndarray, "examples height width channels"]
    labels: Int32[np.ndarray, " examples"]
    unreadable: dict[int, str]


class MixedImageSizes(Exception):
    """Error for images of different sizes."""


def load_or_decode(
    source: Source,
    split: str,
    image_size: int,
    root: pathlib.Path,
    max_bytes: float,
    held_bytes: int = 0,
    keep_native: bool = True,
    may_resize: bool = True,
    skip: bool = False,
) -> Decoded:
    """Return all images and labels of a split from the cache, decoding them first if they are not in it.

    Images keep their own size if all are squares of one size no larger than `image_size`; otherwise, or without
    `keep_native`, they are stored at `image_size`. With `skip`, images that cannot be read are black and named.

    Raises:
      UserError: they take more than `max_bytes` with `held_bytes` of other splits, or more than the disk has.
      RunError: an image cannot be decoded, or with `skip` too many in a row; nothing is left behind.
      MixedImageSizes: without `may_resize`, for images that are not squares of one size no larger than `image_size`.
    """
    key = f"{source.name}-{source.version}-{split}-{'at-most' if keep_native else 'at'}-{image_size}px"
    entry = root / "data" / "".join(c if c.isalnum() or c in "-._" else "_" for c in key)

    def opened() -> Decoded | None:
        decoded = _open_entry(entry)
        if decoded is None:
            return None
        _refuse_too_large(source, split, decoded.images.shape[1], decoded.images.itemsize, max_bytes, held_bytes)
        resized = False if may_resize else _was_resized(entry)
        if resized:
            raise MixedImageSizes
        readable = decoded.unreadable and not _unreadable_still(source.records(split), decoded.unreadable, skip)
        if resized is None or readable:
            shutil.rmtree(entry, ignore_errors=True)
            return None
        return decoded

    _remove_abandoned(entry.parent)
    if cached := opened():
        return cached
    records = source.records(split)
    native = _native_size(records, skip)
    if native is None or native > image_size or not keep_native:
        native = None
    if native is None and not may_resize:
        raise MixedImageSizes
    side, level_bytes = native or image_size, records.rules.dtype.itemsize
    _refuse_too_large(source, split, side, level_bytes, max_bytes, held_bytes)
    with _one_at_a_time(entry):
        if cached := opened():
            return cached
        try:
            _write_entry(records, (len(records), side, side, source.channels), None if native else side, entry, skip)
        except MixedImageSizes:  # known only after reading them
            if not may_resize:
                raise
            _refuse_too_large(source, split, image_size, level_bytes, max_bytes, held_bytes)
            _write_entry(records, (len(records), image_size, image_size, source.channels), image_size, entry, skip)
    decoded = _open_entry(entry)
    if decoded is None:
        raise RunError(f"{entry} is damaged right after it was written; check the disk")
    return decoded


def _native_size(records: Records, skip: bool) -> int | None:
    """Return the native size by the first image; with `skip`, by the first that can be read, None if there is none."""
    for position in range(min(len(records), MAX_CONSECUTIVE_FAILURES)):
        try:
            return records.native_size(position)
        except RunError:
            if not skip:
                raise
    return None


def _unreadable_still(records: Records, positions: Collection[int], skip: bool) -> bool:
    """Return whether none of these records can be read by now. Without `skip`, raise the error of one that cannot."""
    for position in positions:
        try:
            records.examples([position])
            return False
        except RunError:
            if not skip:
                raise
    return True


@contextlib.contextmanager
def _one_at_a_time(entry: pathlib.Path) -> Iterator[None]:
    """Let one process decode an entry while the others wait, on this machine or a shared disk.

    If the system or the disk has no locks, each process decodes for itself.
    """
    lock = entry.with_name(f".{entry.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = lock_file(lock, wait=True)
    except OSError:  # a read-only disk is an error when the entry is written
        yield
        return
    with held:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _refuse_too_large(
    source: Source, split: str, side: int, level_bytes: int, max_bytes: float, held_bytes: int
) -> None:
    size = source.sizes[split] * side * side * source.channels * level_bytes
    if held_bytes + size > max_bytes:
        others = f" in addition to {format_bytes(held_bytes)} of other splits" if held_bytes else ""
        streamed = ", or set config.dataset.loader=streaming" if source.encoded else ""
        raise UserError(
            f"{source.name} {split}: {source.sizes[split]:,} images of {side} x {side} pixels take "
            f"{format_bytes(size)} of memory{others}, and {format_bytes(max_bytes)} are allowed; raise "
            f"config.dataset.max_on_device_gib, lower config.image_size{streamed}"
        )


def _open_entry(entry: pathlib.Path) -> Decoded | None:
    """Return the memory-mapped entry; None if it does not exist, or is damaged and was therefore removed."""
    if not entry.is_dir():
        return None
    try:
        stated = json.loads((entry / "entry.json").read_text())
        if any(crc32(entry / name) != stated["checksums"][name] for name in ("images.npy", "labels.npy")):
            raise ValueError("checksum")
        images = np.load(entry / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(entry / "labels.npy", allow_pickle=False)
        return Decoded(images, labels, {int(i): str(why) for i, why in stated.get("unreadable", {}).items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        print(f"{entry} is damaged; decoding it again", file=sys.stderr)
        shutil.rmtree(entry, ignore_errors=True)
        return None


def _was_resized(entry: pathlib.Path) -> bool | None:
    """Return whether an entry's images are not of the size of their files; None if an older version wrote it."""
    return json.loads((entry / "entry.json").read_text()).get("resized")


def _reserve(path: pathlib.Path) -> None:
    """Reserve a sparse file's disk space: writing to a mapped page on a full disk kills the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise UserError(
                f"{path.parent.parent} has no room for {format_bytes(size)} of decoded images ({error.strerror}); "
                "name another place with config.dataset.cache_dir"
            ) from error


def _read(records: Records, positions: Sequence[int], size: int | None, skip: bool) -> list[Example | RunError]:
    """Return the examples, with `skip` the error in place of each that cannot be read."""
    try:
        return list(records.examples(positions, size))
    except RunError as error:
        if not skip:
            raise
        if len(positions) == 1:
            return [error]
    return [example for position in positions for example in _read(records, [position], size, skip)]


def _write_entry(
    records: Records, shape: tuple[int, ...], resize_to: int | None, entry: pathlib.Path, skip: bool
) -> None:
    """Decode all records into a new entry. Raise MixedImageSizes, leaving no files, if sizes differ.

    If another process was faster, keep its entry and drop this one."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    with removed_afterwards(temporary) as partial, _held(partial / LOCK):
        partial.chmod(0o755)
        images = np.lib.format.open_memmap(partial / "images.npy", mode="w+", dtype=records.rules.dtype, shape=shape)
        _reserve(partial / "images.npy")
        labels = np.zeros(shape[0], np.int32)
        unreadable: dict[int, str] = {}
        in_a_row: list[str] = []
        bar = tqdm(total=shape[0], desc="decoding images", unit=" images", disable=None, leave=False)
        chunks = [range(first, min(first + CHUNK, shape[0])) for first in range(0, shape[0], CHUNK)]
        with concurrent.futures.ThreadPoolExecutor() as pool, bar:
            for chunk, examples in zip(chunks, pool.map(lambda chunk: _read(records, chunk, resize_to, skip), chunks)):
                for i, example in zip(chunk, examples):
                    if isinstance(example, RunError):
                        unreadable[i] = str(example)
                        in_a_row.append(unreadable[i])
                        if len(in_a_row) >= min(MAX_CONSECUTIVE_FAILURES, shape[0]):
                            raise too_many_unreadable(len(in_a_row), in_a_row[0])
                        continue
                    in_a_row.clear()
                    if example[0].shape != shape[1:]:
                        raise MixedImageSizes
                    images[i], labels[i] = example
                bar.update(len(chunk))
        images.flush()
        del images
        np.save(partial / "labels.npy", labels)
        checksums = {name: crc32(partial / name) for name in ("images.npy", "labels.npy")}
        stated = {"checksums": checksums, "resized": resize_to is not None, "unreadable": unreadable}
        (partial / "entry.json").write_text(json.dumps(stated))
        (partial / LOCK).unlink(missing_ok=True)
        try:
            partial.rename(entry)
        except OSError:
            if not entry.is_dir():
                raise


@contextlib.contextmanager
def _held(lock: pathlib.Path) -> Iterator[None]:
    """Hold a lock, by which other processes of this machine see that this one is alive, if the disk has locks."""
    try:
        held = lock_file(lock, wait=False)
    except OSError:
        yield
        return
    with held:
        held.write(platform.node())  # on some shared disks locks are seen by one machine only
        held.flush()
        yield


def _remove_abandoned(folder: pathlib.Path) -> None:
    """Remove the temporary folders of processes that were killed while decoding.

    Without locks, or if an older version or another machine made them, those that are a day old.
    """
    for partial in folder.glob(".*-*"):
        with contextlib.suppress(OSError):  # it is gone meanwhile
            age = time.time() - partial.stat().st_mtime
            abandoned = age > STALE_SECONDS
            if age > FRESH_SECONDS and (partial / LOCK).exists() and (partial / LOCK).read_text() == platform.node():
                try:
                    lock_file(partial / LOCK, wait=False).close()
                    abandoned = True
                except BlockingIOError:  # its writer is alive
                    abandoned = False
                except OSError:  # there are no locks
                    pass
            if abandoned:
                shutil.rmtree(partial, ignore_errors=True)
