"""Names of the classes of weights: their own, ImageNet-1k's, or numbers."""

import functools
from collections import Counter
from importlib import resources
from typing import Any

from patchnets.errors import UserError
from patchnets.weights.layout import Notes

LARGEST = 10**6  # classes


@functools.cache
def imagenet() -> tuple[str, ...]:
    """Return short names of the 1,000 classes of ImageNet-1k in the order of its labels (by WordNet's numbers)."""
    text = (resources.files("patchnets.weights") / "imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def class_names(count: int, names: Any, notes: Notes, label: str) -> tuple[str, ...]:
    """Return the names of `count` classes, all different.

    Args:
      names: those that the weights bring: a list of texts, or an object {number: text}; None for none.
      notes: gets a line if others were assumed.
      label: what to call the file in errors.

    Raises:
      UserError: `names` are of another kind, or there are more classes than can be.
    """
    if not 0 <= count <= LARGEST:
        raise UserError(f"{label} has {count:,} classes, and at most {LARGEST:,} are read")
    if isinstance(names, dict):
        names = [names.get(str(i)) for i in range(len(names))]
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{label}: its class names are no list of texts, but {str(names)[:80]!r}")
    if names and len(names) == count and names != [f"LABEL_{i}" for i in range(count)]:
        times = Counter(names)
        different = tuple(name if times[name] == 1 else f"{name} ({i})" for i, name in enumerate(names))
        return different if len(set(different)) == count else tuple(f"{name} ({i})" for i, name in enumerate(names))
    if count == 0:
        return ()
    reason = f"the file names {len(names):,} of {count:,}" if names and len(names) != count else "the file has none"
    if count == len(imagenet()):
        notes.assume(f"the class names of ImageNet-1k, for {reason}")
        return imagenet()
    notes.assume(f"numbers as class names, for {reason}")
    return tuple(map(str, range(count)))
