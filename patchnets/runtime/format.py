"""Human-readable durations, sizes and counts, and names that can be printed."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def format_duration(seconds: float) -> str:
    """Format seconds: 3725 -> "1 h 02 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(count: float) -> str:
    """Format bytes: "512 B", "4.6 MiB", "15.75 GiB"."""
    for least, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= least:
            return f"{count / least:,.2f} {unit}" if unit == "GiB" else f"{count / least:,.1f} {unit}"
    return f"{count:,.0f} B"


def format_count(count: float) -> str:
    """Format a count with an SI prefix, to be followed by a unit: 17_580_000_000 -> "17.6 G"."""
    for least, unit in UNITS:
        if count >= least:
            digits = 2 if count < 10 * least else 1 if count < 100 * least else 0
            return f"{count / least:.{digits}f} {unit}"
    return f"{count:.0f} "


def list_names(names: Sequence[str], limit: int = 5, quoted: bool = False) -> str:
    """Return names separated by commas, of many only the first `limit` and the number of the others."""
    shown = ", ".join(map(repr if quoted else printable, names[:limit]))
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"


def printable(text: str) -> str:
    """Return a text as it can be printed in one line: control characters and bytes that are no text by their codes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def same_name(name: str) -> str:
    """Return the form that names share which look alike: Unicode's composed one (NFC), of accents and the like.

    Linux keeps both forms apart; macOS and archives made there store the other one (NFD).
    """
    return unicodedata.normalize("NFC", name)


def shortest_float(value: Any) -> float:
    """Return a float32 as the shortest decimal that rounds to it: 0.93, not 0.9300000071525574."""
    return float(str(np.float32(value)))
