"""The configuration ends at experiment.py: which functions have a ConfigDict in their signature, and how many."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "patchnets"
ALLOWED = ("experiment.py", "train.py", "config/", "run/console.py", "estimate/")
RECIPES = PACKAGE / "config" / "common.py"  # what the files in configs/ share: they make configurations
LARGEST = 12


def signatures_with_a_config() -> list[str]:
    """["file:function", ...] of every function, methods and nested ones included, one of whose annotations, of an
    argument or of what it returns, names ConfigDict; in whichever way it is written, as text too."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        if file == RECIPES:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                arguments += [argument for argument in (node.args.vararg, node.args.kwarg) if argument]
                annotations = [argument.annotation for argument in arguments] + [node.returns]
                if any("ConfigDict" in ast.unparse(annotation) for annotation in annotations if annotation):
                    found.append(f"{file.relative_to(PACKAGE).as_posix()}:{node.name}")
    return found


def test_few_functions_take_a_configuration_and_they_are_at_the_top():
    found = signatures_with_a_config()
    assert 0 < len(found) <= LARGEST, found
    assert [name for name in found if not name.startswith(ALLOWED)] == []
    assert [name for name in found if name.startswith("train.py")] == ["train.py:train"]


def test_no_argument_called_config_goes_without_saying_what_it_is():
    """Else a signature could hide what this file counts."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
                    assert argument.arg != "config" or argument.annotation, f"{file}:{node.name}"
