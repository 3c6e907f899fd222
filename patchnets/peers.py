"""None of the processes of a run outlives another by long.

Each machine's `python -m patchnets.main` keeps the connection over which it met process 0 (meeting.py), and runs the
training itself in a child. XLA leaves a process that has lost another hanging in an exchange, or aborts it with a page
of stack; from here it is one line that says which was lost, and an exit status.

Once they have met they say: {"ended": status, "process": index}, {"lost": index}.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from patchnets.cluster import Member
from patchnets.errors import UserError
from patchnets.meeting import SILENT_SECONDS, Line, meet, tell_all
from patchnets.signals import HandedOn

GRACE_SECONDS = 5.0  # that the others get to end by themselves once one has ended badly
SAVING_SECONDS = 600.0  # the same once one was stopped by a signal, and all are saving
EXCHANGE_FAILED = 75  # status of a child that lost touch with the others, or an XLA that says so: why shows elsewhere
SUSPICIOUS = (EXCHANGE_FAILED, -signal.SIGABRT)
ENVIRONMENT = "PATCHNETS_MEMBER"  # set for the child: what `attach` reads
KEPT_LINES = 60  # of what is said below Python


def supervise(member: Member, arguments: list[str]) -> int:
    """Waits for the others, runs the program with these arguments as this member, and returns the exit status.

    Raises:
      RunError: the others did not come, or were not of this run.
      UserError: process 0 cannot listen where it should, or has other arguments than this process.
    """
    with HandedOn() as signals:
        member, lines, service = meet(member, arguments, signals)
        try:
            return _Watch(member, lines, signals).run(arguments, service)
        finally:
            for line in lines.values():
                line.close()


class _Watch:
    """The child's end and the others', whichever comes first."""

    def __init__(self, member: Member, lines: dict[int, Line], signals: HandedOn):
        self.member, self.lines, self.signals = member, lines, signals
        self.events: queue.Queue[tuple[str, int, Any]] = queue.Queue()
        self.said_below: list[str] = []

    def run(self, arguments: list[str], service: str) -> int:
        child = self._start(arguments, service)
        for index, line in self.lines.items():
            threading.Thread(target=self._listen, args=(index, line), daemon=True).start()
        threading.Thread(
            target=lambda: self.events.put(("child", self.member.index, child.wait())), daemon=True
        ).start()
        return self._wait(child)

    def _start(self, arguments: list[str], service: str) -> "subprocess.Popen[bytes]":
        """The child writes to this process's own streams; what is said below Python comes here (`_below`)."""
        told = dict(vars(self.member)) | {"service": service, "streams": [os.dup(1), os.dup(2)]}
        alive, held = os.pipe()  # whose end tells the child of ours
        told["alive"] = alive
        below, said = os.pipe()
        handed = [*told["streams"], alive]
        child = self.signals.start(
            [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1], *arguments],
            env=os.environ | {ENVIRONMENT: json.dumps(told)},
            stdout=said,
            stderr=said,
            pass_fds=handed,
        )
        self._held = held
        for handle in [*handed, said]:
            os.close(handle)
        threading.Thread(target=self._below, args=(below,), daemon=True).start()
        return child

    def _below(self, handle: int) -> None:
        with os.fdopen(handle, errors="replace") as said:
            for line in said:
                self.said_below = [*self.said_below[1 - KEPT_LINES :], line]

    def _listen(self, index: int, line: Line) -> None:
        while (said := line.receive()) is not None:
            self.events.put(("said", index, said))
        self.events.put(("gone", index, None))

    def _wait(self, child: "subprocess.Popen[bytes]") -> int:
        me = self.member.index
        ended: dict[int, int] = {}  # by number of the process, its status
        patience = float("inf")
        while True:
            with contextlib.suppress(queue.Empty):
                kind, index, what = self.events.get(timeout=0.2)
                if kind == "child":
                    ended[me] = self.signals.status(what)
                    self._tell({"ended": ended[me], "process": me})
                elif kind == "said" and "ended" in what:
                    ended[int(what["process"])] = int(what["ended"])
                    if me == 0:
                        self._tell(what)
                elif kind == "said" and "lost" in what and what["lost"] != me:
                    return self._give_up(child, f"process {what['lost']} was lost")
                elif kind == "gone" and index not in ended:
                    self._tell({"lost": index})
                    return self._give_up(child, f"process {index} was lost: its connection ended")
            if me in ended and ended[me] not in SUSPICIOUS:
                return self._conclude(ended[me])
            killed = next((i for i, status in ended.items() if status < 0 and status not in SUSPICIOUS), None)
            if killed is not None:
                return self._give_up(child, f"process {killed} {_how(ended[killed])}")
            if bad := {i: status for i, status in ended.items() if status != 0}:
                culprit = next((i for i, status in bad.items() if status not in SUSPICIOUS), None)
                patience = min(patience, time.monotonic() + _patience(bad))
                if time.monotonic() > patience or (culprit is not None and me in bad):
                    if culprit is None and me in bad:
                        return self._conclude(bad[me])
                    culprit = next(iter(bad)) if culprit is None else culprit
                    return self._give_up(child, f"process {culprit} {_how(bad[culprit])}", max(1, bad[culprit]))

    def _tell(self, message: dict[str, Any]) -> None:
        tell_all(self.lines, message)

    def _give_up(self, child: "subprocess.Popen[bytes]", why: str, code: int = 1) -> int:
        child.kill()
        child.wait()
        if self.signals.came is not None and code == 1:
            code = 128 + self.signals.came
        self._tell({"ended": code, "process": self.member.index})
        kept = "what was saved stays, and the same command continues"
        then = "it said what has to change first" if code == UserError.status else kept
        print(f"patchnets: {self.member} ended, for {why}; {then}", file=sys.stderr)
        return code

    def _conclude(self, status: int) -> int:
        """The child's own end; what killed it is told here, for it could not."""
        if status >= 0 and status != EXCHANGE_FAILED:
            return status
        if self.signals.twice:
            print(f"patchnets: {self.member} was stopped at once; the same command continues", file=sys.stderr)
            return 128 + (self.signals.came or 0)
        if status != -signal.SIGKILL:
            sys.stderr.writelines(line for line in self.said_below if not line.startswith("[Gloo]"))
        why = "; a system does so to what takes too much memory" if status == -signal.SIGKILL else ""
        print(f"patchnets: {self.member} {_how(status)}{why}; the same command continues", file=sys.stderr)
        return 1


def _patience(bad: dict[int, int]) -> float:
    """The seconds that this process waits for more news, or for its own child's end, once others have ended so."""
    if any(status > 128 for status in bad.values()):
        return SAVING_SECONDS
    return SILENT_SECONDS + 5.0 if all(status in SUSPICIOUS for status in bad.values()) else GRACE_SECONDS


def _how(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"


def attach() -> tuple[Member, str] | None:
    """In a child of `supervise`: (who it is, where JAX's own service is); None in any other process.

    What C++ code writes goes to the parent, which shows it where the child crashed; Python's own streams are what the
    parent's are. Process 0 speaks for all: others tell errors alone.
    """
    if ENVIRONMENT not in os.environ:
        return None
    told = json.loads(os.environ.pop(ENVIRONMENT))
    service, (out, err), alive = told.pop("service"), told.pop("streams"), told.pop("alive")
    member = Member(**told)
    for name, handle in (("stdout", out), ("stderr", err)):
        setattr(sys, name, os.fdopen(handle, "w", buffering=1, errors="replace"))
    if member.index:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        os.environ["TQDM_DISABLE"] = "1"
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    return member, service


def connect(member: Member, service: str) -> None:
    """Makes the devices of all processes JAX's own; before it has looked for any."""
    import jax

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    apart = member.beside > 1 and (visible is None or "," in visible)  # several on a machine, which see all its GPUs
    gpu = member.local if apart else None
    jax.config.update("jax_enable_preemption_service", False)  # which would take SIGTERM for itself, and tell nobody
    jax.distributed.initialize(
        service,
        member.count,
        member.index,
        local_device_ids=None if gpu is None else [gpu],
        cluster_detection_method="deactivate",
        initialization_timeout=120,
        heartbeat_timeout_seconds=600,  # the parents are quicker
        shutdown_timeout_seconds=3600,
    )


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)
    os._exit(1)


def leave(status: int) -> None:
    """Ends a process of several that cannot go on, at once: JAX's own end would wait for the others."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def below(text: str) -> None:
    """Tells the parent alone: it shows this where it knows of no better reason."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
