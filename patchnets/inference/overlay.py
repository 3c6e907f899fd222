"""Pictures of explanations: an image beside the same image under a map of colors."""

import functools
import pathlib

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from patchnets.runtime import fonts
from patchnets.runtime.files import atomic_path

SIDE = 256  # least side in pixels of an image in a picture
OPACITY = 0.75  # of the color of 1
COLORS = "inferno"
GAP, LINE, FONT = 8, 30, 15  # in pixels: between images, height of the title, its letters
NARROWEST = 4  # width of a letter in pixels


def enlarge(image: UInt8[np.ndarray, "size size channels"]) -> Image.Image:
    """Return an image in RGB, its pixels enlarged by a whole factor to at least SIDE pixels a side.

    Images of other channels than gray and RGB are shown as the mean over these.
    """
    if image.shape[2] not in (1, 3):
        image = image.mean(axis=2, keepdims=True).round().astype(np.uint8)
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).convert("RGB")
    factor = -(-SIDE // min(picture.size))
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)


def blend(image: UInt8[np.ndarray, "size size channels"], heat: Float[np.ndarray, "size size"]) -> Image.Image:
    """Return `enlarge(image)` under the colors of a map from 0 to 1, which are the more opaque the nearer to 1."""
    picture = enlarge(image)
    wide = Image.fromarray(heat.astype(np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
    share = np.clip(np.asarray(wide), 0, 1)[..., None]
    opacity = OPACITY * share
    mixed = (1 - opacity) * np.asarray(picture, np.float32) + opacity * _colors()[(255 * share[..., 0]).astype(int)]
    return Image.fromarray(mixed.round().astype(np.uint8))


def side_by_side(
    image: UInt8[np.ndarray, "size size channels"], heat: Float[np.ndarray, "size size"], title: str
) -> Image.Image:
    """Return an image and its explanation, as of `enlarge` and `blend`, beside each other below a title."""
    left, right = enlarge(image), blend(image, heat)
    sheet = Image.new("RGB", (left.width + GAP + right.width, LINE + left.height), "white")
    sheet.paste(left, (0, LINE))
    sheet.paste(right, (left.width + GAP, LINE))
    draw, title = ImageDraw.Draw(sheet), fonts.shorten(fonts.drawable(title), sheet.width // NARROWEST)
    while sum(_font(file).getlength(part) for file, part in fonts.segments(title)) > sheet.width - 2 * GAP:
        title = title.removesuffix(" ...")[:-1] + " ..."
    offset: float = GAP
    for file, part in fonts.segments(title):
        draw.text((offset, LINE / 2), part, "black", _font(file), anchor="lm")
        offset += _font(file).getlength(part)
    return sheet


def save(picture: Image.Image, path: pathlib.Path) -> None:
    """Write a picture (PNG), whole or not at all."""
    with atomic_path(path) as partial:
        picture.save(partial, "PNG")


@functools.cache
def _colors() -> Float[np.ndarray, "256 3"]:
    import matplotlib

    return 255 * matplotlib.colormaps[COLORS](np.arange(256))[:, :3]


@functools.cache
def _font(file: pathlib.Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, FONT)
