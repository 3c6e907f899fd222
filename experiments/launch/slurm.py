"""Write an sbatch script."""

import shlex

from experiments.launch import templates
from experiments.launch.options import Options
from experiments.runner.jobs import ROOT
from patchnets.errors import UserError

MAX_REQUEUES = 100
WARNING = 120  # seconds between SIGTERM and the time limit; Slurm may send it a minute early
MIN_SECONDS = 300  # seconds: a shorter job would get SIGTERM before it has trained, after every requeue


def write(options: Options) -> str:
    """Return the script: one task per node; it requeues itself after it was stopped and has saved its state."""
    limit = options.values.get("time")
    if limit and seconds(limit) < MIN_SECONDS:
        raise UserError(f"--time={limit} is too short: tasks get SIGTERM {WARNING} s before; use 5 minutes or more")
    array = len(options.runs) > 1
    cases = "".join(f"    {i}) run=({shlex.join(run)}) ;;\n" for i, run in enumerate(options.runs))
    cpus = options.values.get("cpus-per-task")
    return templates.SLURM.substitute(
        directives="\n".join(f"#SBATCH --{name}={_directive(value)}" for name, value in _directives(options).items()),
        warning=WARNING,
        root=shlex.quote(str(ROOT)),
        setup=f"{options.values['setup']}\n" if "setup" in options.values else "",
        choose_run=f"case $SLURM_ARRAY_TASK_ID in\n{cases}esac\n" if array else "",
        cpus=f" --cpus-per-task={cpus}" if cpus else "",
        python=shlex.quote(options.python),
        run='"${run[@]}"' if array else shlex.join(options.runs[0]),
        max_requeues=options.values.get("max-requeues", MAX_REQUEUES),
    )


def seconds(limit: str) -> int:
    """Convert MINUTES[:SECONDS], HOURS:MINUTES:SECONDS or DAYS-HOURS[:MINUTES[:SECONDS]] as sbatch does."""
    days, dash, rest = limit.rpartition("-")
    parts = list(map(int, rest.split(":")))
    parts = parts if dash or len(parts) == 3 else [0, *parts]
    hours, minutes, rest_seconds = [*parts, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest_seconds


def _directives(options: Options) -> dict[str, object]:
    directives: dict[str, object] = {"job-name": options.name, "nodes": options.nodes, "ntasks-per-node": options.tasks}
    for option in ("gpus-per-node", "cpus-per-task", "mem", "time", "partition", "account"):
        if option in options.values:
            directives[option] = options.values[option]
    if len(options.runs) > 1:
        directives["array"] = f"0-{len(options.runs) - 1}"
    log = "slurm-%A_%a.out" if len(options.runs) > 1 else "slurm-%j.out"
    return directives | {"output": f"{str(options.workdir).replace('%', '%%')}/{log}"}


def _directive(value: object) -> str:
    """Quote a value for sbatch, if it contains special characters."""
    text = str(value)
    if '"' in text or "\\" in text:
        raise UserError(f'--workdir={text}: sbatch takes no path with " or \\ in it; use another')
    return f'"{text}"' if any(not (c.isalnum() or c in "-_./%:,@") for c in text) else text


def submit(options: Options) -> list[str]:
    return ["sbatch", str(options.out)]
