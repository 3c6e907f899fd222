"""Trains a patch-based image classifier.

    python -m patchnets.main --config=FILE[:ARGUMENT] [--workdir=DIR] [--config.KEY=VALUE ...]

--config   a file of configs/, e.g. configs/mixer_cifar100.py
--workdir  where results go (default: runs/, in a folder named after the configuration)

Under SLURM, Open MPI, Kubernetes and on TPU pods the processes of a run find each other; elsewhere each is given
--coordinator=HOST[:PORT] (where process 0 runs), --processes=N and --process=0 to N - 1 (docs/clusters.md).

The same command continues a run that was cut, and says so where it is finished. Exit status: 0 finished; 1 the run had
to stop; 2 the request cannot be carried out; 128 + N stopped by signal N (SIGTERM: 143, SIGINT: 130), state saved.
"""

import contextlib
import itertools
import os
import pathlib
import re
import runpy
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags, logging

from patchnets import STARTED, host
from patchnets.errors import Preempted, RunError, UserError, one_line, tell
from patchnets.parallel import distributed
from patchnets.parallel.preemption import PreemptionHandler


def parse(argv: list[str]):
    """(configuration, work directory) from a command line. Raises UserError, in one line, for what is wrong with it."""
    from ml_collections import config_flags

    from patchnets import claims
    from patchnets import config as config_lib

    argv = [argv[0]] + [re.sub(r"^-(?=[a-z])", "--", argument) for argument in argv[1:]]
    for name in re.findall(r"^--(?:no)?config\.([\w.]+)", "\n".join(argv), re.MULTILINE):
        if name not in config_lib.known_keys():
            raise config_lib.unknown_key(name)
    path = next((a.split("=", 1)[1] for a in argv if a.startswith("--config=")), None)
    path = path or next((b for a, b in itertools.pairwise(argv) if a == "--config"), None)
    if path is None:
        raise UserError("--config is not given; for example --config=configs/mixer_digits.py, and --help explains")
    original = _load(path)
    argv, unset = _unset(argv, config_lib.known_keys())
    values = flags.FlagValues()
    try:
        config_flag = config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
        workdir_flag = flags.DEFINE_string("workdir", None, "", flag_values=values)
        rest = values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_tidy(error)) from error
    config = config_flag.value
    given = config_flags.get_override_values(values["config"])
    config.update_from_flattened_dict(dict.fromkeys([*config_lib.displaced(config, [*given, *unset]), *unset]))
    claims.void_if_changed(config, config_lib.recipe_changes(original, config_lib.flatten(config)))
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not understood; overrides have the form --config.KEY=VALUE")
    config_lib.check(config)
    name = pathlib.Path(path.split(":", 1)[0]).stem
    variant = "".join(c if c.isalnum() or c in "-_." else "-" for c in path.partition(":")[2])
    return config, workdir_flag.value or os.path.join("runs", f"{name}-{variant}" if variant else name)


def _unset(argv: list[str], keys: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The command line without --config.KEY=None, and those keys, which may be left without a value."""
    unset = [match[1] for a in argv if (match := re.fullmatch(r"--config\.([\w.]+)=None", a))]
    unset = [name for name in unset if isinstance(keys[name].default, type)]
    return [a for a in argv if a not in {f"--config.{name}=None" for name in unset}], unset


def _load(path: str) -> dict[str, Any]:
    """Loads a configuration file once to say what is wrong with it, which the flag that loads it again does not.

    Returns it as a flat dictionary."""
    from patchnets import config as config_lib

    sys.modules.pop("config_config", None)  # the name under which the flag would find an earlier file again
    file, *argument = path.split(":", 1)
    return from_file("config", path, file, lambda names: config_lib.flatten(names["get_config"](*argument)))


def from_file(option: str, told: str, file: str, work: Callable[[dict[str, Any]], Any]) -> Any:
    """What `work` makes of the names that a Python file defines.

    Raises:
      UserError: the file, given as --`option`=`told`, is not there, or something in it fails; in one line.
    """
    if not pathlib.Path(file).is_file():
        raise UserError(f"--{option}={told}: there is no such file")
    try:
        return work(runpy.run_path(file))
    except UserError:
        raise
    except Exception as error:  # anything that a file may do
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        where = f" (line {lines[-1]})" if lines else ""
        raise UserError(f"--{option}={told} cannot be loaded: {type(error).__name__}: {_tidy(error)}{where}") from error


def _tidy(error: BaseException) -> str:
    """An error's own words in one line."""
    return one_line(error, limit=1_000_000).split(" Other fields present")[0][:400]  # ml_collections prints them all


def explain(argv: list[str]) -> None:
    """--help: what the program does, and every key with its value and meaning."""
    from patchnets import config as config_lib

    try:
        config = parse([a for a in argv if a not in ("--help", "-h", "-help")])[0]
    except UserError:
        config = None
    print(__doc__)
    print(
        "Keys, their values"
        + (" as given" if config is not None else " by default")
        + " (- for not set), and meanings:\n"
    )
    print(config_lib.describe(config))


def keep_compiled() -> None:
    """Keeps compiled programs between runs, beside decoded images, unless JAX was told where to keep them."""
    import jax

    from patchnets.data.cache import cache_root

    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # A cache that cannot be written or read back is a slow start, not a reason for a page of warnings.
    warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")


def quieten() -> None:
    """What matters is raised, and told in one line: libraries' remarks, as TensorFlow's on the CPU, help nobody."""
    logging.set_verbosity(logging.FATAL)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def run(argv: list[str]) -> int:
    """Carries out a command line and returns the exit status; tells what went wrong in one line."""
    if {"--help", "-h", "-help"} & set(argv[1:]):
        explain(argv)
        return 0
    quieten()
    try:
        process, arguments = distributed.detect_cluster(argv[1:])
    except UserError as error:
        return tell(error)
    argv = [argv[0], *arguments]
    return _train(argv) if process is None else _train_as_one_of_several(argv, process)


def _train_as_one_of_several(argv: list[str], process: distributed.ProcessInfo) -> int:
    """Trains in this process of several, and leaves them: together where all is well, else at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the second Ctrl-C ends the process, also below Python
    with PreemptionHandler() as preemption:
        try:
            status = _train(argv, process, preemption)
        except Exception:  # a bug; the others must not wait for this process
            traceback.print_exc()
            status = 1
        if status not in (0, 128 + signal.SIGTERM, 128 + signal.SIGINT):
            distributed.exit_now(status)
        first = distributed.leave(status)
    if first and status == 0:
        _draw(argv)
    return status


def _draw(argv: list[str]) -> None:
    """The pictures of a run of several processes, where it has none since its end. This process becomes the program
    that draws, which frees its accelerators."""
    config, workdir = parse(argv)
    place = pathlib.Path(workdir).expanduser()
    if config.plots and not _drawn(place):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.execv(sys.executable, [sys.executable, "-c", DRAW, str(place)])


DRAW = """
import runpy, traceback
try:
    runpy.run_module("patchnets.plots", run_name="__main__", alter_sys=True)
except SystemExit:  # the run itself has ended well
    pass
except Exception:
    traceback.print_exc()
"""


def _drawn(place: pathlib.Path) -> bool:
    """Whether pictures were drawn after the summary was written: earlier ones are of a run under way."""
    ended = (place / "summary.json").stat().st_mtime_ns
    return any(picture.stat().st_mtime_ns >= ended for picture in (place / "plots").glob("*.png"))


def _train(
    argv: list[str],
    process: distributed.ProcessInfo | None = None,
    preemption: PreemptionHandler | None = None,
) -> int:
    """Carries out a run, in this process; returns the exit status."""
    name = "patchnets" if process is None else str(process)
    try:
        config, workdir = parse(argv)
        keep_compiled()
        from patchnets import processors, trainer

        if process is None:
            processors.split_cpu(config)
        else:
            processors.split_cpu(config, process.count or 1, process.processes_on_host)
            with preemption.exit_immediately(name) if preemption else contextlib.nullcontext():
                distributed.initialize(process)
        trainer.train(config, workdir, began=STARTED, preemption=preemption)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; what was saved stays, and the same command continues", file=sys.stderr)
        return 130
    except Exception as error:
        if process is not None and distributed.lost_peer(error):
            print(f"{name}: {distributed.describe_loss(error)}", file=sys.stderr)
            return 1
        if isinstance(error, (UserError, RunError, Preempted, OSError)):
            return tell(error, name)
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = f"out of memory ({one_line(error, 160)}); lower config.batch_size, or choose a smaller model"
        print(f"{name}: {said}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    host.restart_with_huge_pages()
    sys.exit(run(sys.argv))
