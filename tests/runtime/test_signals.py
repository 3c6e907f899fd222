"""A signal ends a program with its status and one line, at any moment from its first line on."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PIPE = subprocess.PIPE
WRITING = """
import pathlib, sys, time
from patchnets.runtime.files import atomic_path, removed_afterwards
from patchnets.runtime.signals import exit_on_signals

exit_on_signals("patchnets.predict")
folder = pathlib.Path("folder")
folder.mkdir()
with removed_afterwards(folder), atomic_path(pathlib.Path("file.csv")) as partial:
    (folder / "images.npy").touch()
    partial.write_text("half a file")
    print("writing", flush=True)
    try:
        time.sleep(60)
    except BaseException:  # as libraries do while they are imported
        pass
"""
HELD = """
import os, signal, sys
from patchnets.runtime.signals import exit_on_signals, hold_signals

exit_on_signals(sys.argv[1])
with hold_signals():
    os.kill(os.getpid(), signal.SIGTERM)
    if sys.argv[1] == "first":
        os.execv(sys.executable, [*sys.orig_argv[:-1], "second"])
"""


def program(text, *arguments, **options):
    command = [sys.executable, "-c", text, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=PIPE, stderr=PIPE, text=True, **options)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_program_and_what_it_was_writing_is_removed(tmp_path, number):
    process = program(WRITING, cwd=tmp_path)
    assert process.stdout.readline() == "writing\n"
    assert len(list(tmp_path.iterdir())) == 2
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, f"patchnets.predict: stopped by signal {int(number)}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_comes_while_a_program_starts_again_is_not_lost():
    process = program(HELD, "first")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGTERM, "second: stopped by signal 15\n")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_training_ends_with_its_status_whenever_the_signal_comes(tmp_path, number):
    """From the first line of the program on, over its imports, to the first steps."""
    random = np.random.default_rng(int(number))
    command = [sys.executable, "-X", "importtime", "-m", "patchnets.main", f"--config={ROOT}/configs/mixer_digits.py"]
    for i in range(3):
        process = subprocess.Popen([*command, f"--workdir={tmp_path / str(i)}"], cwd=ROOT, stderr=PIPE, text=True)
        while "patchnets.runtime.signals" not in process.stderr.readline():  # a library of the program's first line
            assert process.poll() is None
        time.sleep(0.01 + random.uniform(0, 4))
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 128 + number, err
        lines = [line for line in err.splitlines() if not line.startswith("import time:")]
        assert not any("Traceback" in line for line in lines) and f"stopped by signal {int(number)}" in lines[-1], lines
