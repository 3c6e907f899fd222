"""Run a command in a process of its own that can import neither TensorFlow, nor TFDS, nor any configuration file."""

import os
import subprocess
import sys

HIDDEN = ("tensorflow", "tensorflow_datasets", "grain", "configs", "patchnets.configs")


def run_isolated(command, *arguments, cwd=None):
    """Return the finished process of `python -m patchnets.COMMAND ARGUMENTS`."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({HIDDEN})); "
        f"from patchnets.{command}.__main__ import main; sys.exit(main(sys.argv))"
    )
    line = [sys.executable, "-c", code, *map(str, arguments)]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), os.getcwd()]))
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(line, capture_output=True, text=True, timeout=300, cwd=cwd, env=environment)
