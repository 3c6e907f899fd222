"""Which process of how many this is, by what flags and the engines' variables say."""

import pytest

from patchnets import cluster
from patchnets.cluster import Member, find
from patchnets.errors import UserError

# What Slurm 22.05 sets for the third of four tasks on two nodes (srun's manual, "output environment variables").
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[007-008]",
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


def test_a_process_of_no_engine_is_alone_and_keeps_its_arguments():
    arguments = ["--config=a.py", "--workdir", "there", "--config.seed=1"]
    assert find(arguments, {}) == (None, arguments)


def test_flags_say_who_it_is_and_are_taken_away():
    arguments = ["--config=a.py", "--coordinator=10.0.0.1:1234", "--processes=4", "--process=3", "--workdir=b"]
    assert find(arguments, {}) == (Member(3, 4, "10.0.0.1", 1234), ["--config=a.py", "--workdir=b"])


def test_the_environment_says_the_same_and_flags_win():
    environ = {"PATCHNETS_COORDINATOR": "job-0.job", "PATCHNETS_PROCESSES": "2", "PATCHNETS_PROCESS": "1"}
    assert find([], environ)[0] == Member(1, 2, "job-0.job", cluster.PORT)
    assert find(["--process=0"], environ)[0].index == 0


def test_kubernetes_numbers_the_processes_of_an_indexed_job():
    environ = {"PATCHNETS_COORDINATOR": "job-0.job", "PATCHNETS_PROCESSES": "2", "JOB_COMPLETION_INDEX": "1"}
    assert find([], environ)[0].index == 1
    assert find([], {"JOB_COMPLETION_INDEX": "1"}) == (None, [])  # of runs that are apart


def test_one_process_is_alone():
    assert find(["--coordinator=h", "--processes=1", "--process=0"], {}) == (None, [])
    assert find([], SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) == (None, [])


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("node[007-008]", "node007"),
        ("gpu1,gpu2", "gpu1"),
        ("a-1", "a-1"),
        ("rack[3,5-7]-ib,rack9-ib", "rack3-ib"),
        ("n[12,14],m1", "n12"),
    ],
)
def test_tasks_of_slurm_meet_at_the_first_node(nodes, first):
    assert find([], SLURM | {"SLURM_STEP_NODELIST": nodes})[0].host == first


def test_a_task_of_slurm_knows_those_beside_it():
    member = find([], SLURM)[0]
    assert (member.index, member.count, member.local, member.beside) == (2, 4, 0, 2)
    uneven = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3,1", "SLURM_NODEID": "1"}
    assert find([], uneven)[0].beside == 1
    assert find([], SLURM)[0].port != find([], SLURM | {"SLURM_JOB_ID": "4712"})[0].port
    assert 1024 < member.port < 65536


def test_the_script_of_a_slurm_job_is_no_task():
    script = {name: value for name, value in SLURM.items() if not name.startswith("SLURM_STEP")}
    assert find([], script) == (None, [])
    alone = {name: value for name, value in SLURM.items() if name != "SLURM_PROCID"}
    assert find([], alone | {"SLURM_STEP_NUM_TASKS": "1"}) == (None, [])


def test_processes_of_open_mpi_meet_on_their_machine_or_where_it_was_started():
    alone = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "3"}
    assert find([], alone)[0] == Member(1, 3, "127.0.0.1", cluster.PORT, 1, 3)
    told = OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
    assert find([], told)[0].host == "10.96.0.1"
    orted = SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}  # which mpirun starts by srun, one a machine
    assert find([], orted | told)[0] == find([], told)[0]
    assert find(["--coordinator=a:77"], orted | OPEN_MPI)[0] == Member(1, 3, "a", 77, 1, 2)
    with pytest.raises(UserError, match="give --coordinator=HOST, the first of them"):
        find([], OPEN_MPI)
    assert find(["--coordinator=a:77"], OPEN_MPI)[0] == Member(1, 3, "a", 77, 1, 2)


def test_an_address_of_ip_version_6_keeps_its_brackets():
    member = find(["--coordinator=[::1]:99", "--processes=2", "--process=0"], {})[0]
    assert (member.host, member.address(), member.address(7)) == ("::1", "[::1]:99", "[::1]:7")
    assert Member(0, 2, "10.0.0.1", 99).address() == "10.0.0.1:99"


def test_an_engine_numbers_the_processes_where_only_the_place_is_told():
    told = find(["--coordinator=10.0.0.9"], SLURM)[0]
    assert told.host == "10.0.0.9" and (told.index, told.count, told.port) == (2, 4, find([], SLURM)[0].port)


def test_hosts_of_a_tpu_slice_are_told_by_their_metadata_server(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "TPU_DEVICES", (str(tmp_path),))
    # As agents of TPU machines give it: state:port:address of every worker.
    given = {
        "agent-worker-number": "1",
        "worker-network-endpoints": "unknown:unknown:10.1.0.2,unknown:unknown:10.1.0.3",
    }
    monkeypatch.setattr(cluster, "metadata", given.get)
    assert find([], {})[0] == Member(1, 2, "10.1.0.2", cluster.PORT)
    environ = {"TPU_WORKER_HOSTNAMES": "w-0,w-1,w-2", "TPU_WORKER_ID": "2"}
    assert find([], environ)[0] == Member(2, 3, "w-0", cluster.PORT)


def test_a_tpu_of_one_machine_has_no_metadata_server_to_ask(monkeypatch, tmp_path):
    def fails(name):
        raise OSError("no such host")

    monkeypatch.setattr(cluster, "TPU_DEVICES", (str(tmp_path),))
    monkeypatch.setattr(cluster, "metadata", fails)
    assert find([], {}) == (None, [])


@pytest.mark.parametrize(
    "arguments, environ, said",
    [
        (["--processes=2"], {}, r"--coordinator \(or PATCHNETS_COORDINATOR\) is not given, and --processes is"),
        (["--coordinator=h", "--processes=2"], {}, r"--process \(or PATCHNETS_PROCESS\) is not given"),
        (["--coordinator=h", "--processes=2", "--process=2"], {}, "--process=2 is not one of 0 to 1"),
        (["--coordinator=h", "--processes=0", "--process=0"], {}, "--processes=0: expected how many there are"),
        (["--coordinator=h", "--processes=x", "--process=0"], {}, "--processes=x: expected a whole number"),
        (
            ["--coordinator=h:99999", "--processes=2", "--process=0"],
            {},
            "--coordinator=h:99999: expected HOST or HOST:",
        ),
        (["--coordinator=http://h", "--processes=2", "--process=0"], {}, "--coordinator=http://h: expected HOST"),
        (["--coordinator", "h"], {}, "--coordinator: expected --coordinator=VALUE"),
        ([], {k: v for k, v in SLURM.items() if k != "SLURM_LOCALID"}, "SLURM_LOCALID is not set"),
        ([], SLURM | {"SLURM_PROCID": "-1"}, "SLURM_PROCID=-1: expected a whole number"),
        ([], {k: v for k, v in SLURM.items() if k != "SLURM_PROCID"}, "SLURM_PROCID is not set"),
        ([], SLURM | {"SLURM_PROCID": "4"}, "say process 4 of 4, and numbers from 0 are below"),
        ([], {"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK is not set"),
        ([], {"OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_SIZE is not set"),
        ([], OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "3", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.96.0.1:34"}, "3 of 3"),
    ],
)
def test_what_is_not_complete_is_told_in_one_line(arguments, environ, said):
    with pytest.raises(UserError, match=said) as caught:
        find(arguments, environ)
    assert "\n" not in str(caught.value)
