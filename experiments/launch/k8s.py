"""A JobSet of Kubernetes."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments.launch import templates
from experiments.launch.options import Options
from patchnets.errors import UserError
from patchnets.parallel.distributed import PORT

MAX_RESTARTS = 100
GRACE = 120  # seconds that a pod has to save what it trained
GKE = "cloud.google.com/gke-tpu-"


def write(asked: Options) -> str:
    """The manifest: an indexed Job with a pod for each node, all started again where one of them is lost; of several
    runs one for each, NAME-0 and so on."""
    for option, why in (("image", "an image with patchnets in it"), ("volume-claim", "where runs outlive their pods")):
        if option not in asked.given:
            raise UserError(f"--{option} is not given; a JobSet needs {why}")
    names = [f"{asked.name}-{i}" for i in range(len(asked.runs))] if len(asked.runs) > 1 else [asked.name]
    manifests = [_manifest(asked, name, run) for name, run in zip(names, asked.runs)]
    return "# Needs the JobSet controller: https://jobset.sigs.k8s.io\n" + "---\n".join(manifests)


def _manifest(asked: Options, name: str, run: Sequence[str]) -> str:
    limits, command = _limits(asked), [asked.python, "-m", "patchnets.main", *run]
    coordinator = f"{name}-run-0-0.{name}:{PORT}"
    selector = {f"{GKE}accelerator": asked.given.get("tpu-type"), f"{GKE}topology": asked.given.get("tpu-topology")}
    selector = {label: value for label, value in selector.items() if value}
    return templates.K8S.substitute(
        name=_json(name),
        namespace=f"\n  namespace: {_json(asked.given['namespace'])}" if "namespace" in asked.given else "",
        max_restarts=asked.given.get("max-restarts", MAX_RESTARTS),
        nodes=asked.nodes,
        grace=GRACE,
        node_selector=f"\n            nodeSelector: {_json(selector)}" if selector else "",
        image=_json(asked.given["image"]),
        command="".join(f"\n              - {_json(word)}" for word in command),
        env=templates.K8S_ENV.substitute(coordinator=_json(coordinator), nodes=asked.nodes) if asked.nodes > 1 else "",
        resources=f"\n              resources: {_json({'limits': limits})}" if limits else "",
        mount=_json(str(_mount(asked.workdir))),
        claim=_json(asked.given["volume-claim"]),
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _limits(asked: Options) -> dict[str, Any]:
    if "tpu-type" in asked.given and "tpus-per-node" not in asked.given:
        raise UserError(f"--tpus-per-node is not given; pods with --tpu-type={asked.given['tpu-type']} ask for chips")
    names = {"gpus-per-node": "nvidia.com/gpu", "tpus-per-node": "google.com/tpu", "cpus-per-task": "cpu"}
    limits: dict[str, Any] = {name: count for option, name in names.items() if (count := asked.given.get(option))}
    return limits | ({"memory": asked.given["mem"]} if "mem" in asked.given else {})


def _mount(workdir: pathlib.PurePath) -> pathlib.PurePath:
    """Where the volume lies: the first folder of the path."""
    if len(workdir.parts) < 3:
        raise UserError(
            f"--workdir={workdir}: expected a folder within one, such as /runs/NAME; the volume lies at /runs"
        )
    return pathlib.PurePosixPath(*workdir.parts[:2])


def submit(asked: Options) -> list[str]:
    return ["kubectl", "apply", "-f", str(asked.out)]
