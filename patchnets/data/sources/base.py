"""Where images come from: a source has named splits, and a split gives its examples by position.

A source knows nothing of batches. `data/on_device.py` and, for what does not fit in memory, `data/streaming` make
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from patchnets.data.decode import PixelRules

Example = tuple[UInt8[np.ndarray, "height width channels"], int]


class Records(Protocol):
    """The examples of one split, in a fixed order that is the same on every machine.

    Records can be pickled, and read, in a process that has neither JAX nor TensorFlow.
    """

    rules: PixelRules  # by which encoded images are decoded

    def __len__(self) -> int: ...

    def fingerprint(self) -> int:
        """A crc32 that changes with which examples there are and their order; wherever they lie, reading none."""

    def examples(self, positions: Sequence[int], size: int | None = None) -> list[Example]:
        """Some images and their labels; cropped and resized to `size` pixels a side where that is given.

        Raises:
          RunError: one cannot be decoded; the message names the file or record.
        """

    def native_size(self) -> int | None:
        """The side in pixels if images are squares of one size, as far as one can tell without reading them all."""

    def encoded(self, position: int) -> tuple[bytes, int]:
        """One image as it is stored, and its label.

        Raises:
          RunError: it cannot be read; the message names the file or record.
          UserError: the images of this split are not stored encoded.
        """

    def name_of(self, position: int) -> str:
        """What to call an example in an error: its file, or its record and split."""


class Source(Protocol):
    """A data set."""

    name: str
    version: str  # changes when the images do: part of the key under which decoded images are cached
    class_names: tuple[str, ...]
    channels: int
    sizes: Mapping[str, int]  # split name -> number of examples
    encoded: bool  # whether images are stored encoded, so that they can be read while training

    @property
    def notes(self) -> Sequence[str]:
        """Lines about what lies there and is not used."""

    def records(self, split: str) -> Records:
        """The examples of a whole split, named as in `sizes`."""
