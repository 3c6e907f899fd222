"""As much of torchvision as timm needs to be imported and to make networks: names, and nothing behind them.

timm imports torchvision for its data transforms, its data sets and one frozen layer; none of them is used here, and so
the tests need neither the package nor the build of PyTorch that fits it.
"""

import contextlib
import enum
import importlib.machinery
import importlib.util
import sys
import types

MODULES = ("torchvision", "torchvision.datasets", "torchvision.ops", "torchvision.ops.misc")
MODULES += ("torchvision.transforms", "torchvision.transforms.functional")


class InterpolationMode(enum.Enum):
    """timm makes a table of these when it is imported."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class Hollow(types.ModuleType):
    """A module of which every public attribute is a class without content, which timm may name or derive from."""

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        setattr(self, name, type(name, (), {}))
        return getattr(self, name)


@contextlib.contextmanager
def stand_in():
    """Where torchvision cannot be imported, hollow modules take its place until the end of the block."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    for name in MODULES:
        module = Hollow(name)
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        sys.modules[name] = module
    for name in MODULES[1:]:
        parent, _, child = name.rpartition(".")
        setattr(sys.modules[parent], child, sys.modules[name])
    sys.modules["torchvision.transforms.functional"].InterpolationMode = InterpolationMode
    try:
        yield
    finally:
        for name in MODULES:
            del sys.modules[name]
