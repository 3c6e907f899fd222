"""Jobs for clusters: the files, and, with stand-ins for the launchers' programs, their behavior."""

import os
import shlex
import subprocess

import pytest
import yaml

from experiments.launch import __main__ as launch
from experiments.launch import devices, slurm
from experiments.launch import options as options_lib
from experiments.runner.jobs import ROOT
from patchnets.parallel import distributed

DIGITS = "--config=configs/mixer_digits.py"
GKE = ("--tpu-type=tpu-v5-lite-podslice", "--tpu-topology=4x4", "--tpus-per-node=4")
K8S = ("k8s", DIGITS, "--image=registry/patchnets:1", "--volume-claim=runs")
TPU = ("tpu", DIGITS, "--tpu-type=v5litepod-16", "--zone=us-west4-a", "--workdir=/mnt/share/it's mine")


def start(*arguments):
    return launch.main(["launch", *arguments])


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Makes a program, first on the PATH, that notes what it is told, one word a line, and ends as `body` says."""
    path = tmp_path / "programs"
    path.mkdir()
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")

    def make(name, body=""):
        notes = tmp_path / f"{name}.notes"
        notes.touch()
        (path / name).write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" --- >> {shlex.quote(str(notes))}\n{body}\n')
        (path / name).chmod(0o755)
        return lambda: [call.strip("\n").split("\n") for call in notes.read_text().split("---\n")[:-1]]

    return make


def carried_out(script, **environ):
    return subprocess.run(["bash", str(script)], env=os.environ | environ, capture_output=True, text=True, check=False)


def test_a_stopped_job_goes_on_and_others_do_not(stand_in, tmp_path, capsys):
    workdir = tmp_path / "it's a folder"
    script = tmp_path / "jobs/mine.sbatch"
    options = ("slurm", DIGITS, "--nodes=2", f"--workdir={workdir}", f"--out={script}", "--max-requeues=3")
    assert start(*options, "--config.total_epochs=2", "--time=1:00:00", "--cpus-per-task=4") == 0
    assert capsys.readouterr().out == f"written: {script}\nsubmit:  sbatch {script}\n"
    assert workdir.is_dir()  # sbatch makes no folder for its output
    requeued = stand_in("scontrol")
    for status, restarts, again in ((143, "0", 1), (143, "2", 2), (143, "3", 2), (0, "0", 2), (1, "0", 2)):
        ran = stand_in("srun", f"exit {status}")
        assert carried_out(script, SLURM_JOB_ID="17", SLURM_RESTART_COUNT=restarts).returncode == status
        assert requeued() == [["requeue", "17"]] * again
    kills, cpus, _python, *arguments = ran()[-1]
    assert (kills, cpus) == ("--kill-on-bad-exit=1", "--cpus-per-task=4")
    assert arguments == ["-m", "patchnets.main", DIGITS, "--config.total_epochs=2", f"--workdir={workdir}"]
    directives = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1", "#SBATCH --time=1:00:00", "#SBATCH --requeue",
            f'#SBATCH --output="{workdir}/slurm-%j.out"', "#SBATCH --open-mode=append"} < set(directives)  # fmt: skip


@pytest.mark.parametrize(
    "limit, seconds",
    [("90", 5400), ("2:30", 150), ("1:00:05", 3605), ("1-2", 93600), ("1-2:03", 93780), ("1-00:00:01", 86401)],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(limit, seconds):
    assert slurm.seconds(limit) == seconds


@pytest.mark.parametrize(
    "what, expected",
    [
        (
            ["--table=keras_examples", "--rows=fnet-1,gmlp-1", "--config.dataset.data_dir=/a b"],
            [
                ("configs/fnet_cifar100.py:one_epoch", "0", "fnet-1/seed-0"),
                ("configs/fnet_cifar100.py:one_epoch", "1", "fnet-1/seed-1"),
                ("configs/gmlp_cifar100.py:one_epoch", "0", "gmlp-1/seed-0"),
                ("configs/gmlp_cifar100.py:one_epoch", "1", "gmlp-1/seed-1"),
            ],
        ),
        (
            ["--sweep=experiments/sweeps/mixer_digits_lr.py", "--config.dataset.data_dir=/a b"],
            [
                ("configs/mixer_digits.py", str(seed), f"lr-{rate}/seed-{seed}")
                for seed in (0, 1)
                for rate in ("0.0005", "0.0015", "0.005", "0.015")
            ],
        ),
    ],
)
def test_each_task_of_an_array_does_one_run(what, expected, stand_in, tmp_path, capsys):
    script = tmp_path / "array.sbatch"
    assert start("slurm", *what, "--seeds=2", f"--workdir={tmp_path / 'out'}", f"--out={script}") == 0
    program = "reproduce" if "--table" in what[0] else "sweep"
    report = capsys.readouterr().out.splitlines()[-1].removeprefix("report:  ")
    assert shlex.split(report)[:3] == ["python", "-m", f"experiments.{program}"] and report.endswith(" --report")
    assert f"#SBATCH --array=0-{len(expected) - 1}\n" in script.read_text()
    ran = stand_in("srun")
    for i in range(len(expected)):
        assert carried_out(script, SLURM_JOB_ID="5", SLURM_ARRAY_TASK_ID=str(i)).returncode == 0
    for words, (config, seed, path) in zip(ran(), expected, strict=True):
        options = dict(word[2:].split("=", 1) for word in words[4:])
        assert (options["config"], options["config.seed"], options["workdir"]) == (
            config,
            seed,
            str(tmp_path / "out" / path),
        )
        assert options["config.dataset.data_dir"] == "/a b"


def test_jobs_are_submitted(stand_in, tmp_path, capfd):
    out = tmp_path / "job.sbatch"
    common = ("slurm", DIGITS, f"--workdir={tmp_path / 'out'}", f"--out={out}", "--submit")
    submitted = stand_in("sbatch", "echo Submitted batch job 3")
    assert start(*common) == 0 and submitted() == [[str(out)]]
    assert "Submitted batch job 3" in capfd.readouterr().out
    stand_in("sbatch", "echo no such partition >&2; exit 1")
    assert start(*common) == 1
    assert capfd.readouterr().err.splitlines()[0] == "no such partition"


def test_what_submits_has_to_be_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert start(*K8S, f"--out={tmp_path / 'job.yaml'}", "--submit") == 2
    assert capsys.readouterr().err.startswith("patchnets: --submit: kubectl is not installed here; leave it out")
    assert not list(tmp_path.iterdir())


# The fields of a JobSet (jobset.x-k8s.io/v1alpha2) and of what is in one that are used, as the API references have
# them: a type, {field: ...} where a ! marks the ones that must be there, or [of what there is a list].
QUANTITIES = {"nvidia.com/gpu": int, "google.com/tpu": int, "cpu": int, "memory": str}
CONTAINER = {
    "name!": str,
    "image": str,
    "command": [str],
    "env": [{"name!": str, "value": str}],
    "resources": {"limits": QUANTITIES},
    "volumeMounts": [{"name!": str, "mountPath!": str}],
}
POD = {
    "restartPolicy": str,
    "terminationGracePeriodSeconds": int,
    "nodeSelector": {"cloud.google.com/gke-tpu-accelerator": str, "cloud.google.com/gke-tpu-topology": str},
    "containers!": [CONTAINER],
    "volumes": [{"name!": str, "persistentVolumeClaim": {"claimName!": str}, "emptyDir": {"medium": str}}],
}
JOB = {
    "parallelism": int,
    "completions": int,
    "completionMode": str,
    "backoffLimit": int,
    "podFailurePolicy": {"rules!": [{"action!": str, "onExitCodes": {"operator!": str, "values!": [int]}}]},
    "template!": {"spec": POD},
}
JOBSET = {
    "apiVersion!": str,
    "kind!": str,
    "metadata!": {"name": str, "namespace": str},
    "spec!": {
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{"name!": str, "action!": str, "onJobFailureReasons": [str]}],
        },
        "replicatedJobs": [{"name!": str, "replicas": int, "template!": {"spec": JOB}}],
    },
}


def held(value, schema, position="manifest"):
    """Asserts that the value has the fields of the schema and no others."""
    if isinstance(schema, list):
        assert isinstance(value, list) and value, position
        for i, item in enumerate(value):
            held(item, schema[0], f"{position}[{i}]")
    elif isinstance(schema, dict):
        assert isinstance(value, dict), position
        known = {name.rstrip("!"): kind for name, kind in schema.items()}
        assert not set(value) - set(known), position
        assert not {name[:-1] for name in schema if name.endswith("!")} - set(value), position
        for name, item in value.items():
            held(item, known[name], f"{position}.{name}")
    else:
        assert type(value) is schema, (position, value)


@pytest.mark.parametrize(
    "options, limits",
    [
        ([], None),
        (["--gpus-per-node=8", "--mem=64Gi", "--cpus-per-task=16"], {"nvidia.com/gpu": 8, "cpu": 16, "memory": "64Gi"}),
        (["--tpu-type=tpu-v5p-slice", "--tpu-topology=2x2x2", "--tpus-per-node=4"], {"google.com/tpu": 4}),
    ],
)
def test_a_manifest_has_the_fields_of_a_jobset(options, limits, capsys):
    assert start(*K8S, "--nodes=2", "--namespace=team", *options, "--dry-run") == 0
    manifest = yaml.safe_load(capsys.readouterr().out)
    held(manifest, JOBSET)
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert container.get("resources") == (limits and {"limits": limits})
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")


def test_pods_find_each_other_by_what_the_manifest_sets(capsys):
    assert start(*K8S, "--nodes=4", "--name=Mixer_1", "--config.seed=3", "--dry-run") == 0
    job = yaml.safe_load(capsys.readouterr().out)["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completionMode"], job["parallelism"], job["completions"]) == ("Indexed", 4, 4)
    (container,) = job["template"]["spec"]["containers"]
    environ = {each["name"]: each["value"] for each in container["env"]} | {"JOB_COMPLETION_INDEX": "2"}
    process, arguments = distributed.detect_cluster(container["command"][3:], environ)
    # A pod's name is that of its JobSet, its job, the job's number and its own; the JobSet's service is named after it.
    assert process == distributed.ProcessInfo(2, 4, coordinator=f"mixer-1-run-0-0.mixer-1:{distributed.PORT}")
    assert container["command"][:3] == ["python", "-m", "patchnets.main"]
    assert arguments == [DIGITS, "--config.seed=3", "--workdir=/runs/mixer-1"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["runs"] == "/runs"


def test_one_pod_looks_for_no_others(capsys):
    assert start(*K8S, "--dry-run") == 0
    assert "PATCHNETS_" not in capsys.readouterr().out


def test_of_a_sweep_there_is_a_jobset_for_each_run(capsys):
    sweep = "--sweep=experiments/sweeps/mixer_digits_lr.py"
    assert start("k8s", sweep, *K8S[2:], "--seeds=2", "--nodes=2", "--dry-run") == 0
    manifests = list(yaml.safe_load_all(capsys.readouterr().out))
    assert len(manifests) == 8
    for i, manifest in enumerate(manifests):
        held(manifest, JOBSET)
        name = manifest["metadata"]["name"]
        assert name == f"mixer-digits-lr-{i}"
        (container,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
        options = dict(word[2:].split("=", 1) for word in container["command"][3:])
        rate, seed = ("0.0005", "0.0015", "0.005", "0.015")[i % 4], str(i // 4)
        assert (options["config.optimizer.learning_rate"], options["config.seed"]) == (rate, seed)
        assert options["workdir"] == f"/runs/mixer-digits-lr/lr-{rate}/seed-{seed}"
        assert container["env"][0]["value"] == f"{name}-run-0-0.{name}:{distributed.PORT}"


@pytest.mark.parametrize("nodes, sweep, most", [(1, False, 49), (10, False, 49), (11, False, 48), (11, True, 46)])
def test_the_names_of_pods_are_not_too_long(nodes, sweep, most, capsys):
    """JobSet refuses what makes of them NAME-run-0-POD-XXXXX of more than 63 characters."""
    what = "--sweep=experiments/sweeps/mixer_digits_lr.py" if sweep else DIGITS
    options = ("k8s", what, *K8S[2:], "--config.batch_size=110", f"--nodes={nodes}", "--dry-run")
    assert start(*options, f"--name={'a' * most}") == 0
    name = list(yaml.safe_load_all(capsys.readouterr().out))[-1]["metadata"]["name"]
    assert len(f"{name}-run-0-{nodes - 1}-abcde") == 63
    assert start(*options, f"--name={'a' * (most + 1)}") == 2
    assert f"expected at most {most} characters with --nodes={nodes}" in capsys.readouterr().err


@pytest.mark.parametrize("fails", [False, True])
def test_a_tpu_slice_is_made_used_and_deleted(fails, stand_in, tmp_path):
    script = tmp_path / "job.sh"
    stand_in("git", "echo configs/mixer_digits.py")
    assert start(*TPU, "--setup=mount '/mnt'", "--project=mine", f"--out={script}") == 0
    called = stand_in("gcloud", 'case "$*" in *patchnets.main*) exit 1 ;; esac' if fails else "")
    assert carried_out(script).returncode == int(fails)
    calls = called()
    assert [call[3] for call in calls] == ["create", "scp", "ssh", "ssh", "ssh", "delete"]
    assert all(call[-2:] == ["--zone=us-west4-a", "--project=mine"] for call in calls)
    assert {"--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"} < set(calls[0])
    commands = [word.removeprefix("--command=") for call in calls for word in call if word.startswith("--command=")]
    assert commands[0] == "mount '/mnt'"
    assert shlex.split(commands[2])[1:] == ["-m", "patchnets.main", DIGITS, "--workdir=/mnt/share/it's mine"]


def test_on_a_tpu_slice_the_runs_of_a_sweep_follow_each_other(stand_in, tmp_path):
    script = tmp_path / "job.sh"
    stand_in("git", "echo configs/mixer_digits.py")
    assert start("tpu", "--sweep=experiments/sweeps/mixer_digits_lr.py", *TPU[2:], f"--out={script}") == 0
    called = stand_in("gcloud", 'case "$*" in *learning_rate=0.0015*) exit 3 ;; esac')
    assert carried_out(script).returncode == 3  # that of a run which failed, and the others were carried out
    runs = [call for call in called() if any("patchnets.main" in word for word in call)]
    assert [call[3] for call in called()][-5:] == ["ssh"] * 4 + ["delete"]
    for run, rate in zip(runs, ("0.0005", "0.0015", "0.005", "0.015"), strict=True):
        assert f"lr-{rate}/seed-0" in " ".join(run)


def test_a_tpu_slice_gets_what_is_committed(stand_in, tmp_path, capsys):
    looked = stand_in("git")  # which finds nothing
    assert start(*TPU, f"--out={tmp_path / 'job.sh'}") == 2
    assert "configs/mixer_digits.py is not committed, and the hosts get HEAD" in capsys.readouterr().err
    assert looked()[0][2:] == ["ls-tree", "--name-only", "HEAD", "--", "configs/mixer_digits.py"]
    stand_in("git", "exit 128")
    assert start(*TPU, f"--out={tmp_path / 'job.sh'}") == 2
    assert "is not a git repository, and the hosts get its HEAD" in capsys.readouterr().err
    assert not (tmp_path / "job.sh").exists()


@pytest.mark.parametrize(
    "arguments, actual",
    [
        (("slurm", {"gpus-per-node": 8}, 2), 16),
        (("slurm", {}, 2), None),
        (("k8s", {"tpu-type": "tpu-v5-lite-podslice", "tpu-topology": "4x4", "tpus-per-node": 4}, 4), 16),
        (("k8s", {"tpu-type": "tpu-v3-slice", "tpus-per-node": 4}, 1), None),  # of two cores a chip
        (("tpu", {"tpu-type": "v5litepod-16"}, 1), 16),
        (("tpu", {"tpu-type": "v6e-8"}, 1), 8),
        (("tpu", {"tpu-type": "v5p-8"}, 1), 4),  # which counts cores, of which JAX takes two for a device
        (("tpu", {"tpu-type": "v9-8"}, 1), None),
    ],
)
def test_devices_are_counted_where_they_can_be(arguments, actual):
    assert devices.known(*arguments) == actual


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required: {slurm,k8s,tpu}"),
        (["pbs", DIGITS], "{slurm,k8s,tpu}: invalid choice: 'pbs' (choose from "),
        (["slurm"], "--config is not given; for example --config=configs/mixer_digits.py"),
        (["slurm", "--config=configs/nothing.py"], "--config=configs/nothing.py: there is no such file"),
        (["slurm", DIGITS, "--config.modle.depth=3"], "unknown key config.modle.depth"),
        (["slurm", DIGITS, "--image=a"], "unrecognized arguments: --image=a"),
        (["slurm", DIGITS, "--nodes=none"], "--nodes: expected a whole number above 0, and at most 9,999, got 'none'"),
        (["slurm", DIGITS, "--nodes=3"], "config.batch_size=128 does not divide over 3 processes"),
        (
            ["slurm", DIGITS, "--nodes=2", "--config.eval_batch_size=7"],
            "config.eval_batch_size=7 does not divide over 2",
        ),
        (
            ["slurm", DIGITS, "--nodes=2", "--config.grad_accum_steps=128"],
            "config.grad_accum_steps=1 does not divide over 2",
        ),
        (["slurm", DIGITS, "--nodes=2", "--gpus-per-node=3"], "config.batch_size=128 does not divide over 6 devices"),
        (["slurm", DIGITS, "--nodes=2", "--gpus-per-node=2", "--config.mesh.data=2"], "asks for 2 of 4 devices"),
        (["slurm", DIGITS, "--gpus-per-node=2", "--config.mesh.fsdp=3"], "config.mesh.fsdp=3 does not divide the 2"),
        (["slurm", DIGITS, "--gpus-per-node=2", "--config.mesh.data=4"], "config.mesh.data=4 exceeds the 2 devices"),
        (
            ["slurm", DIGITS, "--nodes=2", "--config.mesh.data=1"],
            "config.mesh asks for 1 devices, which does not divide by 2",
        ),
        (
            ["slurm", DIGITS, "--gpus-per-node=8", "--tasks-per-node=2"],
            "--tasks-per-node=2: a task uses one GPU or all",
        ),
        (["slurm", DIGITS, "--partition=a b"], "--partition: expected a word, got 'a b'"),
        (
            ["slurm", DIGITS, "--time=tomorrow"],
            "--time: expected minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS, got 'tomorrow'",
        ),
        (["slurm", DIGITS, "--time=4:30"], "--time=4:30 is too short: tasks get SIGTERM 120 s before"),
        (["slurm", DIGITS, "--mem=lots"], "--mem: expected memory of a node, such as 64G, got 'lots'"),
        (["slurm", DIGITS, "--setup=a\nb"], "--setup: expected printable characters, got 'a\\nb'"),
        (["slurm", DIGITS, '--workdir=a"b'], 'sbatch takes no path with " or'),
        (["slurm", DIGITS, "--seeds=2"], "--seeds=2 needs --table or --sweep"),
        (["slurm", DIGITS, "--rows=a"], "--rows=a needs --table"),
        (["slurm", DIGITS, "--submit", "--dry-run"], "--submit and --dry-run are both given"),
        (["slurm", DIGITS, "--table=cifar"], "--config, --table and --sweep exclude each other"),
        (["slurm", "--table=cifar", "--rows=nothing"], "--rows: cifar has no row 'nothing'"),
        (["slurm", "--table=sizes"], "--table=sizes needs no training"),
        (
            ["slurm", "--table=transfer"],
            "--table=transfer: vit-B-16-cifar10 starts from gs://vit_models/imagenet21k/ViT",
        ),
        (["slurm", "--sweep=nothing.py"], "--sweep=nothing.py: there is no such file"),
        (["k8s", DIGITS, "--volume-claim=runs"], "--image is not given; a JobSet needs an image with patchnets in it"),
        (["k8s", DIGITS, "--image=a"], "--volume-claim is not given; a JobSet needs a volume that outlives its pods"),
        ([*K8S, "--name=1st"], "--name='1st': expected a letter, then lower-case"),
        (["k8s", "--config=/a/b.py", *K8S[2:]], "--config=/a/b.py: there is no such file"),
        (["k8s", f"--config={ROOT}/configs/mixer_digits.py", *K8S[2:]], "the hosts have only this repository"),
        ([*K8S, "--config.eval_batch_size=6", "--gpus-per-node=4"], "config.eval_batch_size=6 does not divide over 4"),
        (
            [*K8S, *GKE, "--nodes=2"],
            "--tpu-topology=4x4 has 16 chips, but --nodes=2 with --tpus-per-node=4 has 8; make them",
        ),
        ([*K8S, *GKE, "--nodes=4", "--config.batch_size=24"], "config.batch_size=24 does not divide over 16 devices"),
        ([*K8S, "--workdir=runs"], "--workdir=runs: expected an absolute path on the hosts"),
        ([*K8S, "--workdir=/runs"], "--workdir=/runs: expected a subfolder of the mount point"),
        ([*K8S, "--tpu-type=tpu-v5p-slice"], "--tpus-per-node is not given"),
        ([*K8S, "--gpus-per-node=4", "--tpus-per-node=4"], "--gpus-per-node=4 and --tpus-per-node=4 are both given"),
        ([*TPU, "--config.batch_size=24"], "config.batch_size=24 does not divide over 16 devices"),
        ([*TPU, "--config.mesh.data=8"], "config.mesh asks for 8 of 16 devices; several processes must use all"),
        ([*TPU[:3], "--workdir=/mnt/a"], "--zone is not given; for example --zone=us-west4-a"),
        ([*TPU[:4]], "--workdir is not given: a path that all hosts share"),
        ([*TPU[:4], "--workdir=gs://bucket/a"], "--workdir=gs://bucket/a is a URL; mount the bucket"),
        ([*TPU, "--nodes=2"], "unrecognized arguments: --nodes=2"),
    ],
)
def test_a_mistake_costs_one_line_and_writes_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options_lib, "_check_committed", lambda file: None)
    assert start(*arguments) == 2
    out, error = capsys.readouterr()
    assert message in error and error.count("\n") == 1 and not out
    assert not list(tmp_path.iterdir())
