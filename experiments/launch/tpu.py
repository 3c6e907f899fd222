"""A shell script that makes a TPU slice, runs on all its hosts (of a sweep one run after another), and deletes it."""

import shlex

from experiments.launch.options import Options
from experiments.runner.jobs import ROOT
from patchnets.errors import UserError

RUNTIMES = {"v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
INSTALL = "tar -xf patchnets.tar && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"


def write(asked: Options) -> str:
    for option in ("tpu-type", "zone"):
        if option not in asked.given:
            example = {"tpu-type": "v5litepod-16", "zone": "us-west4-a"}[option]
            raise UserError(f"--{option} is not given; for example --{option}={example}")
    kind = asked.given["tpu-type"]
    runtime = asked.given.get("runtime", RUNTIMES.get(kind.partition("-")[0], "tpu-ubuntu2204-base"))
    where = [f"--zone={asked.given['zone']}"]
    where += [f"--project={asked.given['project']}"] if "project" in asked.given else []
    setup = [asked.given["setup"]] if "setup" in asked.given else []
    runs = [shlex.join([".venv/bin/python", "-m", "patchnets.main", *run]) for run in asked.runs]
    name = asked.name
    lines = [
        "#!/bin/bash",
        f"# {asked.workdir} has to be one folder for all hosts: NFS, or a bucket mounted by gcsfuse (--setup).",
        "set -euo pipefail",
        f"cd {shlex.quote(str(ROOT))}",
        f'tpu() {{ gcloud compute tpus tpu-vm "$@" {shlex.join(where)}; }}',
        f'on_all() {{ tpu ssh {name} --worker=all --command="$1"; }}',
        "",
        f"tpu create {name} --accelerator-type={kind} --version={runtime}",
        f"trap 'tpu delete {name} --quiet' EXIT",
        'archive=$(mktemp) && git archive --output="$archive" --format=tar HEAD',
        f'tpu scp "$archive" {name}:patchnets.tar --worker=all && rm "$archive"',
        *(f"on_all {shlex.quote(command)}" for command in [*setup, INSTALL]),
        "status=0",
        *(f"on_all {shlex.quote(run)} || status=$?" for run in runs),
        "exit $status",
    ]
    return "\n".join(lines) + "\n"


def submit(asked: Options) -> list[str]:
    return ["bash", str(asked.out)]
