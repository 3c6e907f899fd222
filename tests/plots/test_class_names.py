"""Pictures with class names of any characters: none is lost, nothing is printed, and no name becomes a box."""

import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from patchnets.inference import overlay
from patchnets.plots import figures, patches, predictions
from patchnets.plots.predictions import Predictions
from patchnets.runtime import fonts

NAMES = {
    "dollars": "$5 and $10^{",
    "one dollar": "US$",
    "formula": r"$\alpha_1$",
    "broken formula": r"$\frac{1$",
    "underscores": "_hidden_ a__b",
    "percent": "100 % {x} \\n",
    "accents": "café Ωμέγα Привет",
    "decomposed": "cafe\u0301",
    "chinese": "狗 和 猫",
    "japanese": "ねこ カメ",
    "korean": "고양이",
    "hebrew": "חתול",
    "arabic": "قطة",
    "devanagari": "बिल्ली",
    "emoji": "🐈 cat 👩‍👩‍👧 😀",
    "newline": "two\nlines\tand\ttabs",
    "control": "bell\x07 esc\x1b[31m null\x00",
    "direction": "a\u202ebc\u200fd",
    "not UTF-8": b"caf\xe9 \xff".decode(errors="surrogateescape"),
    "unassigned": "\U0003fffe \ue000 \ufffe",
    "space": " ",
    "long": "x" * 255,
    "long chinese": "狗" * 85,
}


def make_predictions(classes):
    labels = np.arange(2 * classes) % classes
    predicted = np.where(np.arange(2 * classes) < classes, labels, (labels + 1) % classes)
    mistaken = np.flatnonzero(labels != predicted)[:24]
    images = np.random.default_rng(0).integers(0, 256, (len(mistaken), 8, 8, 3), np.uint8)
    return Predictions(labels, predicted, np.linspace(0.3, 1, 2 * classes), mistaken, images)


def draw_all(names, folder):
    made = make_predictions(len(names))
    drawn = {
        "confusion": predictions.confusion(made, names),
        "class_accuracy": predictions.per_class(made, names),
        "mistakes": predictions.mistakes(made, names),
        "patches": patches.image_and_patches(np.ones((8, 8, 1)), (4, 4), names[0]),
    }
    return {name: figures.save(figure, folder / f"{name}.png") for name, figure in drawn.items()}


@pytest.mark.slow
def test_all_pictures_are_drawn_without_a_warning(tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = draw_all(list(NAMES.values()), tmp_path)
    for path in paths.values():
        with Image.open(path) as picture:
            assert min(picture.size) > 300
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_drawn_as_itself(name, tmp_path):
    """As another picture than without it, in one line, and with no character that no font has."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = [
            figures.save(patches.image_and_patches(np.ones((8, 8, 1)), (4, 4), text), tmp_path / f"{i}.png")
            for i, text in enumerate((NAMES[name], "", "$"))
        ]
        sheet = overlay.side_by_side(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32), NAMES[name])
    pictures = [np.asarray(Image.open(path)) for path in paths]
    assert pictures[0].shape == pictures[1].shape
    rows = np.abs(pictures[0].astype(int) - pictures[1]).max(axis=(1, 2)).nonzero()[0]
    assert name == "space" or 3 < np.ptp(rows) < 30  # one line of text of 10 points at 110 dots an inch
    assert sheet.size == (2 * 256 + 8, 256 + 30)


def test_formulas_and_underscores_are_shown_as_they_are_written(tmp_path):
    names = ["$x$", "_a_"]
    figure = predictions.confusion(make_predictions(2), names)
    figures.save(figure, tmp_path / "a.png")
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text() in names]
    assert len(texts) >= 4 and not any(text.get_parse_math() for text in texts)


def test_characters_that_no_font_has_become_their_codes(monkeypatch):
    monkeypatch.setattr(fonts, "_family_of", lambda character: "" if ord(character) < 256 else None)
    assert fonts.drawable("狗 dog é\n") == "\\u72d7 dog é\\n"
    assert fonts.drawable(b"\xff".decode(errors="surrogateescape")) == "\\udcff"
    assert figures.label("狗" * 85) == ("\\u72d7" * 8)[:37] + "..."
    monkeypatch.undo()
    assert fonts.shorten("狗" * 20, 40) == "狗" * 20 and fonts.shorten("狗" * 21, 40) == "狗" * 18 + "..."
    assert fonts.shorten("", 40) == "" and fonts.shorten("x" * 41, 40) == "x" * 37 + "..."


def test_installed_fonts_stand_in_for_what_the_default_lacks(monkeypatch):
    """With a default that has ASCII only, DejaVu Serif is one of those that have Greek."""
    default = fonts._default()
    code_points = fonts._code_points
    monkeypatch.setattr(
        fonts, "_code_points", lambda font: set(range(32, 127)) if font == default else code_points(font)
    )
    installed = {"DejaVu Serif": fonts._installed()["DejaVu Serif"]}
    monkeypatch.setattr(fonts, "_installed", lambda: installed)
    fonts._family_of.cache_clear()
    try:
        assert fonts.drawable("aΩ") == "aΩ" and fonts.families("aΩ")[-1] == "DejaVu Serif"
        assert fonts.families("a") == matplotlib.rcParams["font.family"]
        serif = installed["DejaVu Serif"]
        assert fonts.segments("a ΩΩ.") == [(default, "a "), (serif, "ΩΩ"), (default, ".")]
    finally:
        fonts._family_of.cache_clear()


def test_a_font_that_draws_boxes_for_everything_is_none():
    assert fonts._installed() and not [name for name in fonts._installed() if "resort" in name.lower()]
    assert any(entry.name == "DejaVu Sans" for entry in font_manager.fontManager.ttflist)
