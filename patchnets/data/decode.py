"""Encoded images to pixels.

Images that are kept, and those of an evaluation, are decoded and resized by Pillow: bicubic, antialiased, whatever is
installed. Random crops of training images take a faster way where they are JPEGs: simplejpeg (libjpeg-turbo, which
decodes at 1/2, 1/4 or 1/8 where the crop is so much larger than what is asked for) and OpenCV's linear resizing after
a small blur that makes it antialiased. Pillow takes their place for what is no plain JPEG or where they are missing.

Of the ways that were compared this is the fastest that is antialiased: `python -m experiments.micro.decoding` measures
them, and docs/measurements.md holds the figures. PyTurboJPEG needs a libjpeg-turbo 3 of the system's; simplejpeg and
OpenCV come in wheels for Linux, macOS and Windows.
"""

import dataclasses
import functools
import io
import math
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from patchnets.errors import RunError, first_line

# Large images are read up to Pillow's limit, which is an error and not a warning.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
EXIF_WITHIN = 2**16  # bytes from the start of a JPEG; EXIF is its first segment or the second
LARGEST_FILTERED = 4.0  # shrinking by more than this, Pillow resizes: a blur would need too many taps
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
EXIF_ORIENTATION = 0x0112  # the tag; 1 is upright
BACKGROUNDS = {"white": (255, 255, 255, 255), "black": (0, 0, 0, 255)}


@dataclasses.dataclass(frozen=True)
class PixelRules:
    """Which pixels a file stands for.

    Attributes:
      exif_orientation: turn and mirror the image as its EXIF header says, as viewers do. TFDS and torchvision do not.
      background: white or black, the color behind transparent pixels; or none, to drop transparency and take the color
        stored under it.
    """

    exif_orientation: bool = True
    background: str = "white"

    @property
    def tag(self) -> str:
        """A short text that tells these rules from others."""
        return f"{'exif' if self.exif_orientation else 'stored'}-{self.background}"


DEFAULT_RULES = PixelRules()


def _open(data: bytes | pathlib.Path) -> Image.Image:
    return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)


def _unreadable(name: str, error: Exception) -> RunError:
    """Broken files make decoders raise nearly anything: any exception while decoding is about the image."""
    reason = (
        first_line(error) if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {first_line(error)}"
    )
    if isinstance(error, UnidentifiedImageError):  # whose own text tells where in memory it is
        reason = "it is of no format that Pillow knows"
    return RunError(f"{name} cannot be decoded ({reason}); repair or remove it")


def image_size(data: bytes | pathlib.Path, name: str) -> tuple[int, int]:
    """Height and width from the header alone. Raises RunError, which says `name`, where there is none."""
    try:
        with _open(data) as file:
            return file.height, file.width
    except Exception as error:
        raise _unreadable(name, error) from error


def image_mode(data: bytes | pathlib.Path) -> str:
    """Pillow's name of the pixel format; RGB for what cannot be read, whose decoding will say so."""
    try:
        with _open(data) as file:
            return file.mode
    except Exception:
        return "RGB"


def decode_image(
    data: bytes | pathlib.Path,
    name: str,
    channels: int,
    size: int | None = None,
    crop_pct: float = 1.0,
    rules: PixelRules = DEFAULT_RULES,
) -> UInt8[np.ndarray, "height width channels"]:
    """Decodes one image with Pillow.

    Args:
      data: an encoded image, or the path of one.
      name: what to call it in an error.
      channels: 1 for gray, 3 for RGB.
      size: where given, the center square is resized to it (bicubic, antialiased).
      crop_pct: the side of that square as a share of the image's shorter side.

    Raises:
      RunError: the image is broken or truncated.
    """
    try:
        with _open(data) as file:
            return _crop_and_resize(file, channels, size, crop_pct, rules)
    except Exception as error:
        raise _unreadable(name, error) from error


def prepare_image(
    image: Image.Image,
    name: str,
    channels: int,
    size: int | None = None,
    crop_pct: float = 1.0,
    rules: PixelRules = DEFAULT_RULES,
) -> UInt8[np.ndarray, "height width channels"]:
    """Return an open image as `decode_image` does the file of one."""
    try:
        return _crop_and_resize(image, channels, size, crop_pct, rules)
    except Exception as error:  # it may not be loaded yet, and broken
        raise _unreadable(name, error) from error


def _crop_and_resize(
    image: Image.Image, channels: int, size: int | None, crop_pct: float, rules: PixelRules
) -> np.ndarray:
    image = _with_channels(_upright(image, rules), channels, rules)
    if size is not None:
        side = min(image.size) * crop_pct
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image, np.uint8).reshape(image.height, image.width, channels)


def _orientation(image: Image.Image, rules: PixelRules) -> int:
    """Return the EXIF orientation from 1 to 8; 1 if there is none, or it is not to be applied."""
    orientation = image.getexif().get(EXIF_ORIENTATION, 1) if rules.exif_orientation else 1
    return orientation if orientation in range(1, 9) else 1


def _upright(image: Image.Image, rules: PixelRules) -> Image.Image:
    return image if _orientation(image, rules) == 1 else ImageOps.exif_transpose(image)


def _with_channels(image: Image.Image, channels: int, rules: PixelRules) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of gray, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        if rules.background != "none":
            canvas = Image.new("RGBA", image.size, BACKGROUNDS[rules.background])
            image = Image.alpha_composite(canvas, image)
    return image.convert("RGB" if channels == 3 else "L")


def decode_crop(
    data: bytes,
    name: str,
    channels: int,
    size: int,
    choose: Callable[[int, int], tuple[int, int, int, int]],
    rules: PixelRules = DEFAULT_RULES,
) -> UInt8[np.ndarray, "size size channels"]:
    """Decodes a part of an image, resized to `size` pixels a side (bilinear, antialiased).

    Args:
      data: an encoded image.
      name: what to call it in an error.
      channels: 1 for gray, 3 for RGB.
      size: side of the result in pixels.
      choose: (height, width) of the image to (top, left, height, width) of the part, the same however often asked. It
        is rounded to whole pixels of what is decoded, which are up to eight wide where the part is large.

    Raises:
      RunError: the image is broken or truncated.
    """
    decoded = _decode_jpeg(data, channels, size, choose, rules)
    try:
        pixels, box = decoded or _decode_with_pillow(data, channels, size, choose, rules)
        return resize_box(pixels, box, size)
    except Exception as error:
        raise _unreadable(name, error) from error


def reduction(crop: tuple[int, int, int, int], size: int) -> int:
    """The largest of 1, 2, 4, 8 by which a crop can be divided and still have `size` pixels a side."""
    return next(by for by in (8, 4, 2, 1) if by == 1 or min(crop[2:]) >= by * size)


def _scaled(crop: tuple[int, int, int, int], height: float, width: float) -> Box:
    """The box of a crop in an image whose height and width are these shares of the original's."""
    top, left, rows, columns = crop
    return left * width, top * height, (left + columns) * width, (top + rows) * height


def _decode_jpeg(
    data: bytes, channels: int, size: int, choose: Callable[..., Any], rules: PixelRules
) -> tuple[np.ndarray, Box] | None:
    """Pixels, scaled down where there are more than enough, and the box of the crop in them; None for Pillow's part:
    other formats, CMYK, whatever libjpeg-turbo complains of, and where simplejpeg is not installed."""
    jpeg = _simplejpeg()
    if jpeg is None or data[:2] != b"\xff\xd8":
        return None
    try:
        if rules.exif_orientation and b"Exif\0\0" in data[:EXIF_WITHIN]:
            with _open(data) as file:
                if _orientation(file, rules) != 1:
                    return None
        height, width, colors, _ = jpeg.decode_jpeg_header(data)
        if colors not in ("YCbCr", "Gray", "RGB") or height * width > (Image.MAX_IMAGE_PIXELS or math.inf):
            return None
        crop = choose(height, width)
        by = reduction(crop, size)
        least = dict(min_height=-(-height // by), min_width=-(-width // by)) if by > 1 else {}
        pixels = jpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY", **least)
    except Exception:
        return None
    return pixels, _scaled(crop, pixels.shape[0] / height, pixels.shape[1] / width)


def _decode_with_pillow(
    data: bytes, channels: int, size: int, choose: Callable[..., Any], rules: PixelRules
) -> tuple[np.ndarray, Box]:
    with _open(data) as file:
        on_its_side = _orientation(file, rules) > 4
        width, height = reversed(file.size) if on_its_side else file.size
        crop = choose(height, width)
        by = reduction(crop, size)
        if by > 1 and file.format == "JPEG":
            file.draft(None, (file.width // by, file.height // by))
        image = _with_channels(_upright(file, rules), channels, rules)
        pixels = np.asarray(image, np.uint8).reshape(image.height, image.width, channels)
    return pixels, _scaled(crop, pixels.shape[0] / height, pixels.shape[1] / width)


def resize_box(
    pixels: UInt8[np.ndarray, "height width channels"], box: Box, size: int
) -> UInt8[np.ndarray, "size size channels"]:
    """A box of an image, rounded to whole pixels, as a square of `size` pixels a side: bilinear, antialiased."""
    left, top = round(box[0]), round(box[1])
    part = pixels[top : max(round(box[3]), top + 1), left : max(round(box[2]), left + 1)]
    opencv, scales = _opencv(), (part.shape[0] / size, part.shape[1] / size)
    if opencv is None or max(scales) > LARGEST_FILTERED:
        channels = part.shape[2]
        image = Image.fromarray(part if channels == 3 else part[..., 0])
        resized = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
        return np.asarray(resized, np.uint8).reshape(size, size, channels)
    if max(scales) > 1:
        part = opencv.sepFilter2D(part, -1, blur(scales[1]), blur(scales[0]), borderType=opencv.BORDER_REPLICATE)
    resized = opencv.resize(part, (size, size), interpolation=opencv.INTER_LINEAR)
    return resized.reshape(size, size, -1)  # OpenCV leaves out a single channel


def blur(scale: float) -> Float32[np.ndarray, " taps"]:
    """The filter after which linear interpolation, shrinking `scale` times, is antialiased.

    Antialiased bilinear resizing weighs pixels by a triangle of variance scale^2 / 6, linear interpolation by one of
    variance 1/6. The filter has the variance that is between them: as many times [v/2, 1 - v, v/2] as it needs, v of
    at most 1/2 each.
    """
    variance = max(scale**2 - 1, 0.0) / 6
    times = max(1, math.ceil(2 * variance))
    v = variance / times
    return functools.reduce(np.convolve, [np.array([v / 2, 1 - v, v / 2])] * times).astype(np.float32)


@functools.cache
def _simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


@functools.cache
def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)  # images are what is worked on in parallel
    return cv2
