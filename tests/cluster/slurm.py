"""A SLURM cluster on this machine: several slurmd on the loopback, all state in one folder.

    python tests/cluster/slurm.py up FOLDER [NODES]      then: export SLURM_CONF=FOLDER/slurm.conf
    python tests/cluster/slurm.py down FOLDER

Wants root and Debian's slurm-wlm and munge; nothing of the machine's own configuration is read or changed.
"""

import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")

CONFIGURATION = """\
ClusterName=patchnets
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=8
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
ReturnToService=2
KillWait=20
SchedulerParameters=batch_sched_delay=1,sched_interval=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why there can be no cluster here; "" where there can."""
    missing = [name for name in PROGRAMS if _find(name) is None]
    if missing:
        return f"{missing[0]} is not installed (apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "a cluster of one's own wants root"


def _find(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def up(folder: pathlib.Path, nodes: int = 2) -> None:
    """Starts the cluster, and waits until its nodes are idle. Raises TimeoutError where they are not within 30 s."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state").mkdir()
    names = [f"patchnets-n{i}" for i in range(1, nodes + 1)]
    ports = _free_ports(nodes + 1)
    options = CONFIGURATION.format(folder=folder, controller=ports[0])
    for name, port in zip(names, ports[1:]):
        options += f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=1\n"
    (folder / "slurm.conf").write_text(options)
    # Nodes know each other by name, in a table of hosts that only they see.
    hosts = pathlib.Path("/etc/hosts").read_text() + f"\n127.0.0.1 {' '.join(names)}\n"
    (folder / "hosts").write_text(hosts)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    places = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    _start(folder, ["munged", "--force", *(f"--{option}={folder}/munge.{end}" for option, end in places.items())])
    _start(folder, ["slurmctld", "-f", f"{folder}/slurm.conf"])
    for name in names:
        own = f'mount --bind {folder}/hosts /etc/hosts && exec "$@"'
        slurmd = [_find("slurmd") or "slurmd", "-N", name, "-f", f"{folder}/slurm.conf"]
        _start(folder, ["unshare", "--mount", "sh", "-c", own, "sh", *slurmd])
    until = time.monotonic() + 30
    while _states(folder).count("idle") < nodes:
        if time.monotonic() > until:
            raise TimeoutError(f"nodes are {_states(folder)}; {folder}/*.log say why")
        time.sleep(0.5)


def down(folder: pathlib.Path) -> None:
    """Ends every daemon, and what they still run."""
    subprocess.run(["scancel", "--user=root"], env=environment(folder), capture_output=True, check=False, timeout=30)
    pids = [int(file.read_text()) for file in [*folder.glob("patchnets-n*.pid"), *folder.glob("slurmctld.pid")]]
    pids += [int(file.read_text()) for file in folder.glob("munge.pid")]
    for pid in pids:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
        until = time.monotonic() + 20
        while pathlib.Path(f"/proc/{pid}").exists() and time.monotonic() < until:
            time.sleep(0.1)


def environment(folder: pathlib.Path) -> dict[str, str]:
    return os.environ | {"SLURM_CONF": f"{folder}/slurm.conf"}


def _start(folder: pathlib.Path, command: list[str]) -> None:
    program = _find(command[0]) or command[0]
    with (folder / "start.log").open("ab") as log:
        subprocess.run([program, *command[1:]], env=environment(folder), stdout=log, stderr=log, check=True, timeout=30)


def _states(folder: pathlib.Path) -> list[str]:
    requested = ["sinfo", "--Node", "--noheader", "--format=%t"]
    options = subprocess.run(requested, env=environment(folder), capture_output=True, text=True, check=False)
    return options.stdout.split()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("up", "down"):
        sys.exit(__doc__)
    if sys.argv[1] == "down":
        down(pathlib.Path(sys.argv[2]).absolute())
    elif reason := why_not():
        sys.exit(reason)
    else:
        up(pathlib.Path(sys.argv[2]).absolute(), *map(int, sys.argv[3:]))
