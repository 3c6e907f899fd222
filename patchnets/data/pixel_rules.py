"""Rules for turning a file into pixels."""

import dataclasses

import numpy as np

from patchnets.data.bit_depth import ValueRanges, dtype_of

BACKGROUNDS = {"white": (255, 255, 255, 255), "black": (0, 0, 0, 255)}


@dataclasses.dataclass(frozen=True)
class PixelRules:
    """Rules for turning a file into pixels.

    Attributes:
      exif_orientation: turn and mirror the image as its EXIF header says, as viewers do. TFDS and torchvision do not.
      background: white or black, the color behind transparent pixels; or none, to drop transparency and take the color
        stored under it.
      value_ranges: of images of more than 8 bits, the values that become the lowest and the highest level, for all
        channels or for each; None: 0 and 65,535.
      level_bits: 8 for levels from 0 to 255, or 16 for levels from 0 to 65,535, which keep what such images have.
    """

    exif_orientation: bool = True
    background: str = "white"
    value_ranges: ValueRanges | None = None
    level_bits: int = 8

    @property
    def tag(self) -> str:
        """Short name that identifies these rules."""
        ranges = "" if self.value_ranges is None else f"-{self.value_ranges}"
        bits = "" if self.level_bits == 8 else f"-{self.level_bits}bit"
        return f"{'exif' if self.exif_orientation else 'stored'}-{self.background}{ranges}{bits}"

    @property
    def dtype(self) -> np.dtype:
        """Type of the levels: uint8 or uint16."""
        return dtype_of(self.level_bits)

    def with_ranges(self, ranges: ValueRanges) -> "PixelRules":
        """Return the rules for a data set with images of more than 8 bits, whose levels have 16."""
        return dataclasses.replace(self, value_ranges=ranges, level_bits=16)


DEFAULT_RULES = PixelRules()
