"""Write a shell script that creates a TPU slice, runs on all its hosts (runs one after the other), and deletes it."""

import shlex

from experiments.launch import templates
from experiments.launch.options import Options
from experiments.runner.jobs import ROOT
from patchnets.errors import UserError

RUNTIMES = {"v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
INSTALL = "tar -xf patchnets.tar && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"


def write(options: Options) -> str:
    """Return the script."""
    for option in ("tpu-type", "zone"):
        if option not in options.values:
            example = {"tpu-type": "v5litepod-16", "zone": "us-west4-a"}[option]
            raise UserError(f"--{option} is not given; for example --{option}={example}")
    kind = options.values["tpu-type"]
    runtime = options.values.get("runtime", RUNTIMES.get(kind.partition("-")[0], "tpu-ubuntu2204-base"))
    location = [f"--zone={options.values['zone']}"]
    location += [f"--project={options.values['project']}"] if "project" in options.values else []
    setup = [options.values["setup"]] if "setup" in options.values else []
    runs = [shlex.join([".venv/bin/python", "-m", "patchnets.main", *run]) for run in options.runs]
    return templates.TPU.substitute(
        workdir=options.workdir,
        root=shlex.quote(str(ROOT)),
        location=shlex.join(location),
        name=options.name,
        kind=kind,
        runtime=runtime,
        install="\n".join(f"on_all {shlex.quote(command)}" for command in [*setup, INSTALL]),
        runs="\n".join(f"on_all {shlex.quote(run)} || status=$?" for run in runs),
    )


def submit(options: Options) -> list[str]:
    return ["bash", str(options.out)]
