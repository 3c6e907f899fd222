"""Fonts for names of any script in pictures: which characters can be drawn, and with which installed fonts.

Matplotlib's own font, DejaVu Sans, lacks Chinese, Japanese, Korean and others. Characters that no installed font has
are drawn as their codes, "\\u65e5", and not as boxes.
"""

import functools
import itertools
import pathlib
import unicodedata
from collections.abc import Set

LAST_RESORT = "Last Resort"  # fonts of this name draw a box for every character
REGULAR = (400, "normal", "regular")


def drawable(text: str) -> str:
    """Return a text as one line that can be drawn: control characters, and those without a glyph, by their codes."""

    def drawn(character: str) -> bool:
        return character.isprintable() and _family_of(character) is not None

    return "".join(character if drawn(character) else ascii(character)[1:-1] for character in text)


def shorten(text: str, columns: int) -> str:
    """Return the beginning of a text and three dots, if it takes more than `columns` in a font of fixed width."""
    widths = [2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text]
    if sum(widths) <= columns:
        return text
    fitting = sum(end <= columns - 3 for end in itertools.accumulate(widths))
    return f"{text[:fitting]}..."


def families(text: str) -> list[str]:
    """Return the families with which Matplotlib draws a text: its own, and others for characters that this lacks."""
    import matplotlib

    others = [family for character in text if (family := _family_of(character))]
    return list(dict.fromkeys([*matplotlib.rcParams["font.family"], *others]))


def segments(text: str) -> list[tuple[pathlib.Path, str]]:
    """Return the files with which to draw the parts of a text, for programs that draw with one font at a time."""
    grouped = itertools.groupby(text, lambda character: _family_of(character) or "")
    return [(_installed()[family] if family else _default(), "".join(part)) for family, part in grouped]


@functools.cache
def _family_of(character: str) -> str | None:
    """Return an installed family that has a character; "" for Matplotlib's own, None if there is none."""
    if ord(character) in _code_points(_default()):
        return ""
    return next((name for name, file in _installed().items() if ord(character) in _code_points(file)), None)


@functools.cache
def _installed() -> dict[str, pathlib.Path]:
    """Return {family: file} of the regular fonts that Matplotlib can draw with, those without serifs first."""
    from matplotlib import font_manager

    fonts = {
        font.name: pathlib.Path(font.fname)
        for font in font_manager.fontManager.ttflist
        if font.style == "normal" and font.weight in REGULAR and not font.name.startswith(LAST_RESORT)
    }
    return dict(sorted(fonts.items(), key=lambda item: ("Sans" not in item[0], item[0])))


@functools.cache
def _default() -> pathlib.Path:
    from matplotlib import font_manager

    return pathlib.Path(font_manager.findfont(font_manager.FontProperties()))


@functools.cache
def _code_points(font: pathlib.Path) -> Set[int]:
    from matplotlib import font_manager

    try:
        return font_manager.get_font(str(font)).get_charmap().keys()
    except (OSError, RuntimeError):  # removed or replaced since Matplotlib listed it
        return set()
