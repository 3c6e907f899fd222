"""How the measuring process and those that are measured talk: one JSON object a line, through pipes.

A child builds its work, does one step, and says {"ready": seconds}. Then it sleeps until a line {"turn": seconds} bids
it work for about so long, which it answers with {"steps": ..., "seconds": ...}. The end of its input ends it, after a
last line about what it took. {"error": ...}, at any time, is one line about why it cannot go on.
"""

import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from patchnets.errors import RunError, first_line

Message = dict[str, Any]
ELSEWHERE = "pip install 'patchnets[bench]', or name an interpreter that has it: --python-of=NAME=FILE"


class Worker:
    """A process that is measured, seen from the one that measures."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: pathlib.Path):
        """Starts it. What it writes beside its answers goes to the file `log`."""
        self.name, self.log = name, log
        self._sink = log.open("wb")
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._sink, env=dict(environment), text=True
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        """Hands lines on as they come, and an empty one at the end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def ask(self, patience: float, **message: Any) -> Message:
        """Its next answer, after it was sent `message`, where there is one.

        Raises:
          RunError: it says that it cannot, it died, or there was no answer in `patience` seconds.
        """
        assert self._process.stdin is not None
        try:
            if message:
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()
            line = self._lines.get(timeout=patience)
        except queue.Empty:
            raise RunError(f"no answer in {patience:g} s") from None
        except OSError:
            line = ""
        if not line:
            raise RunError(self._last_log_line())
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            raise RunError(f"it answered {line.strip()[:80]!r}") from None
        if "error" in answer:
            raise RunError(answer["error"])
        return answer

    def finish(self, patience: float) -> Message:
        """Ends it, and returns what it says last. Raises RunError as `ask`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            return self.ask(patience)
        finally:
            self.kill()

    def kill(self) -> None:
        """Ends it, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._sink.close()

    def _last_log_line(self) -> str:
        """How it ended, and the last line that it wrote."""
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "it closed its output without an answer"
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        how = f"it was ended by signal {-status}" if status < 0 else f"it ended with status {status}"
        return f"{how}: {lines[-1].strip()[:200]}" if lines else how


class Exchange:
    """The child's end."""

    def __init__(self) -> None:
        # Whatever libraries print goes to the log: the pipe that was the standard output is for answers alone.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._input = sys.stdin

    def tell(self, **message: Any) -> None:
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()

    def turn(self) -> float | None:
        """Sleeps until there is work; for how many seconds, or None at the end."""
        line = self._input.readline()
        return json.loads(line)["turn"] if line else None

    def serve(self, run_for: Callable[[float], int], before: Callable[[], None] = lambda: None) -> None:
        """Answers every turn by `run_for`, which works for about so many seconds, waits for the device and returns how
        many steps that were. `before` and a first piece of work are not counted: that finds caches and memory as others
        left them, which a program that runs by itself does not."""
        while (seconds := self.turn()) is not None:
            before()
            run_for(0)
            began = time.perf_counter()
            steps = run_for(seconds)
            self.tell(steps=steps, seconds=time.perf_counter() - began)


def answering(run: Callable[[Message, Exchange], Message], spec: Message) -> int:
    """Carries out a child's work, `run`, whose result is its last answer; returns the exit status."""
    exchange = Exchange()
    try:
        exchange.tell(**run(spec, exchange))
        return 0
    except BrokenPipeError:  # nobody listens any more
        return 1
    except ModuleNotFoundError as error:
        exchange.tell(error=f"{error.name} is not installed; {ELSEWHERE}")
    except Exception as error:  # anything that a library may raise
        traceback.print_exc()
        exchange.tell(error=f"{type(error).__name__}: {first_line(error)}")
    return 1


def peak_memory_mib() -> float:
    """The most memory of the host that this process has held at a time."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # where the other figure may be that of the process that started this one
        kib = next((line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        if kib:
            return int(kib) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
