"""Protocol between the measuring process and its workers: one JSON object per line, through pipes.

A worker builds its work, runs one step, and sends {"ready": seconds}. It sleeps until it gets {"turn": seconds}, runs
for about that long, and answers {"steps": ..., "seconds": ...}. At the end of its input it sends its last message, such
as its peak memory, and exits. {"error": ...}, at any time, is one line on why it cannot continue.
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
    """A worker process, in the measuring process."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: pathlib.Path):
        """Start the process. Output other than its answers goes to the file `log`."""
        self.name, self.log = name, log
        self._sink = log.open("wb")
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._sink, env=dict(environment), text=True
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        """Queue lines as they arrive, and an empty one at the end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def ask(self, patience: float, **message: Any) -> Message:
        """Send `message`, if any, and return the next answer.

        Raises:
          RunError: the worker reported an error, died, or did not answer within `patience` seconds.
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
        """End the worker and return its last message; raise RunError like `ask`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            return self.ask(patience)
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        self._sink.close()

    def _last_log_line(self) -> str:
        """Return how the process ended, and the last line of its log."""
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "it closed its output without an answer"
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        ending = f"it was ended by signal {-status}" if status < 0 else f"it ended with status {status}"
        return f"{ending}: {lines[-1].strip()[:200]}" if lines else ending


class Exchange:
    """The worker's end of the pipes."""

    def __init__(self) -> None:
        # Redirect what libraries print to the log: the pipe at standard output is for answers only.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._input = sys.stdin

    def tell(self, **message: Any) -> None:
        """Send a message."""
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()

    def turn(self) -> float | None:
        """Wait for the next turn; return its seconds, or None at the end."""
        line = self._input.readline()
        return json.loads(line)["turn"] if line else None

    def serve(self, run_for: Callable[[float], int], before: Callable[[], None] = lambda: None) -> None:
        """Answer every turn with `run_for(seconds)`, which runs, waits for the device and returns the number of steps.

        `before` and a first step are not counted, because other programs have used caches and memory since.
        """
        while (seconds := self.turn()) is not None:
            before()
            run_for(0)
            began = time.perf_counter()
            steps = run_for(seconds)
            self.tell(steps=steps, seconds=time.perf_counter() - began)


def answering(run: Callable[[Message, Exchange], Message], spec: Message) -> int:
    """Run a worker; the result of `run` is its last message. Return the exit status."""
    exchange = Exchange()
    try:
        exchange.tell(**run(spec, exchange))
        return 0
    except BrokenPipeError:  # the measuring process has ended
        return 1
    except ModuleNotFoundError as error:
        exchange.tell(error=f"{error.name} is not installed; {ELSEWHERE}")
    except Exception as error:  # libraries may raise anything
        traceback.print_exc()
        exchange.tell(error=f"{type(error).__name__}: {first_line(error)}")
    return 1


def peak_memory_mib() -> float:
    """Return the peak host memory of this process in MiB."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # ru_maxrss may include the parent process
        kib = next((line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        if kib:
            return int(kib) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
