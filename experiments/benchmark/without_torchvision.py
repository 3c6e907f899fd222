"""Import timm without torchvision.

timm imports torchvision for transforms, data sets and a frozen layer, which the networks do not need, so empty modules
replace it.
"""

import contextlib
import enum
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

NAMES = ("torchvision", "torchvision.datasets", "torchvision.ops", "torchvision.ops.misc", "torchvision.transforms")
FUNCTIONAL = "torchvision.transforms.functional"
MODES = ("NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")


class Hollow(types.ModuleType):
    """A module in which every public name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        hollow = type(name, (), {})
        setattr(self, name, hollow)
        return hollow


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """Make `import torchvision` succeed inside the context, and remove the empty modules afterwards."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    made = {name: Hollow(name) for name in (*NAMES, FUNCTIONAL)}
    for name, module in made.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(made[parent], leaf, module)
    modes = enum.Enum("InterpolationMode", {mode: mode.lower().replace("_", "-") for mode in MODES})  # type: ignore[misc]
    setattr(made[FUNCTIONAL], modes.__name__, modes)  # timm makes a table of these
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]
