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


CLOSED = """
import os, sys
from patchnets.runtime.disconnect import open_closed_streams
open_closed_streams()
with open(sys.argv[1], "w") as file:
    os.write(1, b"from C++")
    os.write(2, b"from C++")
    print("to stdout", flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    file.write(str(file.fileno() > 2))
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_what_is_written_to_a_closed_stream_goes_into_no_file(tmp_path, closed):
    line = f'"$0" -c "$1" {tmp_path}/file {closed}'
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", line, sys.executable, CLOSED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "file").read_text() == "True", done.stderr
    assert ("to stdout" in done.stdout, "to stderr" in done.stderr) == (">&-" not in closed.split(), "2>" not in closed)


@pytest.mark.parametrize("command, count", [("| head -1 >/dev/null", "1"), (">/dev/null", "0"), (">&-", "0")])
def test_a_program_is_asked_to_stop_once_and_goes_on_until_it_does(tmp_path, command, count):
    (tmp_path / "program.py").write_text(PROGRAM)
    line = f"'{sys.executable}' '{tmp_path / 'program.py'}' {command}"
    settings = dict(env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60)
    done = subprocess.run(["bash", "-c", line], **settings)
    assert done.stderr.splitlines() == [count]
