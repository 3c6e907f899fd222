"""Allowed imports between modules, read from the sources."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(path for folder in ("patchnets", "experiments", "configs") for path in (ROOT / folder).rglob("*.py"))


def imported_modules(path: pathlib.Path) -> set[str]:
    """The full names of what a file imports, modules and names in them alike."""
    package = path.relative_to(ROOT).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join((*package[: len(package) - node.level + 1], *filter(None, [node.module])))
            base = base if node.level else node.module
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_imports_a_command(path):
    """Commands are run; what several of them share has a module of its own."""
    commands = {name for name in imported_modules(path) if name == "patchnets.main" or "__main__" in name.split(".")}
    assert not commands


def test_imports_are_read_in_all_their_forms(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "package").mkdir()
    file = tmp_path / "package" / "module.py"
    file.write_text(
        "import a.b\nfrom c import d\nfrom . import e\nfrom .f import g\n\ndef h():\n    from i import __main__\n"
    )
    names = {"a.b", "c", "c.d", "package", "package.e", "package.f", "package.f.g", "i", "i.__main__"}
    assert imported_modules(file) == names
