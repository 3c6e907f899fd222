"""Rules for turning a file into pixels."""

import dataclasses

from patchnets.data.bit_depth import ValueRanges

BACKGROUNDS = {"white": (255, 255, 255, 255), "black": (0, 0, 0, 255)}


@dataclasses.dataclass(frozen=True)
class PixelRules:
    """Rules for turning a file into pixels.

    Attributes:
      exif_orientation: turn and mirror the image as its EXIF header says, as viewers do. TFDS and torchvision do not.
      background: white or black, the color behind transparent pixels; or none, to drop transparency and take the color
        stored under it.
      value_ranges: of images of more than 8 bits, the values that become levels 0 and 255, for all channels or for
        each; None: 0 and 65,535.
    """

    exif_orientation: bool = True
    background: str = "white"
    value_ranges: ValueRanges | None = None

    @property
    def tag(self) -> str:
        """Short name that identifies these rules."""
        ranges = "" if self.value_ranges is None else f"-{self.value_ranges}"
        return f"{'exif' if self.exif_orientation else 'stored'}-{self.background}{ranges}"


DEFAULT_RULES = PixelRules()
