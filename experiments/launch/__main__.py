"""Write a job that trains on a cluster, and submit it with --submit.

    python -m experiments.launch slurm --config=FILE[:ARGUMENT] --nodes=N [--config.KEY=VALUE ...] [--submit]
    python -m experiments.launch k8s   --config=FILE[:ARGUMENT] --nodes=N --image=IMAGE --volume-claim=NAME
    python -m experiments.launch tpu   --config=FILE[:ARGUMENT] --tpu-type=v5litepod-16 --zone=ZONE --workdir=DIR

Several runs: --sweep=FILE (experiments.sweep) with --seeds=N and, under SLURM, the rows of a table, --table=NAME
[--rows=ID,ID...] [--data=DATA] (experiments.reproduce); the command that reports them is printed. Options of an engine:
python -m experiments.launch slurm --help. TPUs on GKE, in a JobSet:
--tpu-type=tpu-v5-lite-podslice --tpu-topology=4x4 --tpus-per-node=4.

The configuration is checked before anything is written. Exit status: 0; 1 if the job could not be submitted; 2 for an
invalid command line.
"""

import pathlib
import shlex
import shutil
import subprocess
import sys

from experiments.launch import k8s, slurm, tpu
from experiments.launch import options as options_lib
from patchnets.errors import RunError, UserError, first_line
from patchnets.runtime.cli import run_cli
from patchnets.runtime.files import write_atomically

ENGINES = {"slurm": slurm, "k8s": k8s, "tpu": tpu}


def execute(arguments: list[str]) -> int:
    """Write the job, submit it with --submit, and return the exit status."""
    options = options_lib.parse_args(arguments, __doc__)
    engine = ENGINES[options.engine]
    text = engine.write(options)
    if "dry-run" in options.values:
        print(text, end="")
        return 0
    command = engine.submit(options)
    if "submit" in options.values and shutil.which(command[0]) is None:
        raise UserError(
            f"--submit: {command[0]} is not installed here; leave it out, and run the printed command elsewhere"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.engine == "slurm":
        pathlib.Path(options.workdir).mkdir(parents=True, exist_ok=True)  # sbatch does not create it
    write_atomically(options.out, text)
    print(f"written: {options.out}")
    if "submit" in options.values:
        _submit(command)
    else:
        print(f"submit:  {shlex.join(command)}")
    if options.report:
        print(f"report:  {shlex.join(['python', *options.report])}")
    return 0


def _submit(command: list[str]) -> None:
    """Run the command; raise RunError if it fails."""
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RunError(f"{shlex.join(command)} failed: {first_line(error)}") from error


def main(argv: list[str]) -> int:
    """Run a command line and return the exit status."""
    return run_cli(argv, execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
