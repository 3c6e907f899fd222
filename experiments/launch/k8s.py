"""A JobSet of Kubernetes."""

import pathlib
from collections.abc import Sequence
from typing import Any

import yaml

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
    told = yaml.safe_dump_all(manifests, sort_keys=False, width=120, allow_unicode=True)
    return "# Needs the JobSet controller: https://jobset.sigs.k8s.io\n" + told


def _manifest(asked: Options, name: str, run: Sequence[str]) -> dict[str, Any]:
    job = {
        "parallelism": asked.nodes,
        "completions": asked.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        # What cannot be carried out (status 2) is not tried again.
        "podFailurePolicy": {
            "rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}],
        },
        "template": {"spec": _pod(asked, name, run)},
    }
    rules = [{"name": "refused", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    namespace = {"namespace": asked.given["namespace"]} if "namespace" in asked.given else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name, **namespace},
        "spec": {
            "failurePolicy": {"maxRestarts": asked.count("max-restarts") or MAX_RESTARTS, "rules": rules},
            "replicatedJobs": [{"name": "run", "replicas": 1, "template": {"spec": job}}],
        },
    }


def _pod(asked: Options, name: str, run: Sequence[str]) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "patchnets",
        "image": asked.given["image"],
        "command": [asked.python, "-m", "patchnets.main", *run],
    }
    if asked.nodes > 1:
        # Each pod's number is in JOB_COMPLETION_INDEX, which Kubernetes sets by itself.
        coordinator = f"{name}-run-0-0.{name}:{PORT}"
        told = {"PATCHNETS_COORDINATOR": coordinator, "PATCHNETS_PROCESSES": str(asked.nodes)}
        container["env"] = [{"name": variable, "value": value} for variable, value in told.items()]
    if limits := _limits(asked):
        container["resources"] = {"limits": limits}
    # Images that are read while training are handed over in shared memory, of which a pod has 64 MiB by itself.
    mounts = {"runs": str(_mount(asked.workdir)), "shared-memory": "/dev/shm"}
    container["volumeMounts"] = [{"name": volume, "mountPath": path} for volume, path in mounts.items()]
    pod: dict[str, Any] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": GRACE}
    if "tpu-type" in asked.given:
        pod["nodeSelector"] = {f"{GKE}accelerator": asked.given["tpu-type"]}
        if "tpu-topology" in asked.given:
            pod["nodeSelector"][f"{GKE}topology"] = asked.given["tpu-topology"]
    volumes = [
        {"name": "runs", "persistentVolumeClaim": {"claimName": asked.given["volume-claim"]}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
    ]
    return pod | {"containers": [container], "volumes": volumes}


def _limits(asked: Options) -> dict[str, Any]:
    if "tpu-type" in asked.given and "tpus-per-node" not in asked.given:
        raise UserError(f"--tpus-per-node is not given; pods with --tpu-type={asked.given['tpu-type']} ask for chips")
    names = {"gpus-per-node": "nvidia.com/gpu", "tpus-per-node": "google.com/tpu", "cpus-per-task": "cpu"}
    limits: dict[str, Any] = {name: count for option, name in names.items() if (count := asked.count(option))}
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
