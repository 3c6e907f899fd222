"""Rank and world size from flags and the launchers' variables; joining through JAX, and what can go wrong with it."""

import socket
import time

import pytest
from processes import error_of, free_port, start, start_processes, wait_all

from patchnets.errors import UserError
from patchnets.parallel import distributed
from patchnets.parallel.distributed import PORT, ProcessInfo, detect_cluster

# What Slurm 22.05 sets for the third of four tasks on two nodes (srun's manual, "output environment variables").
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[007-008]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
OPEN_MPI_4 = OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
ALONE = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "0"}


def test_a_process_without_a_launcher_is_the_only_one_and_keeps_its_arguments():
    arguments = ["--config=a.py", "--workdir", "there", "--config.seed=1"]
    assert detect_cluster(arguments, {}) == (None, arguments)


def test_flags_give_rank_and_size_and_are_removed():
    arguments = ["--config=a.py", "--coordinator=10.0.0.1:1234", "--processes=4", "--process=3", "--workdir=b"]
    process = ProcessInfo(3, 4, coordinator="10.0.0.1:1234")
    assert detect_cluster(arguments, {}) == (process, ["--config=a.py", "--workdir=b"])


def test_the_environment_gives_the_same_and_flags_win():
    environ = {"PATCHNETS_COORDINATOR": "job-0.job", "PATCHNETS_PROCESSES": "2", "PATCHNETS_PROCESS": "1"}
    assert detect_cluster([], environ)[0] == ProcessInfo(1, 2, coordinator=f"job-0.job:{PORT}")
    assert detect_cluster(["--process=0"], environ)[0].index == 0


def test_kubernetes_numbers_the_processes_of_an_indexed_job():
    environ = {"PATCHNETS_COORDINATOR": "job-0.job", "PATCHNETS_PROCESSES": "2", "JOB_COMPLETION_INDEX": "1"}
    assert detect_cluster([], environ)[0].index == 1
    assert detect_cluster([], {"JOB_COMPLETION_INDEX": "1"}) == (None, [])  # a Job of separate runs


def test_one_process_is_the_only_one():
    assert detect_cluster(["--coordinator=h", "--processes=1", "--process=0"], {}) == (None, [])
    assert detect_cluster([], SLURM | ALONE) == (None, [])


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_processes_whose_coordinator_is_this_machine_share_it(host):
    process = detect_cluster([f"--coordinator={host}:99", "--processes=3", "--process=2"], {})[0]
    assert process == ProcessInfo(2, 3, 2, 3, f"{host}:99")


def test_a_slurm_task_has_a_port_of_its_step():
    process = detect_cluster([], SLURM)[0]
    assert (process.index, process.count, process.local_rank, process.processes_on_host) == (2, 4, 0, 2)
    assert process.coordinator is None  # JAX finds it
    others = [SLURM | {"SLURM_JOB_ID": "4712"}, SLURM | {"SLURM_STEP_ID": "1"}]
    ports = {process.port, *(detect_cluster([], other)[0].port for other in others)}
    assert len(ports) == 3 and all(1024 < port < 65536 for port in ports)


def test_the_size_of_a_slurm_step_is_not_that_of_its_job():
    assert detect_cluster([], SLURM | {"SLURM_NTASKS": "8"})[0].count == 4


def test_the_script_of_a_slurm_job_is_no_task():
    script = {name: value for name, value in SLURM.items() if not name.startswith("SLURM_STEP")}
    assert detect_cluster([], script) == (None, [])
    alone = {name: value for name, value in SLURM.items() if name != "SLURM_PROCID"}
    assert detect_cluster([], alone | {"SLURM_STEP_NUM_TASKS": "1"}) == (None, [])


@pytest.mark.parametrize("nodes", ["node[007-008]", "gpu1,gpu2", "a-1", "n[12,14],m1"])
def test_jax_reads_usual_node_lists(nodes):
    assert detect_cluster([], SLURM | {"SLURM_STEP_NODELIST": nodes})[0].coordinator is None


@pytest.mark.parametrize("nodes", ["rack[3,5-7]-ib,rack9-ib", "rack[1-2]n[1-4]"])
def test_node_lists_that_jax_cannot_read_need_a_coordinator(nodes):
    environ = SLURM | {"SLURM_STEP_NODELIST": nodes}
    with pytest.raises(UserError, match="pass --coordinator=HOST, the first node"):
        detect_cluster([], environ)
    process = detect_cluster(["--coordinator=rack3-ib"], environ)[0]
    assert process.coordinator == f"rack3-ib:{process.port}" and (process.index, process.count) == (2, 4)


def test_processes_of_open_mpi():
    process = detect_cluster([], OPEN_MPI_4)[0]
    assert (process.index, process.count, process.local_rank, process.processes_on_host) == (1, 3, 1, 2)
    assert process.coordinator is None
    assert detect_cluster([], SLURM | ALONE | OPEN_MPI_4)[0] == process  # mpirun inside a job of SLURM


def test_open_mpi_5_needs_a_coordinator_unless_all_processes_are_on_one_machine():
    process = detect_cluster([], OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "3", "PMIX_NAMESPACE": "prterun-a-7@1"})[0]
    assert process == ProcessInfo(1, 3, 1, 3, f"localhost:{process.port}", process.port)
    with pytest.raises(UserError, match="pass --coordinator=HOST, the first machine"):
        detect_cluster([], OPEN_MPI)
    for environ in (OPEN_MPI, SLURM | ALONE | OPEN_MPI):
        process = detect_cluster(["--coordinator=a:77"], environ)[0]
        assert process == ProcessInfo(1, 3, 1, 2, "a:77", process.port)


def test_a_tpu_is_left_to_jax(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "TPU_DEVICES", (str(tmp_path),))
    assert detect_cluster(["--config=a.py"], {}) == (ProcessInfo(), ["--config=a.py"])


@pytest.mark.parametrize(
    "arguments, environ, message",
    [
        (["--processes=2"], {}, r"--coordinator \(or PATCHNETS_COORDINATOR\) is not given, but --processes is"),
        (["--coordinator=h", "--processes=2"], {}, r"--process \(or PATCHNETS_PROCESS\) is not given"),
        (["--coordinator=h"], {}, r"--processes \(or PATCHNETS_PROCESSES\) is not given"),
        (["--coordinator=h", "--processes=2", "--process=2"], {}, "process 2 of 2: expected an index from 0 to 1"),
        (["--coordinator=h", "--processes=0", "--process=0"], {}, "--processes=0: expected at least 1"),
        (["--coordinator=h", "--processes=x", "--process=0"], {}, "--processes=x: expected a whole number"),
        (["--coordinator=h:99999", "--processes=2", "--process=0"], {}, "h:99999: expected HOST or HOST:"),
        (["--coordinator=http://h", "--processes=2", "--process=0"], {}, "--coordinator=http://h: expected HOST"),
        (["--coordinator", "h"], {}, "--coordinator: expected --coordinator=VALUE"),
        ([], {k: v for k, v in SLURM.items() if k != "SLURM_LOCALID"}, "SLURM_LOCALID is not set"),
        ([], SLURM | {"SLURM_PROCID": "-1"}, "SLURM_PROCID=-1: expected a whole number"),
        ([], {k: v for k, v in SLURM.items() if k != "SLURM_PROCID"}, "SLURM_PROCID is not set"),
        ([], SLURM | {"SLURM_PROCID": "4"}, "process 4 of 4: expected an index from 0 to 3"),
        ([], {"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK is not set"),
        ([], {"OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_SIZE is not set"),
        ([], OPEN_MPI_4 | {"OMPI_COMM_WORLD_RANK": "3"}, "process 3 of 3"),
    ],
)
def test_incomplete_flags_and_variables_cost_one_line(arguments, environ, message):
    with pytest.raises(UserError, match=message) as caught:
        detect_cluster(arguments, environ)
    assert "\n" not in str(caught.value)


@pytest.fixture
def requested(monkeypatch):
    """What `initialize` asks of JAX."""
    import jax

    requested = {}

    def initialize(coordinator, count, index, **options):
        requested.update(options, coordinator=coordinator, count=count, index=index)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda name, value: requested.update({name: value}))
    monkeypatch.setattr(distributed.os, "dup2", lambda *_: None)
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_LOCAL_DEVICE_IDS", "JAX_COORDINATOR_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    return requested


@pytest.mark.parametrize(
    ("local_rank", "on_host", "visible", "taken"),
    [(1, 2, None, "1"), (1, 2, "4,5", "1"), (0, 2, "4", "all"), (0, 1, "0,1", "all"), (0, 1, None, "all")],
)
def test_processes_that_see_the_same_gpus_take_one_each(requested, monkeypatch, local_rank, on_host, visible, taken):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    distributed.initialize(ProcessInfo(1, 2, local_rank, on_host, "h:1"))
    assert requested["jax_cuda_visible_devices"] == taken
    assert requested["jax_enable_preemption_service"] is False  # JAX's own takes SIGTERM for itself
    assert requested["heartbeat_timeout_seconds"] <= 45  # a lost process ends the others within a minute


def test_jax_finds_what_a_launcher_does_not_give(requested, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "1")  # restored after the test
    monkeypatch.delenv("JAX_COORDINATOR_PORT")
    distributed.initialize(ProcessInfo(2, 4, port=61007))
    assert (requested["coordinator"], requested["count"], requested["index"]) == (None, 4, 2)
    assert requested["cluster_detection_method"] is None and distributed.os.environ["JAX_COORDINATOR_PORT"] == "61007"


@pytest.mark.parametrize("error", [OSError("no metadata server"), ValueError("coordinator_address should be defined.")])
def test_a_tpu_of_one_machine_trains_by_itself(monkeypatch, requested, error):
    import jax

    def initialize(*_, **__):
        raise error

    monkeypatch.setenv("JAX_COORDINATOR_PORT", "1")
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    distributed.initialize(ProcessInfo())
    with pytest.raises(type(error)):
        distributed.initialize(ProcessInfo(1, 2))


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan"])
def test_a_wait_that_is_no_number_of_seconds_costs_one_line(requested, monkeypatch, seconds):
    monkeypatch.setenv("PATCHNETS_WAIT_SECONDS", seconds)
    with pytest.raises(UserError, match=f"PATCHNETS_WAIT_SECONDS={seconds}: expected a number of seconds above 0"):
        distributed.initialize(ProcessInfo(1, 2, coordinator="h:1"))


@pytest.mark.parametrize("address", ["", "127.0.0.1", "::1"])
def test_a_port_in_use_costs_one_line(requested, address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, reuse_port=True) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port} .*; choose another"):
            distributed.initialize(ProcessInfo(0, 2, coordinator=f"localhost:{port}"))
    assert "count" not in requested


@pytest.mark.slow
def test_a_port_in_use_ends_a_real_process(tmp_path):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        [(status, _, err)] = wait_all([start(tmp_path, "done", 0, 2, port)])
    assert status == 2 and f"cannot listen on port {port}" in error_of(err)


@pytest.mark.slow
def test_missing_processes_cost_one_line_after_the_wait(tmp_path):
    port = free_port()
    processes = [start(tmp_path, "done", index, 3, port, wait="3") for index in (0, 2)]
    for status, _, err in wait_all(processes):
        assert status == 1 and f"not all processes reached localhost:{port} within 3 s; start all" in error_of(err)


@pytest.mark.slow
def test_a_late_process_is_waited_for(tmp_path):
    port = free_port()
    first = start(tmp_path, "done", 1, 2, port)
    time.sleep(2.0)
    assert [status for status, *_ in wait_all([first, start(tmp_path, "done", 0, 2, port)])] == [0, 0]


@pytest.mark.slow
def test_the_first_process_prints_for_all(tmp_path):
    (status0, out0, err0), (status1, out1, err1) = wait_all(start_processes(tmp_path, "print", 2))
    assert (status0, status1) == (0, 0)
    assert "process 0 prints" in out0 and (err0, out1, err1) == ("process 0 errs\n", "", "process 1 errs\n")
