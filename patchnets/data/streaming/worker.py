"""What a worker process runs in place of the program that started it. Run by path, never imported.

A new process would run the program's own main module again, and Grain imports JAX where it finds it. Neither is needed
to read images: without them a worker is ready in half the time and takes 50 MiB in place of 190.
"""

import multiprocessing
import os
import pathlib
import sys
import threading
import time
import types

WATCH_SECONDS = 1.0


def end_with_parent() -> None:
    """Ends this process when its parent has ended, however that came about, even before this was called."""
    while (parent := multiprocessing.parent_process()) is None:  # told after the main module has run
        time.sleep(0.05)
    while os.getppid() == parent.pid:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def prepare() -> None:
    from absl import logging

    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.modules["jax"] = None  # type: ignore[assignment]  # Python's way of saying that there is none
    logging.set_verbosity(logging.ERROR)  # Grain's remark that there is none
    folder = pathlib.Path(__file__).parent
    for name, path in (("patchnets.data", folder.parent), ("patchnets.data.streaming", folder)):
        package = types.ModuleType(name)  # whose own __init__ imports JAX
        package.__path__ = [str(path)]
        sys.modules[name] = package


if __name__ == "__mp_main__":
    prepare()
