"""Decode images to pixels.

Pillow decodes and resizes cached images and those of an evaluation (bicubic, antialiased), whatever else is installed.
Random crops of JPEGs in training are faster with simplejpeg (libjpeg-turbo, which decodes at 1/2, 1/4 or 1/8 if the
crop is that much larger than the result) and OpenCV's linear resize after a small blur against aliasing. Pillow handles
other formats, and all images if the two are not installed.

This is the fastest antialiased combination of those that `python -m experiments.micro.decoding` compares
(docs/measurements.md). PyTurboJPEG needs libjpeg-turbo 3 on the system; simplejpeg and OpenCV come in wheels for Linux,
macOS and Windows.
"""

import contextlib
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

# Silence Pillow's warning for large images; still larger ones raise its error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Formats that Pillow hands to another program, or that hold no single image.
NOT_DECODED = {"EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF"}
EXIF_WITHIN = 2**16  # bytes from the start of a JPEG; EXIF is in its first or second segment
LARGEST_FILTERED = 4.0  # beyond this factor Pillow shrinks images: a blur would need too many taps
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
EXIF_ORIENTATION = 0x0112  # the tag; 1 is upright
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
BACKGROUNDS = {"white": (255, 255, 255, 255), "black": (0, 0, 0, 255)}


@dataclasses.dataclass(frozen=True)
class PixelRules:
    """Rules for turning a file into pixels.

    Attributes:
      exif_orientation: turn and mirror the image as its EXIF header says, as viewers do. TFDS and torchvision do not.
      background: white or black, the color behind transparent pixels; or none, to drop transparency and take the color
        stored under it.
    """

    exif_orientation: bool = True
    background: str = "white"

    @property
    def tag(self) -> str:
        """Short name that identifies these rules."""
        return f"{'exif' if self.exif_orientation else 'stored'}-{self.background}"


DEFAULT_RULES = PixelRules()


@functools.cache
def formats() -> tuple[str, ...]:
    """Return the formats that Pillow decodes by itself. PostScript, whatever its suffix, would go to a program."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - NOT_DECODED))


def _open(data: bytes | pathlib.Path) -> Image.Image:
    return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=formats())


def _unreadable(name: str, error: Exception) -> RunError:
    """Return the error for an image that cannot be decoded. Broken files make decoders raise almost any exception."""
    reason = (
        first_line(error) if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {first_line(error)}"
    )
    if isinstance(error, UnidentifiedImageError):  # its own text is an address in memory
        reason = "Pillow does not know its format"
    return RunError(f"{name} cannot be decoded ({reason}); repair or remove it")


def image_size(data: bytes | pathlib.Path, name: str) -> tuple[int, int]:
    """Return height and width from the header alone. Raise RunError naming `name` if it cannot be read."""
    try:
        with _open(data) as file:
            return file.height, file.width
    except Exception as error:
        raise _unreadable(name, error) from error


def image_mode(data: bytes | pathlib.Path) -> str:
    """Return Pillow's name of the pixel format; RGB for a broken file, which decoding will report."""
    try:
        with _open(data) as file:
            return file.mode
    except Exception:
        return "RGB"


def decode_image(
    data: bytes | pathlib.Path | Image.Image,
    name: str,
    channels: int,
    size: int | None = None,
    crop_pct: float = 1.0,
    rules: PixelRules = DEFAULT_RULES,
    interpolation: str = "bicubic",
) -> UInt8[np.ndarray, "height width channels"]:
    """Decode one image with Pillow.

    Args:
      data: an encoded image, the path of one, or an image of Pillow, which stays open.
      name: its name in errors.
      channels: 1 for gray, 3 for RGB.
      size: resize the center square to this side (antialiased); None keeps the image as it is.
      crop_pct: the side of that square as a share of the image's shorter side.
      interpolation: a key of INTERPOLATIONS.

    Raises:
      RunError: the image is broken or truncated.
    """
    try:
        with contextlib.nullcontext(data) if isinstance(data, Image.Image) else _open(data) as file:
            return _crop_and_resize(file, channels, size, crop_pct, rules, INTERPOLATIONS[interpolation])
    except Exception as error:
        raise _unreadable(name, error) from error


def _crop_and_resize(
    image: Image.Image,
    channels: int,
    size: int | None,
    crop_pct: float,
    rules: PixelRules,
    resampling: Image.Resampling,
) -> np.ndarray:
    image = _with_channels(_upright(image, rules), channels, rules)
    if size is not None:
        side = min(image.size) * crop_pct
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), resampling, box=box)
    return np.asarray(image, np.uint8).reshape(image.height, image.width, channels)


def _orientation(image: Image.Image, rules: PixelRules) -> int:
    """Return the EXIF orientation from 1 to 8; 1 if there is none or the rules ignore it."""
    orientation = image.getexif().get(EXIF_ORIENTATION, 1) if rules.exif_orientation else 1
    return orientation if orientation in range(1, 9) else 1


def _upright(image: Image.Image, rules: PixelRules) -> Image.Image:
    return image if _orientation(image, rules) == 1 else ImageOps.exif_transpose(image)


def _with_channels(image: Image.Image, channels: int, rules: PixelRules) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
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
    """Decode a part of an image, resized to `size` pixels a side (bilinear, antialiased).

    Args:
      data: an encoded image.
      name: its name in errors.
      channels: 1 for gray, 3 for RGB.
      size: side of the result in pixels.
      choose: a pure function from (height, width) of the image to (top, left, height, width) of the part. The part is
        rounded to pixels of the decoded image, up to eight of the original's wide if the part is large.

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
    """Return the largest of 1, 2, 4, 8 by which a crop can be divided and keep `size` pixels a side."""
    return next(by for by in (8, 4, 2, 1) if by == 1 or min(crop[2:]) >= by * size)


def _scaled(crop: tuple[int, int, int, int], height: float, width: float) -> Box:
    """Return the box of a crop in an image of these shares of the original's height and width."""
    top, left, rows, columns = crop
    return left * width, top * height, (left + columns) * width, (top + rows) * height


def _decode_jpeg(
    data: bytes, channels: int, size: int, choose: Callable[..., Any], rules: PixelRules
) -> tuple[np.ndarray, Box] | None:
    """Return the pixels, scaled down if there are more than enough, and the box of the crop in them. Return None for
    Pillow's part: other formats, CMYK, JPEGs that libjpeg-turbo rejects, or simplejpeg not installed."""
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
        on_its_side = file.format != "TIFF" and _orientation(file, rules) > 4  # Pillow turns TIFFs itself
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
    """Resize a box of an image, rounded to whole pixels, to a square of side `size` (bilinear, antialiased)."""
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
    return resized.reshape(size, size, -1)  # OpenCV drops a single channel


def blur(scale: float) -> Float32[np.ndarray, " taps"]:
    """Return the filter that makes a linear resize to 1 / `scale` antialiased.

    Antialiased bilinear resizing weights pixels by a triangle of variance scale^2 / 6, linear interpolation by one of
    variance 1/6. The filter has the difference of the variances: [v/2, 1 - v, v/2], convolved as often as it takes for
    v to be at most 1/2.
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
    cv2.setNumThreads(1)  # images are decoded in parallel
    return cv2
