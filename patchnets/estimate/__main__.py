"""Estimate the cost of a run before starting it: memory, FLOPs, time and disk.

    python -m patchnets.estimate --config=FILE[:ARGUMENT] [--topology=v5e:4x4] [--config.KEY=VALUE ...]

Takes the options of patchnets.main, and its own.

Compiles the training step; trains, downloads and writes nothing except `--json=FILE`. Exit status: 0, or 2 if the
request is invalid.
"""

import argparse
import json
import sys
from collections.abc import Sequence

import jax

from patchnets.errors import RunError, UserError, first_line, report_error
from patchnets.runtime.cli import ArgumentParser, path, positive_float, positive_int, run_cli


def parse_args(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options and the arguments of patchnets.main. Raise UserError for an invalid option."""
    parser = ArgumentParser("python -m patchnets.estimate", description=__doc__)
    parser.add_argument("--config", metavar="FILE[:ARGUMENT]", help="a file of configs/, as patchnets.main takes it")
    parser.add_argument(
        "--topology", metavar="v5e:2x4", help="TPU slice to compile for (default: this machine's devices)"
    )
    parser.add_argument(
        "--memory", type=positive_float, metavar="GIB", help="memory per device in GiB, instead of the device's own"
    )
    parser.add_argument(
        "--largest-batch", action="store_true", help="find the largest batch that fits, by compiling several"
    )
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--images-per-second", type=positive_float, metavar="N", help="training speed, to estimate the time"
    )
    speed.add_argument(
        "--measure", action="store_true", help="measure the speed by training a few steps on random images"
    )
    parser.add_argument(
        "--examples", type=positive_int, metavar="N", help="training images, if the data set is not on this machine"
    )
    parser.add_argument("--classes", type=positive_int, metavar="K", help="number of classes (with --examples)")
    parser.add_argument("--json", type=path, metavar="FILE", help="write the figures to FILE as JSON")
    options, rest = parser.parse_known_args(arguments)
    return options, rest if options.config is None else [f"--config={options.config}", *rest]


def execute(arguments: list[str]) -> int:
    """Print the estimate that a command line asks for; return the exit status."""
    from patchnets.config import flags
    from patchnets.experiment import data_options, use_cpu_cores

    options, rest = parse_args(arguments)
    if (options.examples is None) != (options.classes is None):
        raise UserError("--examples and --classes belong together; give both, or neither for data on this machine")
    if options.measure and options.topology:
        raise UserError(
            f"--measure runs on this machine's devices, and --topology={options.topology} names others; give one"
        )
    if options.json and not options.json.parent.is_dir():
        raise UserError(f"--json={options.json}: there is no folder {options.json.parent}; make it, or name another")
    if options.json and options.json.is_dir():
        raise UserError(f"--json={options.json} is a folder; give a file")
    config, _ = flags.parse_flags(["patchnets.estimate", *rest])
    if options.topology:
        jax.config.update("jax_platforms", "cpu")  # compilation alone needs no accelerator
    else:
        use_cpu_cores(config)
    from patchnets.config import flatten
    from patchnets.estimate.compile_step import make_abstract_run
    from patchnets.estimate.dataset_spec import find_dataset_spec
    from patchnets.estimate.report import Options, estimate
    from patchnets.estimate.text import format_report
    from patchnets.estimate.topology import find_topology
    from patchnets.run.frozen_features import trains_head_only

    if config.init.weights:
        from patchnets.inference.warm_start import fields_of_weights

        config.update_from_flattened_dict(fields_of_weights(flatten(config)))
    target = find_topology(options.topology, options.memory)
    dataset = find_dataset_spec(data_options(config), len(target.devices), options.examples, options.classes)
    abstract_run = make_abstract_run(config, target, dataset)
    if sys.stderr.isatty():
        print(
            f"compiling the training step for {abstract_run.experiment.mesh.size} x {target.kind} ...",
            file=sys.stderr,
            flush=True,
        )
    figures = estimate(
        abstract_run, Options(options.topology, options.images_per_second, options.measure, options.largest_batch)
    )
    print(format_report(figures), flush=True)
    if config.frozen_features != "never" and trains_head_only(abstract_run.experiment):
        print("note: only the head is trained; on features that are computed once, steps take far less than this")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status. Errors are reported in one line."""
    from patchnets import runtime

    runtime.silence_logs()
    try:
        return run_cli(argv, execute)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return report_error(RunError(f"out of memory ({first_line(error, 160)}); lower config.batch_size"))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
