"""Pixels of an opened image by the rules of a data set: upright, over a background, in gray or RGB."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from patchnets.data import bit_depth
from patchnets.data.pixel_rules import BACKGROUNDS, PixelRules

EXIF_ORIENTATION = 0x0112  # the tag; 1 is upright
GRAY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"}


def orientation(image: Image.Image, rules: PixelRules) -> int:
    """Return the EXIF orientation from 1 to 8; 1 if there is none or the rules ignore it."""
    tag = image.getexif().get(EXIF_ORIENTATION, 1) if rules.exif_orientation else 1
    return tag if tag in range(1, 9) else 1


def split_pixels(
    file: Image.Image, channels: int, rules: PixelRules, reopen: Callable[[], Image.Image] | None
) -> list[Image.Image]:
    """Return an opened image upright, in gray or RGB, as `bit_depth.split_channels` has it.

    Args:
      file: an opened image, whose pixels are not loaded yet.
      channels: 1 for gray, 3 for RGB.
      reopen: opens it again; None if it is not known from where.

    Raises:
      ValueError: other `channels`, or an image of which not all that is needed can be read.
    """
    if channels not in (1, 3):
        raise ValueError(f"it has {1 if file.mode in GRAY_MODES else 3} channels; expected {channels}")
    low = None if reopen is None and rules.value_ranges is None else bit_depth.low_bytes(file, reopen or _refuse)
    image, low = _upright(file, rules), None if low is None else _upright(low, rules)
    values = bit_depth.pixel_values(image, low)
    if values is None:
        return _split_shallow(image, channels, rules)
    levels = bit_depth.to_levels(values, rules.value_ranges or bit_depth.default_ranges(values.dtype), rules.level_bits)
    opacity = bit_depth.opacity(image, low)
    if rules.level_bits == 8:
        shallow = Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
        if opacity is not None:
            is_key = image.mode != "RGBA"
            shallow.putalpha(Image.fromarray(np.uint8(255 * opacity[..., 0])) if is_key else image.getchannel("A"))
        return _split_shallow(shallow, channels, rules)
    if opacity is not None and rules.background != "none":
        levels = bit_depth.lay_on(levels, opacity, 257 * BACKGROUNDS[rules.background][0])
    return bit_depth.split_channels(levels, channels)


def _refuse() -> Image.Image:
    raise ValueError("of the 16 bits of its colors Pillow keeps 8; give the path of its file or an array")


def _upright(image: Image.Image, rules: PixelRules) -> Image.Image:
    return image if orientation(image, rules) == 1 else ImageOps.exif_transpose(image)


def _split_shallow(image: Image.Image, channels: int, rules: PixelRules) -> list[Image.Image]:
    """Return `split_pixels` of an upright image of 8 bits."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        if rules.background != "none":
            canvas = Image.new("RGBA", image.size, BACKGROUNDS[rules.background])
            image = Image.alpha_composite(canvas, image)
    image = image.convert("RGB" if channels == 3 else "L")
    if rules.level_bits == 8:
        return [image]
    return bit_depth.split_channels(bit_depth.widen(bit_depth.join_channels([image]), rules.level_bits), channels)
