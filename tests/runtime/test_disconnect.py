"""A program whose output nobody takes."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = """
import signal, sys
from patchnets.runtime.disconnect import stop_when_disconnected
number = []
signal.signal(signal.SIGTERM, lambda *_: number.append(1))
stop_when_disconnected()
for i in range(20_000):
    print("a line of text")
print(len(number), file=sys.__stderr__ if len(sys.argv) == 1 else sys.stderr)
"""


@pytest.mark.parametrize("command, count", [("| head -1 >/dev/null", "1"), (">/dev/null", "0"), (">&-", "0")])
def test_a_program_is_asked_to_stop_once_and_goes_on_until_it_does(tmp_path, command, count):
    (tmp_path / "program.py").write_text(PROGRAM)
    line = f"'{sys.executable}' '{tmp_path / 'program.py'}' {command}"
    settings = dict(env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60)
    done = subprocess.run(["bash", "-c", line], **settings)
    assert done.stderr.splitlines() == [count]
