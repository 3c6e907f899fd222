"""The handwritten digits that come with scikit-learn: 1,797 real images of 8 x 8 pixels, nothing to download.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998 (its test set).
"""

import functools
import types
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from patchnets.data import splits
from patchnets.data.sources import Example
from patchnets.errors import UserError

TEST_SHARE = 0.2


@functools.cache
def _load() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{split: (images, labels)}. scikit-learn takes a second to import, so only when the images are asked for."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    # Counts of ink from 0 to 16, spread over the range of a byte: 0, 16, ..., 240, 255.
    images = np.minimum(bunch.images * 16, 255).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    train, test = splits.stratified(labels, TEST_SHARE)
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


class DigitRecords:
    def __init__(self, split: str, count: int):
        self.split, self.count = split, count

    def __len__(self) -> int:
        return self.count

    def examples(self, positions: Sequence[int], size: int | None = None) -> list[Example]:
        images, labels = _load()[self.split]
        return [(images[i], int(labels[i])) for i in positions]

    def native_size(self) -> int:
        return 8

    def encoded(self, position: int) -> tuple[bytes, int]:
        raise UserError("digits take 0.1 MiB and are always resident; set config.dataset.feed=resident")

    def name_of(self, position: int) -> str:
        return f"image {position} of digits {self.split}"

    def fingerprint(self) -> int:
        return zlib.crc32(f"digits {self.split}".encode())


class Digits:
    """A fixed, stratified fifth is the test split; the rest is train, shuffled."""

    name = "digits"
    version = "1"
    class_names = tuple("0123456789")
    channels = 1
    encoded = False
    sizes: Mapping[str, int] = types.MappingProxyType({"train": 1438, "test": 359})

    def records(self, split: str) -> DigitRecords:
        return DigitRecords(split, self.sizes[split])
