"""Measure everything on a GPU with one command, into one folder.

    python -m experiments.micro.on_gpu --out=DIR --data=CIFAR10 [--parts=benchmark,epochs,sprint] [--rounds=N]

A part that fails prints one line, and the others continue. Exit status: 0; 1 if a part failed; 2 for an invalid command
line.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from experiments.benchmark.workloads import DTYPES, EPOCH, TUTORIALS
from experiments.time_to_accuracy import LEAN, ROOT, data_options
from patchnets.errors import RunError, UserError
from patchnets.runtime.cli import ArgumentParser, out_folder, run_cli, words

PARTS = ("benchmark", "epochs", "sprint")
EPOCHS = 4  # the first, with compilation, does not count
SPRINT = "configs/convmixer_cifar10.py:sprint-{epochs}"


def parse_args(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; raise UserError if it is invalid."""
    parser = ArgumentParser("python -m experiments.micro.on_gpu", description=__doc__)
    parser.add_argument(
        "--out", required=True, type=out_folder, metavar="DIR", help="folder for benchmark.*, epochs.*, sprint.*"
    )
    parser.add_argument(
        "--data", help="CIFAR-10: a folder of train/CLASS/* and test/CLASS/*, or a TFDS data_dir (default: TFDS's own)"
    )
    parser.add_argument(
        "--parts",
        type=words(PARTS, "part"),
        default=PARTS,
        metavar="NAME,NAME...",
        help="benchmark: python -m experiments.benchmark --suite=gpu, against compiled timm, bfloat16; epochs: the "
        "five tutorials trained for four epochs on CIFAR-10, in float32 and in bfloat16; sprint: python -m "
        "experiments.time_to_accuracy, for ConvMixer-256/8 (default: all)",
    )
    parser.add_argument("--rounds", help="rounds of the benchmark (default: its own)")
    parser.add_argument("--turn", help="seconds per turn of the benchmark (default: its own)")
    parser.add_argument("--seconds", default="60,120,300", help="limits of the sprint (default: %(default)s)")
    values = parser.parse_args(arguments)
    if values.data:
        data_options(values.data)
    return values


def program(module: str, *options: str) -> None:
    """Run a program, with its output on the terminal; raise RunError if it fails."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", module, *options]
    status = subprocess.run(command, env=dict(os.environ) | {"PYTHONPATH": paths}, check=False).returncode
    if status:
        raise RunError(f"python -m {module} ended with status {status}")


def benchmark(values: argparse.Namespace) -> None:
    """Run experiments.benchmark --suite=gpu."""
    own = [f"--rounds={values.rounds}"] if values.rounds else []
    own += [f"--seconds={values.turn}"] if values.turn else []
    program("experiments.benchmark", "--suite=gpu", f"--out={values.out}", *own)


def sprint(values: argparse.Namespace) -> None:
    """Run experiments.time_to_accuracy."""
    data = [f"--data={values.data}"] if values.data else []
    limits = [f"--config={SPRINT}", f"--seconds={values.seconds}"]
    program("experiments.time_to_accuracy", *limits, f"--out={values.out}", *data)


def epochs(values: argparse.Namespace) -> None:
    """Train all tutorials with patchnets.main; afterwards raise RunError if one failed."""
    rows, failures = [], []
    for name in TUTORIALS:
        for dtype in DTYPES:
            try:
                rows.append({"tutorial": name, "dtype": dtype} | epoch(name, dtype, values))
            except RunError as error:
                failures.append(f"{name} in {dtype}: {error}")
                print(f"patchnets: {failures[-1]}", file=sys.stderr)
    write(rows, values.out)
    if failures:
        raise RunError(f"{len(failures)} of {len(rows) + len(failures)} runs failed")


def epoch(name: str, dtype: str, values: argparse.Namespace) -> dict[str, Any]:
    """Return images/s of a tutorial on CIFAR-10 after the first epoch, and the seconds per epoch of 45,000 images."""
    keys = LEAN | {"total_epochs": str(EPOCHS), "model.dtype": dtype}
    options = [f"--config.{key}={value}" for key, value in keys.items()]
    options += data_options(values.data) if values.data else []
    with tempfile.TemporaryDirectory() as directory:
        program("patchnets.main", f"--config=configs/{name}_cifar10.py", f"--workdir={directory}/run", *options)
        lines = (pathlib.Path(directory) / "run" / "metrics.jsonl").read_text().splitlines()
        summary = json.loads((pathlib.Path(directory) / "run" / "summary.json").read_text())
    rates = [row["images_per_second"] for row in map(json.loads, lines) if row.get("epoch", 0) > 1]
    rate = statistics.median(rates)
    return {"images_per_second": rate, "epoch_seconds": EPOCH / rate, "device": summary["device"]}


def write(rows: Sequence[dict[str, Any]], out: pathlib.Path) -> None:
    """Write epochs.jsonl and epochs.md, and print the table."""
    lines = ["|tutorial|dtype|images/s|s for 45,000 images|", "|-|-|-|-|"]
    for row in rows:
        rate, seconds = row["images_per_second"], row["epoch_seconds"]
        lines.append(f"|{row['tutorial']}|{row['dtype']}|{rate:,.0f}|{seconds:.2f}|")
    if rows:
        lines += [
            "",
            f"Training with augmentation, without validation, on {rows[0]['device']}; medians of epochs 2 to 4.",
        ]
    (out / "epochs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "epochs.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


def execute(arguments: list[str]) -> int:
    """Run the selected parts; return the exit status."""
    values = parse_args(arguments)
    values.out.mkdir(parents=True, exist_ok=True)
    status = 0
    for name, part in (("benchmark", benchmark), ("epochs", epochs), ("sprint", sprint)):
        if name not in values.parts:
            continue
        print(f"\n== {name}", flush=True)
        try:
            part(values)
        except KeyboardInterrupt:
            print("patchnets: interrupted; finished parts are written", file=sys.stderr)
            return 130
        except (OSError, RunError, UserError) as error:
            print(f"patchnets: {name}: {error}; the other parts continue", file=sys.stderr)
            status = 1
    return status


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status."""
    return run_cli(argv, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
