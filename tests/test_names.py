"""Words that say nothing about what they name are no names."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BANNED = {"found", "place", "told", "given", "asked", "said", "one", "some", "whole", "where", "seen", "work"}
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("patchnets", "configs", "experiments", "tests")
    for path in (ROOT / folder).rglob("*.py")
)


def names(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, name) of every function, class, parameter, variable and attribute that a file makes or reads."""
    made = []
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                made.append((node.lineno, node.name))
            case ast.arg():
                made.append((node.lineno, node.arg))
            case ast.Name(ctx=ast.Store()):
                made.append((node.lineno, node.id))
            case ast.ExceptHandler(name=str()) | ast.MatchAs(name=str()):
                made.append((node.lineno, str(node.name)))
            case ast.Attribute(attr="where"):  # of jax.numpy, which cannot be called otherwise
                pass
            case ast.Attribute():
                made.append((node.lineno, node.attr))
            case ast.alias(asname=str()):
                made.append((node.lineno, str(node.asname)))
    return made


@pytest.mark.parametrize("file", FILES)
def test_names_say_what_they_name(file):
    tree = ast.parse((ROOT / file).read_text())
    banned = [f"{file}:{line}: {name}" for line, name in names(tree) if name.strip("_") in BANNED]
    assert banned == []
