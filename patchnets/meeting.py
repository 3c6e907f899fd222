"""The processes of a run find each other: what each says of itself, who is refused, and who shares a machine.

What goes over a connection are lines of JSON: {"hello": index, "count": N, ...} with a process's arguments and where it
runs, then {"refused": why}, or {"start": "HOST:PORT", ...} of JAX's own service and with who is on the same machine.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import socket
import threading
import time
from typing import Any

from patchnets.cluster import Member
from patchnets.errors import RunError, UserError
from patchnets.signals import HandedOn

WAIT_SECONDS = 300.0  # for the others to come; PATCHNETS_WAIT_SECONDS
SILENT_SECONDS = 30.0  # within which a machine that does not answer counts as lost
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


def meet(member: Member, arguments: list[str], signals: HandedOn) -> tuple[Member, dict[int, Line], str]:
    """Waits for the others of a run.

    Returns:
      This process with its place on its machine; process 0's connections to all others, or the others' to it; and where
      JAX's own service is to be.

    Raises:
      RunError: the others did not come, or were not of this run; or a signal came.
      UserError: process 0 cannot listen where it should, or has other arguments than this process.
    """
    find_others = _gather if member.index == 0 else _join
    return find_others(member, _hello(member, arguments), _wait_seconds(), signals)


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
                tell_all(lines, {"refused": f"{_named(missing)} did not come within {seconds:g} s"})
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


def tell_all(lines: dict[int, Line], message: dict[str, Any]) -> None:
    for line in lines.values():
        line.send(message)


def _named(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:8])) + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")
    return ("process " if len(indices) == 1 else "processes ") + shown


def _free_port() -> int:
    with socket.socket() as some:
        some.bind(("", 0))
        return some.getsockname()[1]
