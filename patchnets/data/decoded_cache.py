"""Cache of decoded images on disk: each split of a data set is decoded once, as uint8, and memory-mapped.

An entry is a folder of images.npy, labels.npy and entry.json. It is written to a temporary folder and renamed, so that
it is either complete or absent. Its checksums are verified whenever it is opened.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int32, UInt8
from tqdm import tqdm

from patchnets.data.sources.base import Records, Source
from patchnets.errors import RunError, UserError
from patchnets.runtime.files import lock_file
from patchnets.runtime.format import format_bytes

STALE_SECONDS = 24 * 3600
CHUNK = 64  # images that a worker decodes at a time
Decoded = tuple[UInt8[np.ndarray, "examples height width channels"], Int32[np.ndarray, " examples"]]


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
) -> Decoded:
    """Return all images and labels of a split from the cache, decoding them first if they are not in it.

    Images keep their own size if all are squares of one size no larger than `image_size`; otherwise, or without
    `keep_native`, they are stored at `image_size`.

    Raises:
      UserError: they take more than `max_bytes` with `held_bytes` of other splits, or more than the disk has.
      RunError: an image cannot be decoded; nothing is left behind.
      MixedImageSizes: without `may_resize`, for images that are not squares of one size no larger than `image_size`.
    """
    key = f"{source.name}-{source.version}-{split}-{'at-most' if keep_native else 'at'}-{image_size}px"
    entry = root / "data" / "".join(c if c.isalnum() or c in "-._" else "_" for c in key)

    def opened() -> Decoded | None:
        decoded = _open_entry(entry)
        if decoded is not None:
            _refuse_too_large(source, split, decoded[0].shape[1], max_bytes, held_bytes)
            if not may_resize and (resized := _was_resized(entry)) is not False:
                if resized:
                    raise MixedImageSizes
                shutil.rmtree(entry, ignore_errors=True)
                return None
        return decoded

    if cached := opened():
        return cached
    records = source.records(split)
    native = records.native_size()
    if native is None or native > image_size or not keep_native:
        native = None
    if native is None and not may_resize:
        raise MixedImageSizes
    side = native or image_size
    _refuse_too_large(source, split, side, max_bytes, held_bytes)
    with _one_at_a_time(entry):
        if cached := opened():
            return cached
        try:
            _write_entry(records, (len(records), side, side, source.channels), None if native else side, entry)
        except MixedImageSizes:  # known only after reading them
            if not may_resize:
                raise
            _refuse_too_large(source, split, image_size, max_bytes, held_bytes)
            _write_entry(records, (len(records), image_size, image_size, source.channels), image_size, entry)
    decoded = _open_entry(entry)
    if decoded is None:
        raise RunError(f"{entry} is damaged right after it was written; check the disk")
    return decoded


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


def _refuse_too_large(source: Source, split: str, side: int, max_bytes: float, held_bytes: int) -> None:
    size = source.sizes[split] * side * side * source.channels
    if held_bytes + size > max_bytes:
        others = f" in addition to {format_bytes(held_bytes)} of other splits" if held_bytes else ""
        streamed = ", or set config.dataset.loader=streaming" if source.encoded else ""
        raise UserError(
            f"{source.name} {split}: {source.sizes[split]:,} images of {side} x {side} pixels take "
            f"{format_bytes(size)} of memory{others}, and {format_bytes(max_bytes)} are allowed; raise "
            f"config.dataset.max_on_device_gib, lower config.image_size{streamed}"
        )


def _checksum(path: pathlib.Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _open_entry(entry: pathlib.Path) -> Decoded | None:
    """Return the memory-mapped entry; None if it does not exist, or is damaged and was therefore removed."""
    if not entry.is_dir():
        return None
    try:
        stated = json.loads((entry / "entry.json").read_text())
        if any(_checksum(entry / name) != stated["checksums"][name] for name in ("images.npy", "labels.npy")):
            raise ValueError("checksum")
        images = np.load(entry / "images.npy", mmap_mode="r", allow_pickle=False)
        return images, np.load(entry / "labels.npy", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError):
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


def _write_entry(records: Records, shape: tuple[int, ...], resize_to: int | None, entry: pathlib.Path) -> None:
    """Decode all records into a new entry. Raise MixedImageSizes, leaving no files, if sizes differ.

    If another process was faster, keep its entry and drop this one."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    for stale in entry.parent.glob(f".{entry.name}-*"):  # left by a process that was killed
        if time.time() - stale.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(stale, ignore_errors=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    partial.chmod(0o755)
    try:
        images = np.lib.format.open_memmap(partial / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        _reserve(partial / "images.npy")
        labels = np.empty(shape[0], np.int32)
        bar = tqdm(total=shape[0], desc="decoding images", unit=" images", disable=None, leave=False)
        chunks = [range(first, min(first + CHUNK, shape[0])) for first in range(0, shape[0], CHUNK)]
        with concurrent.futures.ThreadPoolExecutor() as pool, bar:
            for chunk, examples in zip(chunks, pool.map(lambda chunk: records.examples(chunk, resize_to), chunks)):
                for i, (image, label) in zip(chunk, examples):
                    if image.shape != shape[1:]:
                        raise MixedImageSizes
                    images[i], labels[i] = image, label
                bar.update(len(chunk))
        images.flush()
        del images
        np.save(partial / "labels.npy", labels)
        checksums = {name: _checksum(partial / name) for name in ("images.npy", "labels.npy")}
        stated = {"checksums": checksums, "resized": resize_to is not None}
        (partial / "entry.json").write_text(json.dumps(stated))
        try:
            partial.rename(entry)
        except OSError:
            if not entry.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
