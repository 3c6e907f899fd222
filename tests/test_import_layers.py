"""Imports point one way: from the commands down through the parts of a run to independent modules."""

import ast
import pathlib
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# From the top down. A module may import what is in its own line or below.
LAYERS = (
    ("main",),
    ("predict", "evaluate", "export", "demo", "weights.__main__"),
    ("train", "plots", "estimate"),
    ("inference",),
    ("weights",),
    ("experiment", "run", "configs"),
    ("config", "step"),
    ("models", "data"),
    ("optim", "parallel"),
    ("augment", "param_rules"),
    ("runtime", "prng", "errors"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Who may see the configuration.
SEES_CONFIG = ("train", "experiment", "config", "run.console", "estimate", "configs")


def modules() -> dict[str, ast.Module]:
    """{"run.workdir": tree} of patchnets, and {"configs.mixer_digits": tree} of configs."""
    trees = {}
    for path in sorted([*(ROOT / "patchnets").rglob("*.py"), *(ROOT / "configs").glob("*.py")]):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        trees[name.removeprefix("patchnets.")] = ast.parse(path.read_text())
    return trees


MODULES = modules()


def imports(name: str) -> set[str]:
    """The modules that a module imports, anywhere in it."""
    imported = set()
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                imported.add(full if full.removeprefix("patchnets.") in MODULES else node.module)
    ours = {target for target in imported if target.split(".")[0] in ("patchnets", "configs")}
    short = {target.removeprefix("patchnets.") for target in ours}
    return {target for target in short if target in MODULES and target not in ("patchnets", name)}


def room(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "patchnets"])
def test_every_module_has_its_place_and_imports_nothing_above_it(name):
    assert room(name) in LEVEL, f"patchnets/{name} has no place in LAYERS"
    level = lambda module: LEVEL.get(module, LEVEL[room(module)])  # a command may be above the rest of its room
    assert {target for target in imports(name) if level(target) < level(name)} == set()


def test_no_imports_go_round_in_a_circle():
    """Rooms of one layer, too, import each other in one direction only."""
    graph = {name: imports(name) for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_configuration_is_seen_only_where_a_run_is_put_together():
    seeing = {
        name
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if getattr(node, "attr", getattr(node, "id", "")) == "ConfigDict"
    }
    assert {name for name in seeing if not name.startswith(SEES_CONFIG)} == set()


USING = {"inference", "weights", "predict", "evaluate", "export", "demo"}  # rooms for trained models


def test_the_house_has_few_rooms():
    """Files at the top of patchnets, its folders for training, and the two folders of programs beside it."""
    package = ROOT / "patchnets"
    files = list(package.glob("*.py"))
    folders = [path for path in package.iterdir() if any(path.glob("*.py")) and path.name not in USING]
    assert len(files) <= 9 and len(files) + len(folders) + len(("configs", "experiments")) <= 20


def test_every_folder_of_tests_is_run():
    """By make test-all, make parity, make aot, make onnx or make cluster."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    folders = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "tests").glob("*/test_*.py")}
    apart = {"tests/parity", "tests/aot", "tests/onnx_export", "tests/cluster"}
    assert folders == {*options["testpaths"], *apart} - {"tests/test_*.py"}
