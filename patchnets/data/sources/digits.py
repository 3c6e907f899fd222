"""Handwritten digits that come with scikit-learn: 1,797 images of 8 x 8 pixels, without a download.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998 (its test set).
"""

import functools
import importlib.util
import pathlib
import types
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from patchnets.data import splits
from patchnets.data.bit_depth import ValueRanges
from patchnets.data.pixel_rules import DEFAULT_RULES
from patchnets.data.sources.base import Example
from patchnets.errors import UserError

TEST_SHARE = 0.2


@functools.cache
def _load() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return {split: (images, labels)}."""
    rows = _table()
    # Scale counts of ink from 0 to 16 to a byte: 0, 16, ..., 240, 255.
    images = np.minimum(rows[:, :-1] * 16, 255).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = rows[:, -1].astype(np.int32)
    train, test = splits.stratified(labels, TEST_SHARE)
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


def _table() -> Int[np.ndarray, "images pixels_and_label"]:
    """Read scikit-learn's CSV directly: importing scikit-learn takes seconds."""
    for location in getattr(importlib.util.find_spec("sklearn"), "submodule_search_locations", None) or ():
        table = pathlib.Path(location) / "datasets" / "data" / "digits.csv.gz"
        if table.is_file():
            return np.loadtxt(table, delimiter=",", dtype=np.int32)
    from sklearn import datasets  # for a release that stores it elsewhere

    bunch = datasets.load_digits()
    return np.column_stack([bunch.data, bunch.target]).astype(np.int32)


class DigitRecords:
    """Examples of one split of the digits, all in memory."""

    rules = DEFAULT_RULES

    def __init__(self, split: str, count: int):
        self.split, self.count = split, count

    def __len__(self) -> int:
        return self.count

    def examples(self, positions: Sequence[int], size: int | None = None) -> list[Example]:
        images, labels = _load()[self.split]
        return [(images[i], int(labels[i])) for i in positions]

    def native_size(self, position: int = 0) -> int:
        return 8

    def encoded(self, position: int) -> tuple[bytes, int]:
        raise UserError("digits take 0.1 MiB and are always on the device; set config.dataset.loader=on_device")

    def stored(self, position: int) -> bytes:
        return self.encoded(position)[0]

    def deep_candidates(self) -> Sequence[int]:
        return ()

    def name_of(self, position: int) -> str:
        return f"image {position} of digits {self.split}"

    def fingerprint(self) -> int:
        return zlib.crc32(f"digits {self.split}".encode())


class Digits:
    """Source of the digits: a fixed, stratified fifth is test, and the rest, shuffled, is train."""

    name = "digits"
    version = "1"
    class_names = tuple("0123456789")
    channels = 1
    encoded = False
    notes = ()
    sizes: Mapping[str, int] = types.MappingProxyType({"train": 1438, "test": 359})

    def records(self, split: str) -> DigitRecords:
        return DigitRecords(split, self.sizes[split])

    def with_ranges(self, ranges: ValueRanges) -> "Digits":
        return self  # its images have 8 bits
