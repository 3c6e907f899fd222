"""Images of any kind and size as arrays of levels, cropped and resized as in the evaluation of training."""

import collections
import concurrent.futures
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt
from PIL import Image

from patchnets import runtime
from patchnets.data import bit_depth, decode
from patchnets.errors import RunError
from patchnets.run.model_spec import ModelSpec

AnyImage = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
Decoded = UInt[np.ndarray, "size size channels"]  # of spec.rules.dtype: uint8, or uint16 for more than 8 bits
READ_AHEAD = 64  # images that are decoded before they are asked for, for each thread


def decode_one(image: AnyImage, spec: ModelSpec, name: str = "the image") -> Decoded:
    """Return an image as `spec` has it decoded: levels of spec.rules.dtype, (decoded_size, decoded_size, channels).

    Args:
      image: a path, the bytes of an encoded image, a Pillow image, or an array (height, width) or
        (height, width, channels): of uint8, or of values of more than 8 bits for a model that was trained on such.
      name: what to call it in an error, if it is no path.

    Raises:
      RunError: a file that cannot be read or decoded.
      ValueError: an array of another shape or type.
      TypeError: neither of these.
    """
    size, crop_pct = spec.decoded_size, spec.decoded_crop_pct
    if isinstance(image, np.ndarray):
        image = _checked(image, spec, name)
        if image.dtype == np.uint8 and image.shape == (size, size, spec.channels) and crop_pct == 1:
            return bit_depth.widen(image, spec.rules.level_bits)
        if image.dtype != np.uint8 or spec.channels not in (1, 3):
            return decode.decode_image(
                image, name, spec.channels, size, crop_pct, spec.rules, shorter_side=spec.shorter_side
            )
        image = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    if isinstance(image, str | os.PathLike):
        image, name = pathlib.Path(image), str(image)
    if not isinstance(image, Image.Image | bytes | pathlib.Path):
        raise TypeError(f"{name} is a {type(image).__name__}; give a path, a Pillow image or a uint8 array")
    return decode.decode_image(
        image, name, spec.channels, size, crop_pct, spec.rules, spec.interpolation, spec.shorter_side
    )


def _checked(image: np.ndarray, spec: ModelSpec, name: str) -> np.ndarray:
    """Return an array with its axis of channels. Raise ValueError if it is no image for the model."""
    if image.dtype != np.uint8 and (spec.value_ranges is None or image.dtype.kind not in "uif"):
        raise ValueError(f"{name} is an array of {image.dtype}; expected uint8, levels from 0 to 255")
    image = image[..., None] if image.ndim == 2 else image
    counts = (1, 3, 4) if spec.channels in (1, 3) and image.dtype == np.uint8 else (spec.channels,)
    if image.ndim != 3 or image.shape[2] not in counts or 0 in image.shape:
        *others, last = map(str, counts)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"{name} is of shape {image.shape}; expected (height, width) or (height, width, {expected})")
    return image


def as_list(images: Any) -> list[AnyImage]:
    """Return one image or many as a list; an array of four axes is many images."""
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        return [images]
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    return list(images)


def decode_many(
    images: Iterable[AnyImage | RunError], spec: ModelSpec, name_of: Callable[[int], str] = "image {}".format
) -> Iterator[Decoded | RunError]:
    """Yield each image decoded, in order and by all cores; in place of a broken file the error that names it.

    Args:
      images: an error among them is yielded as it is.
      name_of: from an image's number to what to call it in an error, if it is no path.
    """

    def attempt(number: int, image: AnyImage | RunError) -> Decoded | RunError:
        try:
            return image if isinstance(image, RunError) else decode_one(image, spec, name_of(number))
        except RunError as error:
            return error

    threads = runtime.cores()
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        for number, image in enumerate(images):
            pending.append(pool.submit(attempt, number, image))
            if len(pending) >= READ_AHEAD * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def readable_batches(
    images: Iterable[AnyImage | RunError],
    spec: ModelSpec,
    batch_size: int,
    name_of: Callable[[int], str],
    unreadable: list[str],
) -> Iterator[tuple[list[int], UInt[np.ndarray, "images size size channels"]]]:
    """Yield (numbers, decoded images) of those that can be read, in batches; add the errors of others to `unreadable`.

    Args: as for `decode_many`.
    """
    numbers: list[int] = []
    pending: list[Decoded] = []
    for number, image in enumerate(decode_many(images, spec, name_of)):
        if isinstance(image, RunError):
            unreadable.append(str(image))
            continue
        numbers.append(number)
        pending.append(image)
        if len(pending) == batch_size:
            yield numbers, np.stack(pending)
            numbers, pending = [], []
    if pending:
        yield numbers, np.stack(pending)


def stack(decoded: Iterable[Decoded | RunError]) -> UInt[np.ndarray, "images size size channels"]:
    """Return the images of `decode_many` as one array. Raise the first error among them."""
    images = []
    for image in decoded:
        if isinstance(image, RunError):
            raise image
        images.append(image)
    return np.stack(images)
