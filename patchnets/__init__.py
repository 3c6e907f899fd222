"""Patch-based image classifiers in JAX/Flax: MLP-Mixer and its relatives, trained, compared, reproduced and used.

import patchnets
model = patchnets.load("runs/mixer_digits")
model.predict(["photo.jpg"])
"""

import time

TYPE_CHECKING = False  # without importing typing: a command handles signals only after this file
if TYPE_CHECKING:
    from typing import Any

    from patchnets.inference.load import load
    from patchnets.inference.model import Model

STARTED = time.monotonic()  # when this process began to be patchnets: what "first step after" counts from

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> "Any":
    """Import the Python interface when it is asked for: it needs JAX, and the commands set that up first."""
    if name not in ("Model", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from patchnets.inference import load, model

    return load.load if name == "load" else model.Model
