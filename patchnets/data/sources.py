"""Where images come from: a source has named splits, and a split gives its examples by position.

A source knows nothing of batches. `data/resident.py` (and, for what does not fit in memory, a stream) makes them.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import ml_collections
import numpy as np
from jaxtyping import UInt8

from patchnets.errors import UserError

Example = tuple[UInt8[np.ndarray, "height width channels"], int]


class Records(Protocol):
    """The examples of one split, in a fixed order that is the same on every machine."""

    def __len__(self) -> int: ...

    def examples(self, positions: Sequence[int], size: int | None = None) -> list[Example]:
        """Some images and their labels; cropped and resized to `size` pixels a side where that is given.

        Raises:
          RunError: one cannot be decoded; the message names the file or record.
        """

    def native_size(self) -> int | None:
        """The side in pixels if images are squares of one size, as far as one can tell without reading them all."""


class Source(Protocol):
    """A data set."""

    name: str
    version: str  # changes when the images do: part of the key under which decoded images are cached
    class_names: tuple[str, ...]
    channels: int
    sizes: Mapping[str, int]  # split name -> number of examples

    def records(self, split: str) -> Records:
        """The examples of a whole split, named as in `sizes`."""


def open_source(config: ml_collections.ConfigDict) -> Source:
    """The data set that `config.dataset` names.

    Raises:
      UserError: it does not exist, is no image classification data set, or cannot be had.
    """
    if config.name == "digits":
        from patchnets.data import digits

        return digits.Digits()
    if config.name == "folder":
        from patchnets.data import folder

        if not config.path:
            raise UserError("config.dataset.path is not set; for folder it names where train/CLASS/*.jpg|png lie")
        return folder.Folder(config.path)
    from patchnets.data import tfds_source

    return tfds_source.open_tfds(config.name, config.data_dir)
