"""Write a JobSet for Kubernetes."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments.launch import templates
from experiments.launch.options import Options
from patchnets.errors import UserError
from patchnets.parallel.distributed import PORT

MAX_RESTARTS = 100
GRACE = 120  # seconds that a pod has to save its state
GKE = "cloud.google.com/gke-tpu-"


def write(options: Options) -> str:
    """Return the manifest: an indexed Job with one pod per node, all restarted if one is lost.

    With several runs, one JobSet each, NAME-0 and so on.
    """
    for option, need in (
        ("image", "an image with patchnets in it"),
        ("volume-claim", "a volume that outlives its pods"),
    ):
        if option not in options.values:
            raise UserError(f"--{option} is not given; a JobSet needs {need}")
    names = [f"{options.name}-{i}" for i in range(len(options.runs))] if len(options.runs) > 1 else [options.name]
    manifests = [_manifest(options, name, run) for name, run in zip(names, options.runs)]
    return "# Needs the JobSet controller: https://jobset.sigs.k8s.io\n" + "---\n".join(manifests)


def _manifest(options: Options, name: str, run: Sequence[str]) -> str:
    limits, command = _limits(options), [options.python, "-m", "patchnets.main", *run]
    coordinator = f"{name}-run-0-0.{name}:{PORT}"
    selector = {
        f"{GKE}accelerator": options.values.get("tpu-type"),
        f"{GKE}topology": options.values.get("tpu-topology"),
    }
    selector = {label: value for label, value in selector.items() if value}
    return templates.K8S.substitute(
        name=_json(name),
        namespace=f"\n  namespace: {_json(options.values['namespace'])}" if "namespace" in options.values else "",
        max_restarts=options.values.get("max-restarts", MAX_RESTARTS),
        nodes=options.nodes,
        grace=GRACE,
        node_selector=f"\n            nodeSelector: {_json(selector)}" if selector else "",
        image=_json(options.values["image"]),
        command="".join(f"\n              - {_json(word)}" for word in command),
        env=templates.K8S_ENV.substitute(coordinator=_json(coordinator), nodes=options.nodes)
        if options.nodes > 1
        else "",
        resources=f"\n              resources: {_json({'limits': limits})}" if limits else "",
        mount=_json(str(_mount(options.workdir))),
        claim=_json(options.values["volume-claim"]),
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _limits(options: Options) -> dict[str, Any]:
    if "tpu-type" in options.values and "tpus-per-node" not in options.values:
        raise UserError(f"--tpus-per-node is not given; pods with --tpu-type={options.values['tpu-type']} need it")
    names = {"gpus-per-node": "nvidia.com/gpu", "tpus-per-node": "google.com/tpu", "cpus-per-task": "cpu"}
    limits: dict[str, Any] = {name: count for option, name in names.items() if (count := options.values.get(option))}
    return limits | ({"memory": options.values["mem"]} if "mem" in options.values else {})


def _mount(workdir: pathlib.PurePath) -> pathlib.PurePath:
    """Return the mount point of the volume: the first folder of the path."""
    if len(workdir.parts) < 3:
        raise UserError(
            f"--workdir={workdir}: expected a subfolder of the mount point, such as /runs/NAME for a volume at /runs"
        )
    return pathlib.PurePosixPath(*workdir.parts[:2])


def submit(options: Options) -> list[str]:
    return ["kubectl", "apply", "-f", str(options.out)]
