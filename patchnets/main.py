"""Train a patch-based image classifier.

    python -m patchnets.main --config=CONFIG[:VARIANT] [--workdir=DIR] [--config.KEY=VALUE ...]

--config   a Python file with get_config(), or the name of one that comes with patchnets: mixer_cifar100, mixer_digits
--workdir  the folder for results (default: runs/NAME, named after the configuration)

Under SLURM, Open MPI, Kubernetes and on TPU pods the processes of a run find each other. Elsewhere, pass
--coordinator=HOST[:PORT] (of process 0), --processes=N and --process=0 to N - 1 to each (docs/clusters.md).

On a CPU every core is a device, and batches go through the network in microbatches (--config.cpu.devices=1 and
--config.cpu.microbatch=0 turn that off). On Linux the program restarts itself in the same process to put large arrays
into pages of 2 MiB (PATCHNETS_HUGE_PAGES=0 in the environment turns that off).

The same command resumes an interrupted run; if the run is finished, it says so. Exit status: 0 finished; 1 the run
failed; 2 the request is invalid; 128 + N stopped by signal N (SIGTERM: 143, SIGINT: 130), with the state saved.
"""

import os
import signal

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # from the first line on no KeyboardInterrupt, which imports lose
        signal.signal(number, lambda number, _: os._exit(128 + number))

from patchnets.runtime.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals("patchnets")  # while the rest is imported

import contextlib
import pathlib
import sys
import traceback

from patchnets import STARTED, runtime
from patchnets.errors import Preempted, RunError, UserError, first_line, report_error
from patchnets.parallel import distributed
from patchnets.parallel.preemption import PreemptionHandler
from patchnets.runtime.disconnect import stop_when_disconnected


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status. Errors are reported in one line."""
    if {"--help", "-h", "-help"} & set(argv[1:]):
        from patchnets.config.flags import print_help

        print_help(argv, __doc__)
        return 0
    runtime.silence_logs()
    try:
        process, arguments = distributed.detect_cluster(argv[1:])
    except UserError as error:
        return report_error(error)
    argv = [argv[0], *arguments]
    return _train(argv) if process is None else _train_as_one_of_several(argv, process)


def _train_as_one_of_several(argv: list[str], process: distributed.ProcessInfo) -> int:
    """Train in one of several processes. They exit together after success or a signal; after a failure, at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # so that a second Ctrl-C ends the process even in C++ code
    with PreemptionHandler() as preemption:
        try:
            status = _train(argv, process, preemption)
        except Exception:  # a bug; the other processes must not wait for this one
            traceback.print_exc()
            status = 1
        if status not in (0, 128 + signal.SIGTERM, 128 + signal.SIGINT):
            distributed.exit_now(status)
        first = distributed.leave(status)
    if first and status == 0:
        _draw(argv)
    return status


def _draw(argv: list[str]) -> None:
    """Draw the plots of a multi-process run, unless drawn since its end. The plotting program replaces this process,
    which frees the accelerators."""
    from patchnets.config.flags import parse_flags

    config, workdir = parse_flags(argv)
    directory = pathlib.Path(workdir).expanduser()
    if config.plots and not _drawn(directory):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.execv(sys.executable, [sys.executable, "-c", DRAW, str(directory)])


DRAW = """
import runpy, traceback
try:
    runpy.run_module("patchnets.plots", run_name="__main__", alter_sys=True)
except SystemExit:  # the run itself succeeded
    pass
except Exception:
    traceback.print_exc()
"""


def _drawn(directory: pathlib.Path) -> bool:
    """Return whether there are plots newer than the summary. Older ones may show an unfinished run."""
    ended = (directory / "summary.json").stat().st_mtime_ns
    return any(plot.stat().st_mtime_ns >= ended for plot in (directory / "plots").glob("*.png"))


def _train(
    argv: list[str],
    process: distributed.ProcessInfo | None = None,
    preemption: PreemptionHandler | None = None,
) -> int:
    """Train in this process and return the exit status."""
    name = "patchnets" if process is None else str(process)
    try:
        from patchnets.config.flags import parse_flags

        config, workdir = parse_flags(argv)
        runtime.enable_compilation_cache()
        from patchnets import train
        from patchnets.experiment import use_cpu_cores
        from patchnets.parallel import backend

        if process is None:
            use_cpu_cores(config)
        else:
            use_cpu_cores(config, process.count or 1, process.processes_on_host)
            with preemption.exit_immediately(name) if preemption else contextlib.nullcontext():
                distributed.initialize(process)
        backend.check_jax_settings()
        train.train(config, workdir, began=STARTED, preemption=preemption)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        if process is not None and distributed.lost_peer(error):
            print(f"{name}: {distributed.describe_loss(error)}", file=sys.stderr)
            return 1
        if isinstance(error, (UserError, RunError, Preempted, OSError)):
            return report_error(error, name)
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = f"out of memory ({first_line(error, 160)}); lower config.batch_size, or use a smaller model"
        print(f"{name}: {text}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    runtime.start_program()
    stop_when_disconnected()
    status = main(sys.argv)
    if status == RunError.status:  # Python would wait for orbax's threads: after a failed save, for five minutes
        distributed.exit_now(status)
    sys.exit(status)
