"""Encoded images to pixels, with Pillow."""

import io
import pathlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from patchnets.errors import RunError, one_line

# What Pillow raises on broken files of the formats we read.
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def _open(data: bytes | pathlib.Path) -> Image.Image:
    return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)


def _unreadable(name: str, error: Exception) -> RunError:
    return RunError(f"{name} cannot be decoded ({one_line(error)}); repair or remove it")


def image_size(data: bytes | pathlib.Path, name: str) -> tuple[int, int]:
    """Height and width from the header alone. Raises RunError, which says `name`, where there is none."""
    try:
        with _open(data) as file:
            return file.height, file.width
    except BROKEN as error:
        raise _unreadable(name, error) from error


def image_mode(data: bytes | pathlib.Path) -> str:
    """Pillow's name of the pixel format; RGB for what cannot be read, whose decoding will say so."""
    try:
        with _open(data) as file:
            return file.mode
    except BROKEN:
        return "RGB"


def decode_image(
    data: bytes | pathlib.Path, name: str, channels: int, size: int | None = None
) -> UInt8[np.ndarray, "height width channels"]:
    """Decodes one image.

    Args:
      data: an encoded image, or the path of one.
      name: what to call it in an error.
      channels: 1 for gray, 3 for RGB.
      size: where given, the shorter side is resized to it (bicubic, antialiased) and the centre square kept.

    Raises:
      RunError: the image is broken or truncated.
    """
    try:
        with _open(data) as file:
            image: Image.Image = file
            if image.mode.startswith("I"):  # 16 bits of gray, which Pillow would cut off at 255
                image = Image.fromarray((np.asarray(image, np.float64) / 257).round().astype(np.uint8))
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert("RGB" if channels == 3 else "L")
            if size is not None:
                image = _centre_square(image, size)
            return np.asarray(image, np.uint8).reshape(image.height, image.width, channels)
    except BROKEN as error:
        raise _unreadable(name, error) from error


def _centre_square(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
