"""A program under `peers.supervise`, which ends as its first argument says: tests/test_peers.py starts several."""

import os
import signal
import sys
import time

from patchnets import peers
from patchnets.cluster import Member
from patchnets.errors import RunError, UserError, tell


def child(member: Member, what: str) -> int:
    """ "end:INDEX:STATUS" and the others run on, "signal:INDEX:NUMBER" likewise, "wait", or "say"."""
    name, *numbers = what.split(":")
    if name == "say":
        print(f"{member.index} speaks", flush=True)
        print(f"{member.index} errs", file=sys.stderr, flush=True)
        os.write(1, b"and below\n")
        return 0
    print("began", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if name in ("end", "signal") and member.index == int(numbers[0]):
        if name == "signal":
            os.kill(os.getpid(), int(numbers[1]))
        return int(numbers[1])
    if name == "all":
        return int(numbers[0])
    time.sleep(60)
    return 0


def run(index: int, count: int, port: int, what: str) -> int:
    if attached := peers.attach():
        return child(attached[0], what)
    try:
        return peers.supervise(Member(index, count, "localhost", port), sys.argv[1:])
    except (UserError, RunError) as error:
        return tell(error)


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
