"""Pixels of more than 8 bits, and images in .npy files, as levels from 0 to 255.

Pillow keeps 16-bit and float gray images as they are, but of 16-bit color images only the higher byte of each value.
It reads no .npy files.
"""

import io
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image

ValueRanges = tuple[tuple[float, float], ...]  # (lowest, highest): a pair for all channels, or a pair for each
SIXTEEN_BITS: ValueRanges = ((0.0, 65535.0),)
ARRAY_SUFFIX = ".npy"
# What Pillow calls the byte order of 16-bit colors, and the order in which it would keep the other byte.
OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}


def to_levels(values: Num[np.ndarray, "height width channels"], ranges: ValueRanges) -> UInt8[np.ndarray, "..."]:
    """Map the lowest value of each range to 0 and the highest to 255; clip others. NaN becomes 0."""
    low, high = np.array(ranges, np.float64).T
    with np.errstate(invalid="ignore", over="ignore"):
        levels = np.rint((values.astype(np.float64) - low) * (255 / np.maximum(high - low, np.finfo(np.float64).tiny)))
    return np.nan_to_num(np.clip(levels, 0, 255)).astype(np.uint8)


def is_array_file(data: Any) -> bool:
    """Return whether encoded bytes, or a path by its suffix, are those of an .npy file."""
    if isinstance(data, bytes):
        return data.startswith(np.lib.format.MAGIC_PREFIX)
    return isinstance(data, pathlib.Path) and data.suffix.lower() == ARRAY_SUFFIX


def is_png_of_eight_bits(data: bytes | pathlib.Path) -> bool:
    """Return whether a file is a PNG of at most 8 bits for each channel (PNG specification, 11.2.1)."""
    with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as file:
        head = file.read(25)
    return len(head) == 25 and head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR" and head[24] <= 8


def array_header(data: bytes | pathlib.Path) -> tuple[tuple[int, int, int], np.dtype]:
    """Return (height, width, channels) and dtype of an .npy file, without reading its values.

    Raises:
      ValueError: it holds no image, or is not as long as its header says.
    """
    with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise ValueError(f"its format is {version}; expected 1.0 or 2.0")
        shape, _, dtype = read[version](file)
        if dtype.kind not in "buif":
            raise ValueError(f"it is an array of {dtype}; expected integers or floats")
        begin = file.tell()
        if file.seek(0, io.SEEK_END) - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError("it is not as long as its header says")
    return image_shape(shape), dtype


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape of an array as (height, width, channels). Raise ValueError if it is none of an image."""
    full = (*shape, 1) if len(shape) == 2 else tuple(shape)
    channels_first = len(full) == 3 and (full[0] != full[1] == full[2] or full[0] <= 4 < full[2])
    if len(full) != 3 or 0 in full or channels_first:
        raise ValueError(f"it is of shape {tuple(shape)}; expected (height, width) or (height, width, channels)")
    if Image.MAX_IMAGE_PIXELS and full[0] * full[1] > 2 * Image.MAX_IMAGE_PIXELS:  # as Pillow refuses others
        raise ValueError(f"it has {full[0] * full[1]:,} pixels, more than {2 * Image.MAX_IMAGE_PIXELS:,}")
    return full[0], full[1], full[2]


def read_array(data: bytes | pathlib.Path) -> Num[np.ndarray, "height width channels"]:
    """Return the image of an .npy file; its header is checked first. Raise ValueError if it holds none."""
    shape, _ = array_header(data)
    return np.load(io.BytesIO(data) if isinstance(data, bytes) else data, allow_pickle=False).reshape(shape)


def has_eight_bits(dtype: np.dtype) -> bool:
    """Return whether values of this type are levels already: bytes, and truth values as 0 and 255."""
    return dtype in (np.uint8, np.bool_)


def array_levels(
    values: Num[np.ndarray, "height width channels"], ranges: ValueRanges | None
) -> UInt8[np.ndarray, "height width channels"]:
    """Return the levels of an array. Raise ValueError if they hang on a range and there is none."""
    if has_eight_bits(values.dtype):
        return values.astype(np.uint8) * 255 if values.dtype == np.bool_ else values
    if ranges is None and (values.dtype.kind, values.dtype.itemsize) != (
        "u",
        2,
    ):  # NumPy makes 64-bit integers of levels too
        raise ValueError(
            f"its pixels are {values.dtype} and their range is not known: no image of train has more than 8 bits"
        )
    if ranges is None:
        ranges = default_ranges(values.dtype)
    if len(ranges) not in (1, values.shape[-1]):
        raise ValueError(f"it has {values.shape[-1]} channels; expected {len(ranges)}")
    return to_levels(values, ranges)


def default_ranges(dtype: np.dtype) -> ValueRanges:
    """Return the range of 16-bit integers. Raise ValueError for floats, which have none."""
    if dtype.kind == "f":
        raise ValueError("its pixels are floats and their range is not known: no image of train has more than 8 bits")
    return SIXTEEN_BITS


def split_channels(levels: UInt8[np.ndarray, "height width channels"], channels: int) -> list[Image.Image]:
    """Return an image as Pillow's: one gray or RGB image if `channels` is 1 or 3, else a gray one for each channel.

    Raises:
      ValueError: it has another number of channels, and is neither gray nor RGB.
    """
    count = levels.shape[2]
    if count in (1, 3) and channels in (1, 3):
        image = Image.fromarray(np.ascontiguousarray(levels[..., 0] if count == 1 else levels))
        return [image.convert("RGB" if channels == 3 else "L")]
    if count != channels:
        raise ValueError(f"it has {count} channels; expected {channels}")
    return [Image.fromarray(np.ascontiguousarray(levels[..., c])) for c in range(count)]


def low_bytes(image: Image.Image, reopen: Callable[[], Image.Image]) -> Image.Image | None:
    """Return an image of the lower bytes of a 16-bit color image whose pixels are not loaded yet; None for others.

    Args:
      reopen: opens the same file again.
    """
    raw_modes = {_raw_mode(tile) for tile in getattr(image, "tile", ())}
    if raw_modes == {"LA;16B"}:  # whose lower bytes Pillow cannot read
        return reopen()
    if image.mode not in ("RGB", "RGBA") or len(raw_modes) != 1:
        return None
    layout, _, order = raw_modes.pop().partition(";")
    if layout not in ("RGB", "RGBA", "RGBX") or order not in OTHER_BYTE:
        return None
    other: Any = reopen()
    raw_mode = f"{layout};{OTHER_BYTE[order]}"
    others = [raw_mode if isinstance(tile.args, str) else (raw_mode, *tile.args[1:]) for tile in other.tile]
    other.tile = [tile._replace(args=args) for tile, args in zip(other.tile, others)]
    return other


def _raw_mode(tile: Any) -> str:
    arguments = tile.args
    return str(arguments if isinstance(arguments, str) else arguments[0] if arguments else "")


def pixel_values(image: Image.Image, low: Image.Image | None) -> Num[np.ndarray, "height width channels"] | None:
    """Return the pixels of an image of more than 8 bits, without an alpha channel; None for other images.

    Args:
      low: its `low_bytes`, turned as the image.
    """
    if low is not None:
        colors = slice(0, 3)
        high = np.asarray(image)[..., colors].astype(np.uint16)
        return high << 8 | np.asarray(low)[..., colors]
    return np.asarray(image)[..., None] if is_deep_gray(image) else None


def is_deep_gray(image: Image.Image) -> bool:
    """Return whether Pillow keeps more than 8 bits of an image."""
    return image.mode == "F" or image.mode.startswith("I")
