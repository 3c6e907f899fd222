"""Tells what a run will take, before it is started.

    python -m patchnets.estimate --config=FILE[:ARGUMENT] [--topology=v5e:4x4] [--config.KEY=VALUE ...] [OPTION ...]

--config             a file of configs/, and its keys, as patchnets.main takes them
--topology           a TPU slice, such as v5e:2x4, that need not be there; default: the devices at hand
--memory             GiB of each device, where another amount than it has is to be planned for
--largest-batch      search the largest batch that fits, by compiling some
--images-per-second  how fast training is, for the time that it takes
--measure            train some steps of random images on the devices at hand, for the same
--examples, --classes  training images and classes, where the data set is not at hand
--json               a file for the same figures as JSON

The training step is compiled, and nothing is trained, downloaded or written but that file. Exit status: 0; 2 where the
request cannot be carried out, or the run could not be.
"""

import json
import math
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

import jax
from absl import logging

from patchnets.errors import RunError, UserError, first_line, report_error

SWITCHES = ("measure", "largest-batch")
OPTIONS = ("topology", "memory", "images-per-second", "examples", "classes", "json")


def split_options(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """{option: value} of this program, and the arguments of patchnets.main. Raises UserError for a value that lacks."""
    given, rest = {}, []
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if (name in SWITCHES and equals) or (name in OPTIONS and not value):
            form = f"--{name}" + ("" if name in SWITCHES else "=VALUE")
            raise UserError(f"{argument!r} is not understood; the form is {form}")
        if argument.startswith("--") and name in (*SWITCHES, *OPTIONS):
            given[name] = value or "yes"
        else:
            rest.append(argument)
    return given, rest


def number(name: str, given: Mapping[str, str]) -> float | None:
    """An option that is a number above 0; None where it is not given. Raises UserError for others."""
    if name not in given:
        return None
    try:
        value = float(given[name].replace(",", ""))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"--{name}={given[name][:40]}: expected a number above 0")
    return value


def whole_number(name: str, given: Mapping[str, str]) -> int | None:
    """An option that is a whole number above 0, thousands apart or not. Raises UserError for others."""
    if name in given and not re.fullmatch(r"[1-9][\d,]{0,14}", given[name], re.ASCII):
        raise UserError(f"--{name}={given[name][:40]}: expected a whole number above 0")
    return int(given[name].replace(",", "")) if name in given else None


def execute(argv: list[str]) -> int:
    """Plans what a command line asks for; returns the exit status."""
    from patchnets.config import flags
    from patchnets.experiment import data_options, use_cpu_cores

    given, rest = split_options(argv[1:])
    memory, rate = number("memory", given), number("images-per-second", given)
    count, classes = whole_number("examples", given), whole_number("classes", given)
    topology = given.get("topology")
    if (count is None) != (classes is None):
        raise UserError("--examples and --classes belong together; give both, or neither where the data set is at hand")
    if "measure" in given and (topology or rate):
        other = f"--topology={topology}" if topology else "--images-per-second"
        raise UserError(f"--measure runs on the devices at hand, and {other} tells otherwise; give one of them")
    path = pathlib.Path(given["json"]).expanduser() if "json" in given else None
    if path and not path.parent.is_dir():
        raise UserError(f"--json={path}: there is no folder {path.parent}; make it, or name another")
    if path and path.is_dir():
        raise UserError(f"--json={path} is a folder; give a file")
    config, _ = flags.parse_flags([argv[0], *rest])
    if topology:
        jax.config.update("jax_platforms", "cpu")  # nothing is computed, and no accelerator is to be taken for it
    else:
        use_cpu_cores(config)
    from patchnets.estimate.compile_step import make_abstract_run
    from patchnets.estimate.dataset_spec import find_dataset_spec
    from patchnets.estimate.report import Options, estimate
    from patchnets.estimate.text import format_report
    from patchnets.estimate.topology import find_topology

    target = find_topology(topology, memory)
    dataset = find_dataset_spec(data_options(config), len(target.devices), count, classes)
    abstract_run = make_abstract_run(config, target, dataset)
    if sys.stderr.isatty():
        print(
            f"compiling the training step for {abstract_run.experiment.mesh.size} x {target.kind} ...",
            file=sys.stderr,
            flush=True,
        )
    figures = estimate(abstract_run, Options(topology, rate, "measure" in given, "largest-batch" in given))
    print(format_report(figures), flush=True)
    if path:
        path.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def main(argv: list[str]) -> int:
    """Carries out a command line and returns the exit status; tells what went wrong in one line."""
    from patchnets import runtime

    if {"--help", "-h", "-help"} & set(argv[1:]):
        print(__doc__)
        return 0
    runtime.silence_logs()
    logging.set_verbosity(logging.FATAL)
    try:
        return execute(argv)
    except (UserError, RunError, OSError) as error:
        return report_error(error)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"patchnets: out of memory ({first_line(error, 160)}); lower config.batch_size", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("patchnets: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv))
