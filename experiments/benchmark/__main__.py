"""Compare the speed of patchnets with Keras and timm on the same work, in turns, in one run.

    python -m experiments.benchmark --model=mixer,fnet --against=keras-jax,keras-tensorflow,timm [--work=train] ...
    python -m experiments.benchmark --suite=cpu --out=DIR
    python -m experiments.benchmark --suite=gpu --out=DIR

Each program runs in its own process and sleeps during the others' turns. images/s is the median over turns; the time to
the first step counts from the start of the process, with nothing compiled before; memory is the peak of the process, or
of the GPU. Exit status: 0; 1 if a program could not be measured, which prints one line; 2 for an invalid command line.
"""

import argparse
import dataclasses
import json
import pathlib
import shlex
import sys
import tempfile
from typing import Any

from experiments.benchmark import machine, report, workloads
from experiments.benchmark.measure import Settings, compare, starter
from experiments.benchmark.workloads import PAPERS, Row
from experiments.runner.cli import join_values
from patchnets.errors import UserError
from patchnets.runtime.cli import ArgumentParser, out_folder, positive_float, positive_int, run_cli


@dataclasses.dataclass(frozen=True)
class Options:
    rows: list[Row]
    settings: Settings
    out: pathlib.Path | None
    suite: bool

    def settings_for(self, row: Row) -> Settings:
        """Return the settings of a comparison: in a suite, tutorials keep their own batch."""
        own = self.suite and row.model not in PAPERS
        return dataclasses.replace(self.settings, batch=None) if own else self.settings


def interpreter(value: str) -> tuple[str, str]:
    """Parse --python-of: NAME=FILE."""
    competitor, _, file = value.partition("=")
    if competitor not in (*workloads.COMPETITORS, "keras") or not pathlib.Path(file).is_file():
        expected = "expected NAME=FILE, of a competitor and its Python interpreter"
        raise argparse.ArgumentTypeError(f"{expected}, got {value[:120]!r}")
    return competitor, file


def parse_args(arguments: list[str], gpu: str) -> Options:
    """Parse the command line, on a machine with this GPU ("" for none); raise UserError if it is invalid."""
    parser = ArgumentParser("python -m experiments.benchmark", description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument(
        "--model",
        help="tutorials: mixer fnet gmlp vit convmixer, from uint8 images to updated weights, each with its own size, "
        "batch and augmentation; papers' networks on prepared batches: mixer-S/16 mixer-B/16 vit-S/16 vit-B/16 "
        "gmlp-S/16 convmixer-512/16 convmixer-768/32 convmixer-1536/20; digits, a small test of this program",
    )
    parser.add_argument(
        "--against",
        help="keras-jax keras-tensorflow (tutorials), timm timm-channels-last timm-compiled (default: none)",
    )
    parser.add_argument(
        "--work",
        help="train (default); eval; input: augmentation alone; devices: on 1, 2, 4 and 8 simulated CPU devices",
    )
    parser.add_argument(
        "--suite",
        choices=("cpu", "gpu"),
        help="all comparisons for this kind of machine, instead of --model, --against and --work",
    )
    parser.add_argument(
        "--rounds", type=positive_int, help="turns of each program, after one warm-up turn (default: 7)"
    )
    parser.add_argument("--seconds", type=positive_float, help="length of a turn, at least one step (default: 5)")
    parser.add_argument(
        "--batch",
        type=positive_int,
        help="images per step (default: the tutorial's; papers' networks 8, 256 on a GPU); with --suite, papers' only",
    )
    parser.add_argument(
        "--images", type=positive_int, help="approximate number that a tutorial holds in memory (default: 10000)"
    )
    parser.add_argument("--dtype", choices=workloads.DTYPES, help="default: float32; bfloat16 for --suite=gpu")
    parser.add_argument(
        "--python-of",
        type=interpreter,
        action="append",
        metavar="NAME=FILE",
        help="the interpreter of a competitor, keras or timm, if it is not this one; may be repeated",
    )
    parser.add_argument(
        "--peak-tflops",
        type=positive_float,
        help="peak of the GPU in bfloat16 by its data sheet, for MFU (default: by its name, if known)",
    )
    parser.add_argument(
        "--patience",
        type=positive_float,
        help="seconds to wait for an answer of a competitor (default: 1200)",
    )
    parser.add_argument(
        "--out",
        type=out_folder,
        metavar="DIR",
        help="folder for benchmark.json, benchmark.md and benchmark.png; without it nothing is written",
    )
    values = vars(parser.parse_args(arguments))
    settings = Settings(
        **{name: values[name] for name in ("rounds", "seconds", "batch", "images", "patience") if name in values},
        dtype=values.get("dtype", "bfloat16" if values.get("suite") == "gpu" else "float32"),
        pythons=dict(values.get("python_of", ())),
        peak_tflops=values.get("peak_tflops") or machine.peak_tflops(gpu),
        gpu=bool(gpu),
    )
    return Options(rows_of(values), settings, values.get("out"), "suite" in values)


def rows_of(values: dict[str, Any]) -> list[Row]:
    """Return the selected comparisons; raise UserError if none or too much is selected."""
    if "suite" in values:
        if also := [name for name in ("model", "against", "work") if name in values]:
            raise UserError(f"--suite and --{also[0]} are both given; a suite sets it")
        return workloads.suite(values["suite"])
    if "model" not in values:
        raise UserError("neither --model nor --suite is given; for example --model=mixer --against=timm")
    against = tuple(values["against"].split(",")) if "against" in values else ()
    return workloads.chosen(tuple(values["model"].split(",")), values.get("work", "train"), against)


def write(results: dict[str, Any], out: pathlib.Path) -> None:
    """Write the results; called after every comparison, so that an interrupted run leaves its results."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "benchmark.md").write_text(report.markdown(results))


def measure_all(options: Options, command: str, logs: pathlib.Path) -> int:
    """Run all comparisons in sequence; return the exit status."""
    results: dict[str, Any] = {"command": command, "machine": machine.described(), "results": []}
    print(", ".join(f"{name} {value}" for name, value in results["machine"].items()), flush=True)

    def say(text: str) -> None:
        print(f"    {text}", flush=True)

    for number, row in enumerate(options.rows, 1):
        print(f"\n[{number}/{len(options.rows)}] {row.model}, {report.WORDS[row.task]}", flush=True)
        settings = options.settings_for(row)
        result = compare(row, settings, starter(settings, logs), say)
        results["results"].append(result)
        print(report.table(result), flush=True)
        if options.out:
            write(results, options.out)
    if options.out:
        drawn = "benchmark.json, benchmark.md"
        try:
            report.draw(results["results"], options.out / "benchmark.png")
            drawn += ", benchmark.png"
        except ModuleNotFoundError:
            print("\nno benchmark.png: matplotlib is not installed", file=sys.stderr)
        print(f"\nwritten to {options.out}/: {drawn}")
    return int(any(result["failures"] for result in results["results"]))


def without_folder(argument: str) -> str:
    """Return an argument for publication: only the name of a file or folder of this machine."""
    named = argument.startswith(("--python-of=", "--out=")) and "/" in argument
    return argument[: argument.rindex("=") + 1] + pathlib.Path(argument).name if named else argument


def execute(arguments: list[str]) -> int:
    """Run a command line; return the exit status."""
    options = parse_args(arguments, machine.gpu_name())
    command = shlex.join(["python", "-m", "experiments.benchmark", *map(without_folder, join_values(arguments))])
    try:
        with tempfile.TemporaryDirectory() as logs:
            return measure_all(options, command, pathlib.Path(logs))
    except KeyboardInterrupt:
        print("patchnets: interrupted; finished comparisons are written", file=sys.stderr)
        return 130


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status."""
    return run_cli(argv, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
