"""Decoded crops are those of Pillow, within a small tolerance, for every kind of file and whatever is installed."""

import io
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from sklearn import datasets

from patchnets.data import decode
from patchnets.data.pixel_rules import PixelRules
from patchnets.errors import RunError

REPOSITORY = pathlib.Path(decode.__file__).parents[2]
SIZE = 96
MEAN_TOLERANCE, WORST_TOLERANCE = 1.0, 16  # gray levels, of which images have 256
REDUCED = dict(mean=2.5, worst=40)  # where the decoder reduces, which is another filter than Pillow's


@pytest.fixture(scope="module")
def photo():
    """A real photograph, 427 x 640."""
    return Image.fromarray(datasets.load_sample_image("china.jpg"))


def encode(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 92} if kind == "JPEG" else {}) | options)
    return file.getvalue()


def expected(image, crop, size, mode="RGB"):
    """Pillow's antialiased bilinear resizing of a part of a decoded image."""
    top, left, height, width = crop
    part = image.convert(mode).crop((left, top, left + width, top + height))
    return np.asarray(part.resize((size, size), Image.Resampling.BILINEAR), float)


def got(data, crop, size=SIZE, channels=3):
    return decode.decode_crop(data, "the image", channels, size, lambda height, width: crop)


def assert_alike(pixels, reference, mean=MEAN_TOLERANCE, worst=WORST_TOLERANCE):
    assert pixels.dtype == np.uint8
    error = np.abs(pixels.astype(float) - reference.reshape(pixels.shape))
    assert error.mean() < mean, error.mean()
    assert error.max() <= worst, error.max()


@pytest.fixture(params=["fast", "no OpenCV", "no simplejpeg", "Pillow alone"])
def installed(request, monkeypatch):
    """What of the fast packages there is."""
    if request.param in ("no OpenCV", "Pillow alone"):
        monkeypatch.setattr(decode, "_opencv", lambda: None)
    else:
        pytest.importorskip("cv2")
    if request.param in ("no simplejpeg", "Pillow alone"):
        monkeypatch.setattr(decode, "_simplejpeg", lambda: None)
    else:
        pytest.importorskip("simplejpeg")


@pytest.mark.parametrize(
    "crop",
    [(10, 20, 60, 50), (30, 40, 96, 96), (5, 400, 150, 130), (0, 0, 190, 180), (8, 16, 400, 304), (0, 0, 427, 640)],
    ids=["enlarged", "as it is", "smaller", "half", "a quarter", "whole"],
)
def test_a_crop_is_what_pillow_makes_of_it(installed, photo, crop):
    data = encode(photo)
    tolerance = REDUCED if min(crop[2:]) >= 2 * SIZE else {}
    assert_alike(got(data, crop), expected(Image.open(io.BytesIO(data)), crop, SIZE), **tolerance)


def test_pixels_that_are_not_resized_are_those_of_pillow(installed, photo):
    data = encode(photo.crop((0, 0, SIZE, SIZE)))
    assert_alike(got(data, (0, 0, SIZE, SIZE)), np.asarray(Image.open(io.BytesIO(data)), float), 0.2, 2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", dict(progressive=True)),
        ("JPEG", "RGB", dict(subsampling=0)),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "L", {}),
        ("PNG", "P", {}),
        ("PNG", "I;16", {}),
        ("PNG", "1", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_every_kind_of_file_is_read(photo, kind, mode, options, channels):
    small, crop = photo.resize((213, 142)), (11, 13, SIZE, SIZE)
    if mode == "I;16":
        gray = small.convert("L")
        data, shown = encode(Image.fromarray(np.asarray(gray, np.uint16) * 257), kind), gray
    else:
        data = encode(small.convert(mode), kind, **options)
        shown = Image.open(io.BytesIO(data)).convert("RGB")
    reference = expected(shown, crop, SIZE, "L" if channels == 1 else "RGB")
    assert_alike(got(data, crop, channels=channels), reference, mean=0.5, worst=6)


def test_a_large_photograph_is_read_at_a_fraction_of_its_size(installed, photo):
    large = photo.resize((1900, 1268), Image.Resampling.BICUBIC)
    data = encode(large)
    for crop in ((0, 0, 1264, 1896), (104, 200, 504, 432), (0, 8, 904, 1104)):
        assert_alike(got(data, crop), expected(Image.open(io.BytesIO(data)), crop, SIZE), **REDUCED)


# What viewers make of the stored pixels, by the EXIF standard: 2 to 4 mirror or turn, 5 to 8 exchange the axes too.
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_as_their_header_says(photo, installed, kind, orientation):
    header = Image.Exif()
    header[0x0112] = orientation
    options = dict(lossless=True) if kind == "WEBP" else {}
    data = encode(photo, kind, exif=header.tobytes(), **options)
    stored = np.asarray(Image.open(io.BytesIO(encode(photo, kind, **options))).convert("RGB"))
    upright = np.ascontiguousarray(UPRIGHT[orientation](stored))
    np.testing.assert_array_equal(decode.decode_image(data, "it", 3), upright)
    as_stored = PixelRules(exif_orientation=False)
    if kind == "TIFF":  # which Pillow turns in any case
        as_stored, stored = PixelRules(), upright
    np.testing.assert_array_equal(decode.decode_image(data, "it", 3, rules=as_stored), stored)

    height, width = upright.shape[:2]
    shapes, crop = [], (10, 20, SIZE, SIZE)
    choose = lambda *shape: shapes.append(shape) or crop
    assert_alike(decode.decode_crop(data, "it", 3, SIZE, choose), expected(Image.fromarray(upright), crop, SIZE))
    assert set(shapes) == {(height, width)}
    assert_alike(
        decode.decode_crop(data, "it", 3, SIZE, lambda *_: crop, as_stored),
        expected(Image.fromarray(stored), crop, SIZE),
    )


def test_a_large_turned_photograph_is_read_at_a_fraction_of_its_size(photo, installed):
    header = Image.Exif()
    header[0x0112] = 6
    large = photo.resize((1904, 1264), Image.Resampling.BICUBIC)  # of whole blocks, from either side
    data = encode(large, exif=header.tobytes())
    upright = Image.fromarray(np.rot90(np.asarray(Image.open(io.BytesIO(encode(large)))), -1))
    for crop in ((0, 0, 1896, 1264), (200, 104, 432, 504)):
        assert_alike(got(data, crop), expected(upright, crop, SIZE), **REDUCED)


def test_postscript_under_another_name_is_given_to_no_program(monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    with pytest.raises(RunError, match="Pillow does not know its format"):
        decode.decode_image(tmp_path / "x.png", "x.png", 3)


@pytest.mark.parametrize("value", [0, 9, 300])
def test_an_orientation_that_is_none_changes_nothing(photo, value):
    header = Image.Exif()
    header[0x0112] = value
    data = encode(photo, exif=header.tobytes())
    np.testing.assert_array_equal(decode.decode_image(data, "it", 3), decode.decode_image(encode(photo), "it", 3))


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def transparent_files():
    """{kind: (image, its colors, its opacity from 0 to 1)}, each with transparent pixels over hidden colors."""
    colors, alpha = np.stack([RAMP, RAMP.T, 255 - RAMP], -1), RAMP.T
    palette = Image.fromarray(RAMP, "P")
    palette.putpalette(np.stack([np.arange(256)] * 2 + [np.full(256, 9)], -1).astype(np.uint8).tobytes())
    palette.info["transparency"] = bytes(range(256))
    of_palette = np.stack([RAMP, RAMP, np.full_like(RAMP, 9)], -1)
    gray = np.repeat(RAMP[..., None], 3, -1)
    keyed = Image.fromarray(RAMP)
    keyed.info["transparency"] = 7
    return {
        "RGBA": (Image.fromarray(np.dstack([colors, alpha])), colors, alpha / 255),
        "LA": (Image.fromarray(np.dstack([RAMP, alpha])), gray, alpha / 255),
        "palette": (palette, of_palette, RAMP / 255),
        "gray with a transparent level": (keyed, gray, (RAMP != 7) * 1.0),
    }


@pytest.mark.parametrize("background, level", [("white", 255), ("black", 0), ("none", None)])
@pytest.mark.parametrize("kind", transparent_files())
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_show_the_background(kind, background, level, channels):
    image, colors, opacity = transparent_files()[kind]
    data = encode(image, "PNG")
    shown = colors.astype(float)
    if level is not None:
        shown = shown * opacity[..., None] + level * (1 - opacity[..., None])
    if channels == 1:
        shown = (shown @ [0.299, 0.587, 0.114])[..., None]
    rules = PixelRules(background=background)
    assert_alike(decode.decode_image(data, "it", channels, rules=rules), shown, mean=1.0, worst=2)
    actual = decode.decode_crop(data, "it", channels, 8, lambda *_: (4, 5, 8, 8), rules)
    assert_alike(actual, shown[4:12, 5:13], mean=1.0, worst=2)


def test_a_black_icon_on_transparent_black_is_no_empty_image():
    icon = np.zeros((8, 8, 4), np.uint8)
    icon[2:6, 3:5, 3] = 255
    pixels = decode.decode_image(encode(Image.fromarray(icon), "PNG"), "it", 3)
    assert set(pixels[2:6, 3:5].ravel()) == {0} and (pixels == 255).sum() == 3 * (64 - 8)


@pytest.mark.parametrize("scale", [1.0, 1.3, 1.99, 2.6, 4.0])
def test_the_blur_has_the_variance_that_linear_interpolation_lacks(scale):
    taps = decode.blur(scale)
    path = np.arange(len(taps)) - len(taps) // 2
    assert len(taps) % 2 == 1
    assert taps.min() >= 0
    np.testing.assert_allclose([taps.sum(), taps @ path, taps @ path**2], [1, 0, (scale**2 - 1) / 6], atol=1e-5)


def test_fine_texture_does_not_turn_into_coarse(installed):
    """A pattern finer than the result can show becomes gray, and no moire."""
    stripes = np.broadcast_to((np.arange(180) % 2 * 255).astype(np.uint8)[None, :, None], (180, 180, 3))
    pixels = got(encode(Image.fromarray(stripes), "PNG"), (0, 0, 180, 180)).astype(float)
    assert np.abs(pixels[:, 2:-2] - 127.5).max() < 24


@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_the_center_is_kept_in_the_share_asked_for(photo, crop_pct):
    side = 427 * crop_pct
    box = ((640 - side) / 2, (427 - side) / 2, (640 + side) / 2, (427 + side) / 2)
    reference = photo.resize((64, 64), Image.Resampling.BICUBIC, box=box)
    np.testing.assert_array_equal(
        decode.decode_image(encode(photo, "PNG"), "it", 3, 64, crop_pct), np.asarray(reference)
    )


def broken(photo):
    """Files of several kinds of damage, by what it is."""
    data = encode(photo)
    start = data.index(b"\xff\xc0")
    huge = data[: start + 5] + struct.pack(">HH", 65000, 65000) + data[start + 9 :]
    return {"cut": data[: len(data) // 2], "none": b"", "text": b"not an image", "head": data[:40], "huge": huge}


@pytest.mark.parametrize("damage", ["cut", "none", "text", "head", "huge"])
def test_a_broken_file_is_an_error_that_names_it(installed, photo, damage):
    data = broken(photo)[damage]
    with pytest.raises(RunError, match=r"^the image cannot be decoded \(.+\); repair or remove it$"):
        got(data, (0, 0, 50, 50))
    with pytest.raises(RunError, match=r"^the image cannot be decoded"):
        decode.decode_image(data, "the image", 3, 50)


@pytest.mark.parametrize("error", [RuntimeError("AVIF"), NotImplementedError("DDS"), MemoryError(), IndexError("a\nb")])
def test_whatever_a_decoder_raises_is_an_error_that_names_the_image(monkeypatch, photo, error):
    def fails(image):
        raise error

    data = encode(photo.resize((8, 8)), "PNG")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fails)
    for attempt in (lambda: got(data, (0, 0, 4, 4)), lambda: decode.decode_image(data, "the image", 3, 50)):
        with pytest.raises(RunError, match=rf"^the image cannot be decoded \({type(error).__name__}.*\); repair"):
            attempt()


@pytest.mark.slow
def test_a_worker_reads_a_large_image_without_a_warning(photo):
    program = """
import sys
from PIL import Image
from patchnets.data import decode
Image.MAX_IMAGE_PIXELS = 427 * 640 - 1
print(decode.decode_image(sys.stdin.buffer.read(), "it", 3, 96).shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, input=encode(photo, "PNG"), capture_output=True, timeout=60
    )
    assert (done.stdout, done.stderr) == (b"(96, 96, 3)\n", b"")
