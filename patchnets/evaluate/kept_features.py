"""Features of images in files, so that the next classifier does not compute them again."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from patchnets.errors import RunError, UserError, first_line
from patchnets.evaluate.probe import FeatureSet
from patchnets.weights.files import write_npz

ARRAYS = ("features", "labels", "unreadable", "identity")


def write(path: pathlib.Path, features: FeatureSet, identity: Mapping[str, str]) -> None:
    """Write features with what they are of: `identity`, such as {"weights": SHA-256, "images": ...}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = np.array(json.dumps(identity))
    unreadable = np.array(features.unreadable, dtype=str)
    write_npz(path, dict(zip(ARRAYS, (features.features, features.labels, unreadable, text))))


def read(path: pathlib.Path, identity: Mapping[str, str]) -> FeatureSet | None:
    """Return the features in a file; None if there is none.

    Raises:
      UserError: they are not those of `identity`.
      RunError: the file cannot be read.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            features, labels, unreadable, text = (archive[name] for name in ARRAYS)
        stored = json.loads(str(text))
        if features.shape[:1] != labels.shape or features.ndim != 2:
            raise ValueError(f"{features.shape} features have {labels.shape} labels")
        differing = [name for name in identity if stored.get(name) != identity[name]]
    except Exception as error:  # zipfile's, NumPy's and json's, of a damaged file
        raise RunError(f"{path} holds no features of this command ({first_line(error, 200)}); remove it") from error
    if differing:
        raise UserError(
            f"{path} holds features of other {' and '.join(differing)}; remove it, or name another folder (--features)"
        )
    return FeatureSet(features, labels, tuple(map(str, unreadable)))
