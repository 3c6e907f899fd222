"""Values in the JSON files that come with weights, of which anything may be there in place of what is expected."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from patchnets.config.schema import LARGEST_FLOAT
from patchnets.errors import RunError, UserError, first_line
from patchnets.runtime.format import format_bytes

MAX_JSON = 2**26  # bytes of a file, which may name 21,843 classes


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
      RunError: it cannot be read, or holds no object.
    """
    try:
        if (size := path.stat().st_size) > MAX_JSON:
            raise RunError(
                f"{path} is of {format_bytes(size)}, and a configuration of at most {format_bytes(MAX_JSON)}"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({first_line(error, 200)})") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no JSON object, but a {type(content).__name__}")
    return content


def value_of(content: Mapping[str, Any], name: str, kind: type | tuple[type, ...], label: str) -> Any:
    """Return an entry of a JSON object, None if it is missing or null.

    Raises:
      UserError: it is of another type, or a number that 32 bits do not hold.
    """
    value: Any = content.get(name)
    expected = kind if isinstance(kind, tuple) else (kind,)
    if value is None or (isinstance(value, expected) and (type(value) is not bool or bool in expected)):
        if isinstance(value, int | float) and float in expected and not abs(value) <= LARGEST_FLOAT:
            raise UserError(f"{label}: {name}={str(value)[:80]} is no finite number")
        return value
    raise UserError(f"{label}: {name}={str(value)[:80]!r} is no {expected[0].__name__}")


def numbers_of(content: Mapping[str, Any], name: str, label: str) -> tuple[float, ...] | None:
    """Return a list of numbers of a JSON object; a number as a list of one. Raise UserError for anything else."""
    value = content.get(name)
    values: list[Any] = value if isinstance(value, list) else [value]
    if value is None:
        return None
    if not values or not all(type(v) in (int, float) and abs(v) <= LARGEST_FLOAT for v in values):
        raise UserError(f"{label}: {name}={str(value)[:80]!r} is no list of numbers")
    return tuple(values)
