"""Interface of sources: named splits, whose examples are read by position.

Batches are made by `data/on_device.py` or, for data that do not fit in memory, by `data/streaming`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import UInt

from patchnets.data.bit_depth import ValueRanges
from patchnets.data.pixel_rules import PixelRules

Example = tuple[UInt[np.ndarray, "height width channels"], int]  # levels as of `PixelRules`


class Records(Protocol):
    """The examples of one split, in a fixed order that is the same on every machine.

    Records can be pickled, and be read in a process without JAX and TensorFlow.
    """

    rules: PixelRules  # for decoding encoded images

    def __len__(self) -> int: ...

    def fingerprint(self) -> int:
        """Return a CRC-32 of the examples and their order, without reading images or depending on their location."""

    def examples(self, positions: Sequence[int], size: int | None = None) -> list[Example]:
        """Return images and their labels, cropped and resized to `size` pixels a side unless it is None.

        Raises:
          RunError: an image cannot be decoded; the message names the file or record.
        """

    def native_size(self, position: int = 0) -> int | None:
        """Return the side in pixels if all images seem to be squares of one size, judged by that at `position`.

        Raises:
          RunError: that image cannot be read.
        """

    def encoded(self, position: int) -> tuple[bytes, int]:
        """Return one image as it is stored, and its label.

        Raises:
          RunError: it cannot be read; the message names the file or record.
          UserError: the images of this split are not stored encoded.
        """

    def stored(self, position: int) -> bytes | pathlib.Path:
        """Return one image as it is stored, or the path of its file. Errors: as `encoded`."""

    def deep_candidates(self) -> Sequence[int]:
        """Return the positions of the images that may have more than 8 bits, without reading them."""

    def name_of(self, position: int) -> str:
        """Return an example's name for errors: its file, or its record and split."""


class Source(Protocol):
    """A data set with named splits."""

    name: str
    class_names: tuple[str, ...]
    channels: int
    sizes: Mapping[str, int]  # split name -> number of examples
    encoded: bool  # whether images are stored encoded, as streaming needs

    @property
    def version(self) -> str:
        """A name that changes with the images; part of the key of the cache of decoded images."""

    @property
    def notes(self) -> Sequence[str]:
        """Lines to print about files that are ignored."""

    def records(self, split: str) -> Records:
        """Return the examples of a whole split, named as in `sizes`."""

    def with_ranges(self, ranges: ValueRanges) -> Source:
        """Return this source with `PixelRules.with_ranges`, and a version that says so."""
