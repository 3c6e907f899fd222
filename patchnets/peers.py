"""The processes of a run find each other, and none outlives another by long.

Each machine's `python -m patchnets.main` keeps a connection to that of process 0, and runs the training itself in a
child. XLA leaves a process that has lost another hanging in an exchange, or aborts it with a page of stack; from here
it is one line that says which was lost, and an exit status.

What comes on a connection are lines of JSON: {"hello": index, "count": N, ...} with its arguments and where it runs,
{"refused": why}, {"start": "HOST:PORT", ...} of JAX's own service and with who is on the same machine,
{"ended": status, "process": index}, {"lost": index}.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from patchnets.cluster import Member
from patchnets.errors import RunError, UserError
from patchnets.signals import HandedOn

WAIT_SECONDS = 300.0  # for the others to come; PATCHNETS_WAIT_SECONDS
SILENT_SECONDS = 30.0  # within which a machine that does not answer counts as lost
GRACE_SECONDS = 5.0  # that the others get to end by themselves once one has ended badly
SAVING_SECONDS = 600.0  # the same once one was stopped by a signal, and all are saving
EXCHANGE_FAILED = 75  # status of a child that lost touch with the others, or an XLA that says so: why shows elsewhere
SUSPICIOUS = (EXCHANGE_FAILED, -signal.SIGABRT)
ENVIRONMENT = "PATCHNETS_MEMBER"  # set for the child: what `attach` reads
KEPT_LINES = 60  # of what is said below Python
BOOT = pathlib.Path("/proc/sys/kernel/random/boot_id")


class Line:
    """A connection on which lines of JSON go."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):  # 10 s of silence, then 4 questions 5 s apart: SILENT_SECONDS
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * SILENT_SECONDS))
        self._file = connection.makefile("r", encoding="utf-8", errors="replace")

    def send(self, message: dict[str, Any]) -> None:
        """What the other end does not hear any more, its own end will show."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next message; None where the connection has ended."""
        try:
            said = json.loads(self._file.readline())
            return said if isinstance(said, dict) else None
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def supervise(member: Member, arguments: list[str]) -> int:
    """Waits for the others, runs the program with these arguments as this member, and returns the exit status.

    Raises:
      RunError: the others did not come, or were not of this run.
      UserError: process 0 cannot listen where it should, or has other arguments than this process.
    """
    seconds, hello = _wait_seconds(), _hello(member, arguments)
    with HandedOn() as signals:
        member, lines, service = (_gather if member.index == 0 else _join)(member, hello, seconds, signals)
        try:
            return _Watch(member, lines, signals).run(arguments, service)
        finally:
            for line in lines.values():
                line.close()


def _wait_seconds() -> float:
    told = os.environ.get("PATCHNETS_WAIT_SECONDS", str(WAIT_SECONDS))
    try:
        seconds = float(told)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise UserError(f"PATCHNETS_WAIT_SECONDS={told}: expected a number of seconds above 0")
    return seconds


def _hello(member: Member, arguments: list[str]) -> dict[str, Any]:
    """What a process says of itself."""
    machine, gpus = socket.gethostname(), os.environ.get("CUDA_VISIBLE_DEVICES")
    with contextlib.suppress(OSError):
        machine += " " + BOOT.read_text().strip()  # for machines that were set up alike may have one name
    return {"hello": member.index, "count": member.count, "arguments": arguments, "machine": machine, "gpus": gpus}


def _gather(
    member: Member, hello: dict[str, Any], seconds: float, signals: HandedOn
) -> tuple[Member, dict[int, Line], str]:
    """Process 0: itself among them, the connections of all others, and where JAX's own service shall be."""
    until, refused = time.monotonic() + seconds, ""
    lines: dict[int, Line] = {}
    hellos = {0: hello}
    try:
        dual = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
        listening = socket.create_server(("", member.port), backlog=member.count, **dual)  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {member.port} ({error.strerror}); give another, by "
            "--coordinator=HOST:PORT"
        ) from error
    with listening:
        while len(lines) < member.count - 1:
            signals.check()
            listening.settimeout(min(1.0, max(0.01, until - time.monotonic())))
            if time.monotonic() > until:
                missing = [i for i in range(1, member.count) if i not in lines]
                _tell_all(lines, {"refused": f"{_named(missing)} did not come within {seconds:g} s"})
                raise RunError(
                    f"{_named(missing)} of {member.count} did not come within {seconds:g} s; start all of them, each "
                    f"with what leads it to {member.address()}{refused}"
                )
            with contextlib.suppress(TimeoutError):
                line = Line(listening.accept()[0])
                line.connection.settimeout(5.0)
                said = line.receive() or {}
                line.connection.settimeout(None)
                if refusal := _refusal(said, hellos):
                    refused = f" (one came and was refused: {refusal['refused']})"
                    line.send(refusal)
                    line.close()
                else:
                    lines[said["hello"]], hellos[said["hello"]] = line, said
    service = member.address(_free_port())
    for index, line in lines.items():
        line.send({"start": service} | _place(index, hellos))
    return _placed(member, _place(0, hellos)), lines, service


def _refusal(said: dict[str, Any], hellos: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
    """Why one that has come is not taken in beside those that have said these; None where it is."""
    index, count, ours = said.get("hello"), hellos[0]["count"], hellos[0]["arguments"]
    if not isinstance(index, int) or not 0 < index < count or said.get("count") != count:
        why = f"process 0 runs with {count} processes, and this one said it was {index} of {said.get('count')}"
        return {"refused": why}
    if index in hellos:
        return {"refused": f"there is a process {index} already; each needs a number of its own"}
    theirs = said.get("arguments")
    theirs = [str(argument) for argument in theirs] if isinstance(theirs, list) else []
    if sorted(theirs) != sorted(ours):
        here, there = (
            " ".join(a for a in one if a not in other)[:200] for one, other in ((theirs, ours), (ours, theirs))
        )
        why = f"process {index} was started with {here or 'less'}, and process 0 with {there or 'less'}"
        return {"refused": f"{why}; start all by the same command", "status": UserError.status}
    return None


def _place(index: int, hellos: dict[int, dict[str, Any]]) -> dict[str, int | None]:
    """A process among those on its machine, as the fields of `Member`."""
    mine = hellos[index]
    here = [i for i in sorted(hellos) if hellos[i].get("machine") == mine.get("machine")]
    alike = [i for i in here if hellos[i].get("gpus") == mine.get("gpus")]
    return {"local": alike.index(index) if len(alike) > 1 else None, "beside": len(here)}


def _placed(member: Member, said: dict[str, Any]) -> Member:
    """As the engine has it, else as process 0 says."""
    return member if member.beside else dataclasses.replace(member, local=said["local"], beside=said["beside"])


def _join(
    member: Member, hello: dict[str, Any], seconds: float, signals: HandedOn
) -> tuple[Member, dict[int, Line], str]:
    """Another process: itself among them, its connection to process 0, and where JAX's own service is."""
    until, address = time.monotonic() + seconds, member.address()
    while True:
        signals.check()
        try:
            connection = socket.create_connection((member.host, member.port), timeout=5.0)
            break
        except OSError as error:
            if time.monotonic() > until:
                raise RunError(
                    f"{member}: process 0 was not at {address} within {seconds:g} s ({error.strerror or error}); start "
                    "it there, or correct the address"
                ) from error
            time.sleep(0.5)
    line = Line(connection)
    line.send(hello)
    answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=lambda: answers.put(line.receive()), daemon=True).start()
    while True:
        signals.check()
        try:
            said = answers.get(timeout=0.5)
            break
        except queue.Empty:
            if time.monotonic() > until + 10:  # process 0 tells by itself who did not come
                raise RunError(f"{member}: process 0 at {address} did not begin within {seconds:g} s") from None
    if said is None:
        raise RunError(f"{member}: process 0 at {address} went away before the run began")
    if "start" not in said:
        kind = UserError if said.get("status") == UserError.status else RunError
        raise kind(f"{member}: {said.get('refused', 'process 0 did not answer as one of patchnets')}")
    return _placed(member, said), {0: line}, str(said["start"])


def _tell_all(lines: dict[int, Line], message: dict[str, Any]) -> None:
    for line in lines.values():
        line.send(message)


def _named(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:8])) + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")
    return ("process " if len(indices) == 1 else "processes ") + shown


def _free_port() -> int:
    with socket.socket() as some:
        some.bind(("", 0))
        return some.getsockname()[1]


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
        _tell_all(self.lines, message)

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
