"""Pixels of more than 8 bits, and images in .npy files, as levels of 8 bits (0 to 255) or 16 (0 to 65,535).

A level of 8 bits is 257 of 16. Pillow keeps 16-bit and float gray images as they are, but of 16-bit color images only
the higher byte of each value. It reads no .npy files.
"""

import io
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Num, UInt
from PIL import Image

ValueRanges = tuple[tuple[float, float], ...]  # (lowest, highest): a pair for all channels, or a pair for each
SIXTEEN_BITS: ValueRanges = ((0.0, 65535.0),)
ARRAY_SUFFIX = ".npy"
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in gray (ITU-R 601-2), as Pillow has them
# What Pillow calls the byte order of 16-bit colors, and the order in which it would keep the other byte.
OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
GRAY_ALPHA = "RGBA"  # raw mode of all bytes of 16-bit gray and alpha
Levels = UInt[np.ndarray, "height width channels"]  # uint8 or uint16


def dtype_of(bits: int) -> np.dtype:
    """Return the type of levels of 8 or 16 bits."""
    return np.dtype(f"uint{bits}")


def to_levels(values: Num[np.ndarray, "height width channels"], ranges: ValueRanges, bits: int = 8) -> Levels:
    """Map the lowest value of each range to 0 and the highest to the highest level; clip others. NaN becomes 0."""
    top = 2**bits - 1
    low, high = np.array(ranges, np.float64).T
    with np.errstate(invalid="ignore", over="ignore"):
        levels = np.rint((values.astype(np.float64) - low) * (top / np.maximum(high - low, np.finfo(np.float64).tiny)))
    return np.nan_to_num(np.clip(levels, 0, top)).astype(dtype_of(bits))


def widen(levels: Levels, bits: int) -> Levels:
    """Return levels of 8 bits as the same ones of `bits`, which is 8 or 16."""
    return levels if bits == 8 else levels.astype(np.uint16) * np.uint16(257)


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


def array_levels(values: Num[np.ndarray, "height width channels"], ranges: ValueRanges | None, bits: int = 8) -> Levels:
    """Return the levels of an array. Raise ValueError if they hang on a range and there is none."""
    if has_eight_bits(values.dtype):
        return widen(values.astype(np.uint8) * 255 if values.dtype == np.bool_ else values, bits)
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
    return to_levels(values, ranges, bits)


def default_ranges(dtype: np.dtype) -> ValueRanges:
    """Return the range of 16-bit integers. Raise ValueError for floats, which have none."""
    if dtype.kind == "f":
        raise ValueError("its pixels are floats and their range is not known: no image of train has more than 8 bits")
    return SIXTEEN_BITS


def split_channels(levels: Levels, channels: int) -> list[Image.Image]:
    """Return an image as Pillow's: one gray or RGB image if `channels` is 1 or 3, else a gray one for each channel.

    Levels of 16 bits become floats, a gray image for each channel: Pillow resizes no others of more than 8 bits.

    Raises:
      ValueError: it has another number of channels, and is neither gray nor RGB.
    """
    count, in_color = levels.shape[2], {levels.shape[2], channels} <= {1, 3}
    if count != channels and not in_color:
        raise ValueError(f"it has {count} channels; expected {channels}")
    if in_color and levels.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(levels[..., 0] if count == 1 else levels))
        return [image.convert("RGB" if channels == 3 else "L")]
    if count > channels:
        levels = np.rint(levels @ np.array(LUMA))[..., None]
    kind = np.uint8 if levels.dtype == np.uint8 else np.float32
    images = [Image.fromarray(np.ascontiguousarray(levels[..., c], kind)) for c in range(levels.shape[2])]
    return images * (channels // len(images))  # gray as RGB


def join_channels(images: Sequence[Image.Image]) -> Levels:
    """Return the levels of `split_channels`: uint8, or uint16 of floats, rounded and clipped."""
    return np.concatenate([_levels_of(image) for image in images], axis=-1) if images[1:] else _levels_of(images[0])


def _levels_of(image: Image.Image) -> Levels:
    if image.mode == "F":
        return np.clip(np.rint(np.asarray(image)), 0, 65535).astype(np.uint16)[..., None]
    return np.asarray(image, np.uint8).reshape(image.height, image.width, -1)


def lay_on(levels: Levels, opacity: Float[np.ndarray, "height width 1"], background: int) -> Levels:
    """Return levels over a background of this level, which shows where they are not opaque."""
    return np.rint(levels * opacity + background * (1 - opacity)).astype(levels.dtype)


def low_raw_mode(image: Image.Image) -> str | None:
    """Return the raw mode in which Pillow reads the lower bytes of a 16-bit color image whose pixels are not loaded;
    None for others. Gray and alpha are read as four channels of a byte each."""
    raw_modes = {_raw_mode(tile) for tile in getattr(image, "tile", ())}
    if image.mode not in ("RGB", "RGBA") or len(raw_modes) != 1:
        return None
    layout, _, order = raw_modes.pop().partition(";")
    if layout == "LA" and order == "16B":
        return GRAY_ALPHA
    return f"{layout};{OTHER_BYTE[order]}" if layout in ("RGB", "RGBA", "RGBX") and order in OTHER_BYTE else None


def low_bytes(image: Image.Image, reopen: Callable[[], Image.Image]) -> Image.Image | None:
    """Return an image of the lower bytes of a 16-bit color image whose pixels are not loaded yet; None for others.

    Args:
      reopen: opens the same file again.
    """
    raw_mode = low_raw_mode(image)
    if raw_mode is None:
        return None
    other: Any = reopen()
    others = [raw_mode if isinstance(tile.args, str) else (raw_mode, *tile.args[1:]) for tile in other.tile]
    other.tile = [tile._replace(args=args) for tile, args in zip(other.tile, others)]
    if raw_mode == GRAY_ALPHA:
        _, gray, _, alpha = other.split()
        other.paste(Image.merge("RGBA", (gray, gray, gray, alpha)))  # in place, to keep its EXIF header
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
        return _sixteen_bits(image, low)[..., :3]
    return np.asarray(image)[..., None] if is_deep_gray(image) else None


def opacity(image: Image.Image, low: Image.Image | None) -> Float[np.ndarray, "height width 1"] | None:
    """Return the alpha channel of an image of `pixel_values`, from 0 to 1; None if it has none.

    A PNG may name a transparent color in its place (PNG specification, 11.3.2.1): that is 0, and others are 1.
    """
    if low is not None and image.mode == "RGBA":
        return _sixteen_bits(image, low)[..., 3:] / 65535
    values, transparent = pixel_values(image, low), image.info.get("transparency")
    if values is None or not isinstance(transparent, int | tuple):
        return None
    return (values != np.array(transparent)).any(axis=-1, keepdims=True).astype(np.float64)


def _sixteen_bits(high: Image.Image, low: Image.Image) -> UInt[np.ndarray, "height width channels"]:
    return np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)


def is_gray_alpha(image: Image.Image) -> bool:
    """Return whether an image is gray with alpha of 16 bits, which Pillow opens as RGBA."""
    return low_raw_mode(image) == GRAY_ALPHA


def is_deep(image: Image.Image) -> bool:
    """Return whether an image whose pixels are not loaded yet has more than 8 bits."""
    return is_deep_gray(image) or low_raw_mode(image) is not None


def is_deep_gray(image: Image.Image) -> bool:
    """Return whether Pillow keeps more than 8 bits of an image."""
    return image.mode == "F" or image.mode.startswith("I")
