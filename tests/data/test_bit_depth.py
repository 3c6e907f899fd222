"""Images of more than 8 bits become the levels that their range says, in every format, for any number of channels."""

import io
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from tiff_files import tiff

from patchnets.data import bit_depth, decode
from patchnets.data.pixel_rules import PixelRules
from patchnets.errors import RunError

TWELVE_BITS = PixelRules(value_ranges=((0.0, 4095.0),))
SHAPE = (6, 9)


def values(channels=1, high=4096, seed=0):
    shape = SHAPE if channels == 1 else (*SHAPE, channels)
    return np.random.default_rng(seed).integers(0, high, shape).astype(np.uint16)


def encode(suffix, array):
    """OpenCV's encoding, which keeps all bits."""
    if array.ndim == 3:
        array = array[..., [2, 1, 0, 3][: array.shape[2]]]
    ok, data = cv2.imencode(suffix, array)
    assert ok
    return data.tobytes()


def jpeg2000(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG2000", num_resolutions=1)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def wanted(array, low=0.0, high=4095.0):
    """Levels by the definition."""
    return np.clip(np.floor((array.astype(float) - low) / (high - low) * 255 + 0.5), 0, 255)


def assert_levels(pixels, expected, tolerance=0):
    assert pixels.dtype == np.uint8
    expected = expected.reshape(pixels.shape)
    assert np.abs(pixels.astype(float) - expected).max() <= tolerance


GRAY = {
    "PNG": lambda array: encode(".png", array),
    "TIFF, compressed": lambda array: encode(".tif", array),
    "TIFF, little end first": lambda array: tiff(array, "little"),
    "TIFF, big end first": lambda array: tiff(array, "big"),
    "PGM": lambda array: encode(".pgm", array),
    "JPEG 2000": lambda array: jpeg2000(array),
    "npy": npy,
}


@pytest.mark.parametrize("kind", GRAY)
def test_gray_images_of_twelve_bits_use_all_levels(kind):
    array = values()
    data = GRAY[kind](array)
    assert_levels(decode.decode_image(data, "it", 1, rules=TWELVE_BITS), wanted(array))
    assert_levels(decode.decode_image(data, "it", 3, rules=TWELVE_BITS), np.repeat(wanted(array)[..., None], 3, 2))
    crop = decode.decode_crop(data, "it", 1, 6, lambda height, width: (0, 1, 6, 6), TWELVE_BITS)
    assert_levels(crop, wanted(array)[:, 1:7])
    assert decode.count_channels(data) == 1
    np.testing.assert_array_equal(decode.deep_values(data)[..., 0], array)


@pytest.mark.parametrize("kind", ["little", "big", "npy"])
@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.int32])
def test_floats_and_signed_integers_are_scaled(kind, dtype):
    array = (values().astype(float) - 1000).astype(dtype)
    rules = PixelRules(value_ranges=((-1000.0, 3095.0),))
    data = npy(array) if kind == "npy" else tiff(array, kind)
    assert_levels(decode.decode_image(data, "it", 1, rules=rules), wanted(array, -1000, 3095))


def test_values_that_are_no_numbers_or_beyond_the_range_are_the_ends_of_it():
    array = np.array([[np.nan, -np.inf, np.inf], [-5, 0.5, 7]], np.float32)
    rules = PixelRules(value_ranges=((0.0, 1.0),))
    for data in (npy(array), tiff(array, "little")):
        levels = decode.decode_image(data, "it", 1, rules=rules)[..., 0]
        np.testing.assert_array_equal(levels, [[0, 0, 255], [0, 128, 255]])


COLOR = {
    "PNG": lambda array: encode(".png", array),
    "TIFF, compressed": lambda array: encode(".tif", array),
    "TIFF, little end first": lambda array: tiff(array, "little"),
    "TIFF, big end first": lambda array: tiff(array, "big"),
    "npy": npy,
}


@pytest.mark.parametrize("kind", COLOR)
@pytest.mark.parametrize("as_path", [False, True])
def test_colors_of_sixteen_bits_keep_both_bytes_until_they_are_scaled(tmp_path, kind, as_path):
    array = values(3)
    data = COLOR[kind](array)
    np.testing.assert_array_equal(decode.deep_values(data), array)
    if as_path:
        path = tmp_path / ("x.npy" if kind == "npy" else "x.any")
        path.write_bytes(data)
        data = path
    assert decode.count_channels(data) == 3
    assert_levels(decode.decode_image(data, "it", 3, rules=TWELVE_BITS), wanted(array))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_transparency_of_sixteen_bits_shows_the_background(suffix):
    array = np.dstack([values(3), np.full(SHAPE, 65535, np.uint16)])
    array[0, 0, 3] = 0
    expected = wanted(array[..., :3])
    expected[0, 0] = 255
    assert_levels(decode.decode_image(encode(suffix, array), "it", 3, rules=TWELVE_BITS), expected)


def test_an_image_of_pillow_is_as_its_file_or_refused(tmp_path):
    array = values(3)
    path = tmp_path / "x.png"
    path.write_bytes(encode(".png", array))
    with Image.open(path) as image:
        assert_levels(decode.decode_image(image, "it", 3, rules=TWELVE_BITS), wanted(array))
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        with pytest.raises(RunError, match="of the 16 bits of its colors Pillow keeps 8; give the path"):
            decode.decode_image(image, "it", 3, rules=TWELVE_BITS)
        np.testing.assert_array_equal(decode.decode_image(image, "it", 3), array >> 8)  # as Pillow has it


def gray_alpha_png(gray, alpha):
    """A PNG of 16-bit gray and alpha, which neither Pillow nor OpenCV writes."""
    return deep_png(np.dstack([gray, alpha]), 4)


def deep_png(array, color_type, *chunks):
    """A PNG of 16 bits; `chunks` (name, content) come before its pixels."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, color_type, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return data


def test_gray_with_transparency_keeps_both_bytes_until_it_is_scaled(tmp_path):
    """Pillow's own reading of such a PNG drops the lower bytes."""
    array, alpha = values(), np.full(SHAPE, 65535, np.uint16)
    alpha[0, 0] = 0
    data = gray_alpha_png(array, alpha)
    expected = wanted(array)
    expected[0, 0] = 255
    (tmp_path / "x.png").write_bytes(data)
    for form in (data, tmp_path / "x.png"):
        assert decode.count_channels(form) == 1
        np.testing.assert_array_equal(decode.deep_values(form), np.repeat(array[..., None], 3, 2))
        assert_levels(decode.decode_image(form, "it", 1, rules=TWELVE_BITS), expected)
        assert_levels(decode.decode_image(form, "it", 3, rules=TWELVE_BITS), np.repeat(expected[..., None], 3, 2))


def test_without_a_range_sixteen_bits_span_their_type_and_floats_are_refused():
    array = np.random.default_rng(1).integers(0, 65536, SHAPE).astype(np.uint16)
    for data in (encode(".png", array), tiff(array, "big"), npy(array)):
        assert_levels(decode.decode_image(data, "it", 1), (array.astype(int) + 128) // 257)
    with pytest.raises(RunError, match=r"it cannot be decoded \(its pixels are float32 and their range is not known"):
        decode.decode_image(npy(np.zeros(SHAPE, np.float32)), "it", 1)


def test_images_of_eight_bits_are_as_they_were():
    array = np.random.default_rng(1).integers(0, 256, (*SHAPE, 3), np.uint8)
    for data in (encode(".png", array), encode(".tif", array), npy(array)):
        np.testing.assert_array_equal(decode.decode_image(data, "it", 3, rules=TWELVE_BITS), array)
        assert decode.deep_values(data) is None


# Arrays.


def test_arrays_of_many_channels_are_resized_and_cropped_channel_by_channel():
    array = np.random.default_rng(2).integers(0, 256, (40, 50, 6), np.uint8)
    resized = decode.decode_image(npy(array), "it", 6, 16)
    crop = decode.decode_crop(npy(array), "it", 6, 16, lambda height, width: (2, 3, 30, 33))
    assert resized.shape == crop.shape == (16, 16, 6)
    for c in range(6):
        gray = encode(".png", array[..., c])
        np.testing.assert_array_equal(resized[..., [c]], decode.decode_image(gray, "it", 1, 16))
        np.testing.assert_array_equal(
            crop[..., [c]], decode.decode_crop(gray, "it", 1, 16, lambda height, width: (2, 3, 30, 33))
        )


def test_each_channel_has_its_own_range():
    array = np.random.default_rng(2).integers(0, 1000, (*SHAPE, 2)).astype(np.int32) * [1, 50]
    rules = PixelRules(value_ranges=((0.0, 999.0), (0.0, 49950.0)))
    levels = decode.decode_image(npy(array), "it", 2, rules=rules)
    assert_levels(levels, wanted(array, np.array([0, 0]), np.array([999, 49950])))


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_arrays_that_are_no_images_are_refused_by_name(tmp_path, capsys):
    objects = io.BytesIO()
    np.save(objects, np.array([Evil()], object), allow_pickle=True)
    full = npy(np.zeros((64, 64, 3), np.uint8))
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        huge, {"shape": (10**6, 10**6), "fortran_order": False, "descr": "|u1"}
    )  # a terabyte, of which nothing follows
    wrong = {
        "objects": (objects.getvalue(), "is an array of object"),
        "pickle": (pickle.dumps(Evil()), "does not know its format"),
        "cut": (full[:-1], "is not as long as its header says"),
        "longer": (full + b"x", "is not as long as its header says"),
        "huge": (huge.getvalue(), "is not as long as its header says"),
        "a row": (npy(np.zeros(7, np.uint8)), r"is of shape \(7,\)"),
        "several": (npy(np.zeros((2, 4, 4, 3), np.uint8)), r"is of shape \(2, 4, 4, 3\)"),
        "channels first": (npy(np.zeros((3, 8, 8), np.uint8)), r"is of shape \(3, 8, 8\)"),
        "nothing": (npy(np.zeros((0, 8), np.uint8)), r"is of shape \(0, 8\)"),
        "complex": (npy(np.zeros(SHAPE, complex)), "is an array of complex128"),
        "text": (npy(np.full(SHAPE, "a")), "is an array of <U1"),
        "other channels": (npy(np.zeros((*SHAPE, 5), np.uint8)), "has 5 channels; expected 3"),
    }
    for name, (data, words) in wrong.items():
        path = tmp_path / f"{name}.npy"
        path.write_bytes(data)
        for form in (data, path) if name != "pickle" else (data,):
            with pytest.raises(RunError, match=words) as error:
                decode.decode_image(form, str(path), 3)
            assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_images_that_are_gray_or_rgb_are_refused_by_networks_of_other_channels():
    with pytest.raises(RunError, match="it has 3 channels; expected 6"):
        decode.decode_image(encode(".png", values(3).astype(np.uint8)), "it", 6)


def test_a_constant_image_is_no_division_by_zero():
    levels = bit_depth.to_levels(np.full((2, 2, 1), 7), ((7.0, 7.0),))
    np.testing.assert_array_equal(levels, np.zeros((2, 2, 1)))


def test_an_array_of_wide_integers_is_not_read_by_a_range_that_is_not_known(tmp_path):
    """NumPy's own integers have 64 bits, whatever they count."""
    np.save(tmp_path / "levels.npy", np.arange(64).reshape(8, 8, 1) * 4)
    with pytest.raises(RunError, match="its pixels are int64 and their range is not known"):
        decode.decode_image(tmp_path / "levels.npy", "levels.npy", 1)


def test_a_jpeg_among_arrays_of_more_channels_is_refused_when_it_is_streamed_too():
    encoded = io.BytesIO()
    Image.new("RGB", (16, 16)).save(encoded, "JPEG")
    with pytest.raises(RunError, match="it has 3 channels; expected 5"):
        decode.decode_crop(encoded.getvalue(), "a.jpg", 5, 8, lambda height, width: (0, 0, 8, 8))
