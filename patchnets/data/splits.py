"""Splits in TFDS's slicing syntax (`train[:90%]`, `test[100:200]`, `train+test`) for any source.

Rounding is TFDS's default ("closest"), so that a slice selects the same examples as in TFDS:
https://www.tensorflow.org/datasets/splits
"""

import re
from collections.abc import Mapping

import numpy as np

from patchnets.errors import UserError

PART = re.compile(r"(?P<name>\w[\w-]*)(\[(?P<low>-?\d+(\.\d+)?%?)?(?P<colon>:)(?P<high>-?\d+(\.\d+)?%?)?\])?", re.ASCII)

Part = tuple[str, int, int]  # a split's name, the first of its examples, and one past the last
ROLES = ("train", "val", "test")


def _bound(text: str | None, default: int, size: int, spec: str) -> int:
    """Convert a bound to a position in [0, size]; percentages and negative bounds count as in TFDS."""
    if text is None:
        return default
    if text.endswith("%"):
        percent = float(text[:-1])
        if abs(percent) > 100:
            raise UserError(f"split {spec!r}: {text} is beyond 100%")
        position = round(percent * size / 100)
    elif "." in text:
        raise UserError(f"split {spec!r}: {text} is neither a whole number nor a percentage")
    else:
        position = int(text)
        if abs(position) > size:
            raise UserError(f"split {spec!r}: {text} is beyond the {size} examples there are")
    return position + size if position < 0 else position


def parse_split(spec: str, sizes: Mapping[str, int]) -> list[Part]:
    """Return [(name, first, one past the last), ...] for a split such as "train[:90%]+test".

    Args:
      spec: the split, in TFDS's syntax.
      sizes: number of examples of each split that exists.

    Raises:
      UserError: `spec` cannot be read, names a split that does not exist, or holds no examples.
    """
    parts = []
    for text in spec.replace(" ", "").split("+"):
        match = PART.fullmatch(text)
        if not match:
            raise UserError(f"split {spec!r} cannot be read; expected the form train[:90%]")
        name = match["name"]
        if name not in sizes:
            raise UserError(f"split {spec!r}: there is no {name!r}; there is {', '.join(sizes) or 'nothing'}")
        bounds = [bound for bound in (match["low"], match["high"]) if bound]
        if len({bound.endswith("%") for bound in bounds}) > 1:
            raise UserError(f"split {spec!r}: {text} mixes a percentage with a number of examples; use one of them")
        size = sizes[name]
        low, high = _bound(match["low"], 0, size, spec), _bound(match["high"], size, size, spec)
        if low >= high:
            raise UserError(f"split {spec!r} holds no examples ({name} has {size}); choose a wider one, or none")
        parts.append((name, low, high))
    return parts


def examples(parts: list[Part]) -> int:
    """Count the examples of a parsed split."""
    return sum(high - low for _, low, high in parts)


def overlap(first: list[Part], second: list[Part]) -> int:
    """Count the examples that two parsed splits share."""
    return sum(
        max(0, min(a_high, b_high) - max(a_low, b_low))
        for a_name, a_low, a_high in first
        for b_name, b_low, b_high in second
        if a_name == b_name
    )


def stratified(labels: np.ndarray, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the rest and of a held-out `share` of every class, both shuffled by `seed`."""
    generator = np.random.RandomState(seed)  # NumPy guarantees that its stream does not change (NEP 19)
    rest, held = [], []
    for label in np.unique(labels):
        positions = generator.permutation(np.flatnonzero(labels == label))
        count = round(share * len(positions))
        held.append(positions[:count])
        rest.append(positions[count:])
    return generator.permutation(np.concatenate(rest)), generator.permutation(np.concatenate(held))


def choose_splits(
    sizes: Mapping[str, int], train: str | None = None, val: str | None = None, test: str | None = None
) -> dict[str, str | None]:
    """Return the train, val and test splits in TFDS's syntax, with the defaults filled in; None for one not used.

    By default a data set's own validation split is used, or else the last 10% of train.

    Raises:
      UserError: a split does not exist or is empty, or two of them share examples.
    """
    own = next((name for name in ("validation", "val") if name in sizes), None)
    val = val or own or "train[90%:]"
    train = train or _train_without(val, sizes)
    test = test or ("test" if "test" in sizes else "none")
    split_specs: dict[str, str | None] = {}
    for role, spec in zip(ROLES, (train, val, test)):
        split_specs[role] = None if spec == "none" else spec
    if split_specs["train"] is None:
        raise UserError("config.dataset.train_split='none': there is nothing to train on")
    parsed = {role: parse_split(spec, sizes) for role, spec in split_specs.items() if spec}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = overlap(parsed.get(first, []), parsed.get(second, []))
        if shared:
            raise UserError(
                f"{first} split {split_specs[first]!r} and {second} split {split_specs[second]!r} share {shared:,} "
                f"examples; set config.dataset.{first}_split and config.dataset.{second}_split apart"
            )
    return split_specs


def _train_without(val: str, sizes: Mapping[str, int]) -> str:
    """Return train without the validation split's part of it."""
    if val == "train[90%:]":
        return "train[:90%]"
    taken = [part for part in parse_split(val, sizes) if part[0] == "train"] if val != "none" else []
    if len(taken) != 1:
        return "train"
    _, low, high = taken[0]
    rest = ([f"train[:{low}]"] if low else []) + ([f"train[{high}:]"] if high < sizes["train"] else [])
    return "+".join(rest) or "train"
