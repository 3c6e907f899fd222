"""Pictures of explanations: where they are colored, and how large they are."""

import numpy as np
import pytest
from PIL import Image

from patchnets.inference import overlay


@pytest.mark.parametrize(("size", "side"), [(8, 256), (96, 288), (224, 448), (256, 256), (300, 300)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_enlarged_by_whole_factors(size, side, channels):
    image = np.random.default_rng(0).integers(0, 256, (size, size, channels)).astype(np.uint8)
    picture = np.asarray(overlay.enlarge(image))
    assert picture.shape == (side, side, 3)
    np.testing.assert_array_equal(picture[:: side // size, :: side // size], np.broadcast_to(image, (size, size, 3)))


def test_colors_lie_where_the_map_is_not_zero():
    image = np.full((8, 8, 1), 128, np.uint8)
    heat = np.zeros((8, 8), np.float32)
    np.testing.assert_array_equal(overlay.blend(image, heat), overlay.enlarge(image))
    heat[1, 6] = 1
    difference = np.abs(np.asarray(overlay.blend(image, heat), int) - 128).sum(-1)
    y, x = np.unravel_index(difference.argmax(), difference.shape)
    assert (y // 32, x // 32) == (1, 6)
    assert not difference[96:].any() and not difference[:, :160].any()


def test_a_sheet_has_a_title_that_fits_and_is_written_whole(tmp_path):
    image = np.zeros((224, 224, 3), np.uint8)
    sheets = [
        np.asarray(overlay.side_by_side(image, np.zeros((224, 224)), title)) for title in ("", "cat", "cat " * 400)
    ]
    assert {sheet.shape for sheet in sheets} == {(30 + 448, 448 + 8 + 448, 3)}
    dark = [(sheet[:30] < 128).any(axis=(0, 2)) for sheet in sheets]
    assert not dark[0].any() and 10 < dark[1].nonzero()[0].max() < 60 and 800 < dark[2].nonzero()[0].max() < 896
    overlay.save(overlay.side_by_side(image, np.zeros((224, 224)), "cat"), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(picture, sheets[1])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
