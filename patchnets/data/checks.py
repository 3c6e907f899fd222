"""Properties of a data set that make its figures mean less than they seem to: one line for each."""

import hashlib
from collections.abc import Container, Mapping, Sequence

import numpy as np
from jaxtyping import Int, UInt

from patchnets.runtime.format import list_names, printable

MAX_HASHED_BYTES = 2**30  # larger splits are not searched for duplicates: about a second a GiB
IMBALANCE = 3.0  # largest class over smallest, from which on it is named


def check_classes(class_names: Sequence[str], train_labels: Int[np.ndarray, " examples"]) -> list[str]:
    """Return lines about a single class, classes with at most one training image, and imbalance."""
    counts, class_names = np.bincount(train_labels, minlength=len(class_names)), list(map(printable, class_names))
    lines = []
    if len(class_names) == 1:
        lines.append(f"WARNING: there is one class only, {class_names[0]}: every prediction will be right")
    for count, words in ((0, "no training image"), (1, "a single training image")):
        if names := [name for name, number in zip(class_names, counts) if number == count]:
            lines.append(f"WARNING: {words} of {list_names(names)}")
    if len(class_names) > 1 and counts.min() > 1 and counts.max() >= IMBALANCE * counts.min():
        low, high = int(counts.argmin()), int(counts.argmax())
        lines.append(
            f"classes are imbalanced: {counts[low]:,} training images of {class_names[low]}, {counts[high]:,} of "
            f"{class_names[high]}; accuracy weighs them by their number"
        )
    return lines


def check_duplicates(
    images_of: Mapping[str, UInt[np.ndarray, "examples height width channels"]],
    skipped: Mapping[str, Container[int]] | None = None,
) -> list[str]:
    """Return lines about images of a later split, by their pixels, that an earlier one has too.

    Args:
      images_of: decoded images of train, val and test, as far as there are such.
      skipped: positions of images that could not be read.
    """
    if sum(images.nbytes for images in images_of.values()) > MAX_HASHED_BYTES:
        return []
    skipped = skipped or dict.fromkeys(images_of, ())
    listed = {
        role: [_hash(image) for i, image in enumerate(images) if i not in skipped[role]]
        for role, images in images_of.items()
    }
    hashes = {role: set(values) for role, values in listed.items()}
    lines, roles = [], list(images_of)
    for i, first in enumerate(roles):
        for other in roles[i + 1 :]:
            shared = hashes[first] & hashes[other]
            if count := sum(value in shared for value in listed[other]) if shared else 0:
                total = len(images_of[other])
                lines.append(f"WARNING: {count:,} of {total:,} {other} images are in {first} too, pixel for pixel")
    return lines


def _hash(image: UInt[np.ndarray, "height width channels"]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
