"""`patchnets.main` as one process of several, with a training loop that only exchanges numbers.

WORKER_ACTION says what happens in its fifth step: "NAME:INDEX", by the process with this index, or "NAME" by all.
Every process makes a file joined.INDEX in the work directory once it has met the others.
"""

import os
import pathlib
import sys
import time
import types

import jax

import patchnets
from patchnets import main
from patchnets.errors import Preempted, RunError, UserError
from patchnets.parallel import multihost


def train(config, workdir, began, preemption):
    name, _, only = os.environ["WORKER_ACTION"].partition(":")
    index = jax.process_index()
    multihost.all_true(True)
    (pathlib.Path(workdir) / f"joined.{index}").touch()
    for step in range(100_000):
        if number := multihost.max_over_processes(preemption.signal_number or 0):
            raise Preempted(number, step)
        if step == 5 and only in ("", str(index)):
            act(name, workdir)
        with multihost.errors_on_all():
            if step == 5 and name == "door" and only == str(index):
                raise UserError("the work directory is locked")
        if step == 5 and name in ("done", "print"):
            return
        time.sleep(0.02)


def act(name, workdir):
    if name == "print":
        print("process 0 prints" if jax.process_index() == 0 else "process 1 prints", flush=True)
        print(f"process {jax.process_index()} errs", file=sys.stderr)
        os.write(1, b"from C++\n")
    if name == "hang":
        (pathlib.Path(workdir) / "hangs").touch()
        while True:
            time.sleep(0.1)
    if name == "raise":
        raise ArithmeticError("a bug")
    if name == "run-error":
        raise RunError("the loss is not finite")
    if name == "out-of-memory":
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory allocating 9 bytes")


patchnets.train = types.SimpleNamespace(train=train)

if __name__ == "__main__":
    sys.exit(main.main(sys.argv))
