"""Only public interfaces of libraries are used: no private module, no name that begins with an underscore.

And files are read by nothing that runs code from them.
"""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = [
    path for room in ("patchnets", "configs", "experiments", "tests") for path in sorted((ROOT / room).rglob("*.py"))
]
# What JAX and Flax say is theirs, or is about to go.
PRIVATE = ("jax.core", "jax.interpreters", "jax.lib", "jaxlib", "flax.core", "tensorflow.python")
# Underscored by custom, and promised: the methods of named tuples, and the end of a process.
PROMISED = {"_replace", "_asdict", "_fields", "_make", "_exit", "_field_defaults"}


def modules(tree):
    """(line, dotted name) of each import, and of each attribute of an imported name, as jax.core of `import jax`."""
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                roots.add(alias.name.split(".")[0])
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (name := dotted(node)).split(".")[0] in roots:
            yield node.lineno, name


def dotted(node):
    """ "a.b.c" of such an expression, "" of any other."""
    if isinstance(node, ast.Name):
        return node.id
    head = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{head}.{node.attr}" if head else ""


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name not in PROMISED | own_names()


@functools.cache
def own_names():
    """Underscored names that this project defines, which its own modules and tests may use."""
    names = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    return {name for name in names if name.startswith("_")}


def private_uses(source):
    tree = ast.parse(source)
    for line, name in modules(tree):
        if (
            name in PRIVATE
            or name.startswith(tuple(f"{module}." for module in PRIVATE))
            or any(map(is_private, name.split(".")))
        ):
            yield f"line {line}: {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_name_of_a_library_is_used(path):
    assert list(private_uses(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import jax\njax.core.jaxprs_in_params(x)",
        "from jax import core",
        "from jax._src import core",
        "from grain._src.python import x",
        "import flax.core.scope",
        "program._cache_size()",
        "from absl.logging import _private",
    ],
)
def test_private_names_are_found(source):
    assert list(private_uses(source))


def test_public_names_are_not_private():
    public = "import os\nfrom jax.extend import core\nimport jax.numpy as jnp\nos._exit(1)\npoint._replace(x=1)\n"
    assert list(private_uses(public)) == []


UNPICKLING = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")


def unpickling(source):
    """What reads files in a way that may run code from them."""
    tree = ast.parse(source)
    for line, name in modules(tree):
        if name.split(".")[0] in UNPICKLING or name in ("torch.load", "pandas.read_pickle", "pd.read_pickle"):
            yield f"line {line}: {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) in ("np.load", "numpy.load"):
            safe = any(
                keyword.arg == "allow_pickle" and ast.unparse(keyword.value) == "False" for keyword in node.keywords
            )
            yield from () if safe else (f"line {node.lineno}: {ast.unparse(node)}",)


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.relative_to(ROOT).parts[0] != "tests"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_file_is_unpickled(path):
    assert list(unpickling(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load(path)",
        "import numpy as np\nnp.load(path)",
        "import numpy\nnumpy.load(path, allow_pickle=True)",
    ],
)
def test_unpickling_is_noticed(source):
    assert list(unpickling(source))
    assert list(unpickling("import numpy as np\nnp.load(path, mmap_mode='r', allow_pickle=False)")) == []
