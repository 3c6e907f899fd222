"""A process that is measured, without any work: FILE NAME SPEED [FAULT AT_TURN]. It notes its turns in FILE."""

import os
import sys
import time

from experiments.benchmark.ipc import answering


def run(spec, exchange):
    path, name, speed, *fault = spec
    turns, warm = 0, False

    def task(seconds):
        nonlocal turns, warm
        if not seconds:  # the work at the start of a turn that is not counted
            warm = True
            return 1
        assert warm
        warm = False
        turns += 1
        if fault and turns == int(fault[1]):
            if fault[0] == "hangs":
                time.sleep(60)
            print("Traceback of many lines\nMemoryError: no more", file=sys.stderr, flush=True)
            os._exit(3)
        print("a library greets")  # which must not be taken for an answer
        os.write(1, b"{}\n")
        began = time.monotonic()
        time.sleep(0.01)
        with open(path, "a") as file:
            file.write(f"{name} {began} {time.monotonic()}\n")
        return int(speed)

    exchange.tell(ready=0.5, params=7, macs=1000, flops=6, device="a device", versions={name: "1.0"})
    exchange.serve(task)
    return {"peak_memory_mib": 12.5}


if __name__ == "__main__":
    sys.exit(answering(run, sys.argv[1:]))
