"""A program under `peers.supervise`, which ends as its last argument says: tests/test_peers.py starts several, and
tells each its number in PEER."""

import os
import sys
import time

from patchnets import peers
from patchnets.cluster import Member
from patchnets.errors import RunError, UserError, tell
from patchnets.signals import StopRequest


def child(member: Member, what: str) -> int:
    """ "end:INDEX:STATUS" and the others run on, "signal:INDEX:NUMBER" likewise, "wait" for a signal and then so many
    seconds, or "say"."""
    name, *numbers = what.split(":")
    if name == "say":
        print(f"{member.index} speaks, {member.local} of {member.beside}", flush=True)
        print(f"{member.index} errs", file=sys.stderr, flush=True)
        os.write(1, b"and below\n")
        return 0
    print("began", flush=True)
    if name in ("end", "signal") and member.index == int(numbers[0]):
        if name == "signal":
            os.kill(os.getpid(), int(numbers[1]))
        return int(numbers[1])
    if name == "all":
        return int(numbers[0])
    with StopRequest(handed_on=True) as stop:
        while stop.number is None:
            time.sleep(0.05)
    time.sleep(float(numbers[0]) if numbers else 0)
    return 128 + stop.number


def run(index: int, count: int, port: int, what: str) -> int:
    if attached := peers.attach():
        return child(attached[0], what)
    try:
        return peers.supervise(Member(index, count, "localhost", port), sys.argv[1:])
    except (UserError, RunError) as error:
        return tell(error)


if __name__ == "__main__":
    sys.exit(run(int(os.environ["PEER"]), int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
