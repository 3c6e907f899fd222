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
import functools
import io
import math
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float32, Num, UInt
from PIL import Image, UnidentifiedImageError

from patchnets.data import bit_depth, pixels
from patchnets.data.bit_depth import Levels, join_channels
from patchnets.data.pixel_rules import DEFAULT_RULES, PixelRules
from patchnets.errors import RunError, first_line

# Silence Pillow's warning for large images; still larger ones raise its error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Formats that Pillow hands to another program, or that hold no single image.
NOT_DECODED = {"EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF"}
LARGEST_RESIZED = 2**26  # pixels of an image that is resized before its center is cut
EXIF_WITHIN = 2**16  # bytes from the start of a JPEG; EXIF is in its first or second segment
LARGEST_FILTERED = 4.0  # beyond this factor Pillow shrinks images: a blur would need too many taps
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
SAMPLES_PER_PIXEL, EXTRA_SAMPLES, UNSPECIFIED = 277, 338, 0  # tags of TIFF; a sample of no stated meaning
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


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
        if bit_depth.is_array_file(data):
            return bit_depth.array_header(data)[0][:2]
        with _open(data) as file:
            return file.height, file.width
    except Exception as error:
        raise _unreadable(name, error) from error


def count_channels(data: bytes | pathlib.Path) -> int | None:
    """Return the number of channels by the header: 1 for gray, 3 for color, others for arrays and for TIFFs of more.

    It is None for a broken file, which decoding will report.
    """
    try:
        if bit_depth.is_array_file(data):
            return bit_depth.array_header(data)[0][2]
        with _open(data) as file:
            tags = getattr(file, "tag_v2", {})
            if UNSPECIFIED in tags.get(EXTRA_SAMPLES, ()):
                return tags[SAMPLES_PER_PIXEL]
            return 1 if file.mode in pixels.GRAY_MODES or bit_depth.is_gray_alpha(file) else 3
    except Exception:
        return None


def is_deep(data: bytes | pathlib.Path) -> bool:
    """Return whether an image has more than 8 bits, by its header.

    Raises an error of NumPy or Pillow if that cannot be read.
    """
    if bit_depth.is_array_file(data):
        return not bit_depth.has_eight_bits(bit_depth.array_header(data)[1])
    if bit_depth.is_png_of_eight_bits(data):  # most candidates, of which Pillow would read more than the first bytes
        return False
    with _open(data) as file:
        return bit_depth.is_deep(file)


def deep_values(data: bytes | pathlib.Path) -> Num[np.ndarray, "height width channels"] | None:
    """Return the values of an image of more than 8 bits, as they are stored; None for others, by their header.

    Raises an error of NumPy or Pillow if it cannot be read.
    """
    if not is_deep(data):
        return None
    if bit_depth.is_array_file(data):
        return bit_depth.read_array(data)
    with _open(data) as file:
        return bit_depth.pixel_values(file, bit_depth.low_bytes(file, lambda: _open(data)))


def decode_image(
    data: bytes | pathlib.Path | Image.Image | np.ndarray,
    name: str,
    channels: int,
    size: int | None = None,
    crop_pct: float = 1.0,
    rules: PixelRules = DEFAULT_RULES,
    interpolation: str = "bicubic",
    shorter_side: int | None = None,
) -> Levels:
    """Decode one image with Pillow.

    Args:
      data: an encoded image, the path of one, an image of Pillow, which stays open, or the values of pixels as in an
        .npy file.
      name: its name in errors.
      channels: 1 for gray, 3 for RGB; others for arrays only.
      size: resize the center square to this side (antialiased); None keeps the image as it is.
      crop_pct: the side of that square as a share of the image's shorter side.
      interpolation: a key of INTERPOLATIONS.
      shorter_side: in place of `crop_pct`, the pixels to which the image's shorter side is resized, of which the center
        is cut.

    Raises:
      RunError: the image is broken or truncated.
    """
    resampling = INTERPOLATIONS[interpolation]
    try:
        with _opened(data, channels, rules) as images:
            return join_channels(
                [_crop_and_resize(image, size, crop_pct, resampling, shorter_side) for image in images]
            )
    except Exception as error:
        raise _unreadable(name, error) from error


@contextlib.contextmanager
def _opened(data: Any, channels: int, rules: PixelRules) -> Iterator[list[Image.Image]]:
    """Yield the pixels of an image as `bit_depth.split_channels` has them."""
    if bit_depth.is_array_file(data):
        data = bit_depth.read_array(data)
    if isinstance(data, np.ndarray):
        yield bit_depth.split_channels(bit_depth.array_levels(data, rules.value_ranges, rules.level_bits), channels)
        return
    with contextlib.nullcontext(data) if isinstance(data, Image.Image) else _open(data) as file:
        path = getattr(data, "filename", "") if isinstance(data, Image.Image) else ""
        origin = pathlib.Path(path) if path else None if isinstance(data, Image.Image) else data
        yield pixels.split_pixels(file, channels, rules, None if origin is None else lambda: _open(origin))


def _crop_and_resize(
    image: Image.Image, size: int | None, crop_pct: float, resampling: Image.Resampling, shorter_side: int | None
) -> Image.Image:
    if size is None:
        return image
    if shorter_side is not None:
        return _resize_and_cut(image, size, shorter_side, resampling)
    side = min(image.size) * crop_pct
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), resampling, box=(left, top, left + side, top + side))


def _resize_and_cut(image: Image.Image, size: int, shorter_side: int, resampling: Image.Resampling) -> Image.Image:
    """Resize an image and cut its center as torchvision's Resize(shorter_side) and CenterCrop(size) do."""
    sides = [int(shorter_side * length / min(image.size)) for length in image.size]
    left, top = (round((side - size) / 2) for side in sides)
    if math.prod(sides) <= LARGEST_RESIZED:
        return image.resize((sides[0], sides[1]), resampling).crop((left, top, left + size, top + size))
    across, down = image.width / sides[0], image.height / sides[1]  # the same of the center alone, but for rounding
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return image.resize((size, size), resampling, box=(*box[:2], min(box[2], image.width), min(box[3], image.height)))


def decode_crop(
    data: bytes,
    name: str,
    channels: int,
    size: int,
    choose: Callable[[int, int], tuple[int, int, int, int]],
    rules: PixelRules = DEFAULT_RULES,
) -> UInt[np.ndarray, "size size channels"]:
    """Decode a part of an image, resized to `size` pixels a side (bilinear, antialiased).

    Args:
      data: an encoded image.
      name: its name in errors.
      channels: 1 for gray, 3 for RGB; others for arrays only.
      size: side of the result in pixels.
      choose: a pure function from (height, width) of the image to (top, left, height, width) of the part. The part is
        rounded to pixels of the decoded image, up to eight of the original's wide if the part is large.

    Raises:
      RunError: the image is broken or truncated.
    """
    decoded = _decode_jpeg(data, channels, size, choose, rules)
    try:
        levels, box = decoded or _decode_with_pillow(data, channels, size, choose, rules)
        return resize_box(levels, box, size)
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
    """Return the levels, scaled down if there are more than enough, and the box of the crop in them. Return None for
    Pillow's part: other formats, CMYK, JPEGs that libjpeg-turbo rejects, or simplejpeg not installed."""
    jpeg = _simplejpeg()
    if jpeg is None or data[:2] != b"\xff\xd8" or channels not in (1, 3):
        return None
    try:
        if rules.exif_orientation and b"Exif\0\0" in data[:EXIF_WITHIN]:
            with _open(data) as file:
                if pixels.orientation(file, rules) != 1:
                    return None
        height, width, colors, _ = jpeg.decode_jpeg_header(data)
        if colors not in ("YCbCr", "Gray", "RGB") or height * width > (Image.MAX_IMAGE_PIXELS or math.inf):
            return None
        crop = choose(height, width)
        by = reduction(crop, size)
        least = dict(min_height=-(-height // by), min_width=-(-width // by)) if by > 1 else {}
        levels = jpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY", **least)
    except Exception:
        return None
    return bit_depth.widen(levels, rules.level_bits), _scaled(crop, levels.shape[0] / height, levels.shape[1] / width)


def _decode_with_pillow(
    data: bytes, channels: int, size: int, choose: Callable[..., Any], rules: PixelRules
) -> tuple[np.ndarray, Box]:
    if bit_depth.is_array_file(data):
        with _opened(data, channels, rules) as images:
            levels = join_channels(images)
        return levels, _scaled(choose(*levels.shape[:2]), 1.0, 1.0)
    with _open(data) as file:
        on_its_side = file.format != "TIFF" and pixels.orientation(file, rules) > 4  # Pillow turns TIFFs itself
        width, height = reversed(file.size) if on_its_side else file.size
        crop = choose(height, width)
        by = reduction(crop, size)
        if by > 1 and file.format == "JPEG":
            file.draft(None, (file.width // by, file.height // by))
        levels = join_channels(pixels.split_pixels(file, channels, rules, lambda: _open(data)))
    return levels, _scaled(crop, levels.shape[0] / height, levels.shape[1] / width)


def resize_box(levels: Levels, box: Box, size: int) -> UInt[np.ndarray, "size size channels"]:
    """Resize a box of an image, rounded to whole pixels, to a square of side `size` (bilinear, antialiased)."""
    left, top = round(box[0]), round(box[1])
    part = levels[top : max(round(box[3]), top + 1), left : max(round(box[2]), left + 1)]
    channels = part.shape[2]
    if channels not in (1, 3):
        return np.concatenate([resize_box(levels[..., [c]], box, size) for c in range(channels)], axis=-1)
    opencv, scales = _opencv(), (part.shape[0] / size, part.shape[1] / size)
    if opencv is None or max(scales) > LARGEST_FILTERED:
        images = bit_depth.split_channels(part, channels)
        return join_channels([i.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0) for i in images])
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
