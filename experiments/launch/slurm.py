"""An sbatch script."""

import shlex

from experiments.launch import templates
from experiments.launch.options import Options
from experiments.runner.jobs import ROOT
from patchnets.errors import UserError

MAX_REQUEUES = 100
WARNING = 120  # seconds ahead of the time limit at which every task is told to save; Slurm may be a minute early
LEAST = 300  # seconds of a job: with fewer it would be told to save before it has trained, and over again


def write(asked: Options) -> str:
    """The script: a task for each node, which goes on by itself after it was stopped and its state saved."""
    limit = asked.given.get("time")
    if limit and seconds(limit) < LEAST:
        raise UserError(f"--time={limit} is too short: every task is told to save {WARNING} s ahead; give 5 or more")
    array = len(asked.runs) > 1
    cases = "".join(f"    {i}) run=({shlex.join(run)}) ;;\n" for i, run in enumerate(asked.runs))
    cpus = asked.given.get("cpus-per-task")
    return templates.SLURM.substitute(
        directives="\n".join(f"#SBATCH --{name}={_directive(value)}" for name, value in _directives(asked).items()),
        warning=WARNING,
        root=shlex.quote(str(ROOT)),
        setup=f"{asked.given['setup']}\n" if "setup" in asked.given else "",
        choose_run=f"case $SLURM_ARRAY_TASK_ID in\n{cases}esac\n" if array else "",
        cpus=f" --cpus-per-task={cpus}" if cpus else "",
        python=shlex.quote(asked.python),
        run='"${run[@]}"' if array else shlex.join(asked.runs[0]),
        max_requeues=asked.given.get("max-requeues", MAX_REQUEUES),
    )


def seconds(limit: str) -> int:
    """Of MINUTES[:SECONDS], HOURS:MINUTES:SECONDS or DAYS-HOURS[:MINUTES[:SECONDS]], as sbatch reads it."""
    days, dash, rest = limit.rpartition("-")
    parts = list(map(int, rest.split(":")))
    parts = parts if dash or len(parts) == 3 else [0, *parts]
    hours, minutes, rest_seconds = [*parts, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest_seconds


def _directives(asked: Options) -> dict[str, object]:
    found: dict[str, object] = {"job-name": asked.name, "nodes": asked.nodes, "ntasks-per-node": asked.tasks}
    for option in ("gpus-per-node", "cpus-per-task", "mem", "time", "partition", "account"):
        if option in asked.given:
            found[option] = asked.given[option]
    if len(asked.runs) > 1:
        found["array"] = f"0-{len(asked.runs) - 1}"
    log = "slurm-%A_%a.out" if len(asked.runs) > 1 else "slurm-%j.out"
    return found | {"output": f"{str(asked.workdir).replace('%', '%%')}/{log}"}


def _directive(value: object) -> str:
    """A value as sbatch reads it: in double quotes where there is a space, which are no part of it."""
    text = str(value)
    if '"' in text or "\\" in text:
        raise UserError(f'--workdir={text}: sbatch takes no path with " or \\ in it; give another')
    return f'"{text}"' if any(not (c.isalnum() or c in "-_./%:,@") for c in text) else text


def submit(asked: Options) -> list[str]:
    return ["sbatch", str(asked.out)]
