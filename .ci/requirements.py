"""Prints what pyproject.toml asks for, development tools included, for pip: at its lower bounds, or at any version.

python .ci/requirements.py oldest|newest
"""

import pathlib
import re
import sys
import tomllib


def main(which: str) -> None:
    project = tomllib.loads((pathlib.Path(__file__).parent.parent / "pyproject.toml").read_text())
    tools = project["project"]["optional-dependencies"]["dev"] + project["build-system"]["requires"]
    for requirement in project["project"]["dependencies"] + tools:
        name, bound, marker = re.fullmatch(r"([\w.-]+)(?:>=([\w.]+))?(.*)", requirement).groups()
        print(name + (f"=={bound}" if which == "oldest" and bound else "") + marker)


if __name__ == "__main__":
    if sys.argv[1:] not in (["oldest"], ["newest"]):
        sys.exit(__doc__)
    main(sys.argv[1])
