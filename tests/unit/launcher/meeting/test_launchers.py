from __future__ import annotations

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.meeting.launchers import (
    check_one_per_node,
    rank_variables,
    torchrun_variables,
)
from bundlerun.workers.rank.env import RankEnv

MEETING = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def open_mpi(rank: int, size: int, local_rank: int, local_size: int) -> dict[str, str]:
    return {
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_SIZE": str(size),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(local_rank),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(local_size),
        "PMIX_RANK": str(rank),
    }


def srun(rank: int, size: int, node: int, local_rank: int, tasks: str) -> dict[str, str]:
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local_rank),
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "PMI_RANK": str(rank),
        "PMI_SIZE": str(size),
    }


def mpich(rank: int, size: int, local_rank: int, local_size: int) -> dict[str, str]:
    return {
        "PMI_RANK": str(rank),
        "PMI_SIZE": str(size),
        "MPI_LOCALRANKID": str(local_rank),
        "MPI_LOCALNRANKS": str(local_size),
    }


def flux(rank: int, size: int) -> dict[str, str]:
    return {
        "FLUX_TASK_RANK": str(rank),
        "FLUX_JOB_SIZE": str(size),
        "FLUX_TASK_LOCAL_ID": str(rank),
    }


def horovod(rank: int, size: int, local_rank: int, local_size: int) -> dict[str, str]:
    return {
        "HOROVOD_RANK": str(rank),
        "HOROVOD_SIZE": str(size),
        "HOROVOD_LOCAL_RANK": str(local_rank),
        "HOROVOD_LOCAL_SIZE": str(local_size),
    }


def jsrun(rank: int, size: int, local_rank: int, local_size: int) -> dict[str, str]:
    return {
        "JSM_NAMESPACE_RANK": str(rank),
        "JSM_NAMESPACE_SIZE": str(size),
        "JSM_NAMESPACE_LOCAL_RANK": str(local_rank),
        "JSM_NAMESPACE_LOCAL_SIZE": str(local_size),
    }


STEP = {"SLURM_STEP_NODELIST": "a,b", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1"}


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        (open_mpi(1, 2, 1, 2), "this is process 1 of 2 that Open MPI started"),
        (open_mpi(0, 2, 0, 2), "this is process 0 of 2 that Open MPI started"),
        # Tasks of nodes in turn, and a step whose nodes nobody names.
        (srun(1, 4, 1, 0, "2(x2)") | STEP, "this is process 1 of 4 that srun started"),
        (srun(0, 2, 0, 0, "1(x2)"), "srun --ntasks-per-node=1 bundlerun run"),
        # A port that only this mpirun has is of use on one node.
        (
            open_mpi(1, 4, 1, 2) | {"PMIX_NAMESPACE": "807"},
            "give all processes the same MASTER_ADDR",
        ),
        (flux(1, 2), "this is process 1 of 2 that Flux started"),
        (mpich(1, 4, 0, 1), "this is process 1 of 4 that MPI started"),
        # Ranks by node in turn cannot be told apart.
        (open_mpi(1, 4, 0, 2) | MEETING, "each node its ranks in order"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"} | MEETING, "this is process 1 of 2"),
    ],
)
def test_processes_that_do_not_know_of_each_other_are_refused(
    environ: dict[str, str], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        RankEnv.from_mapping(environ)


@pytest.mark.parametrize(
    "environ", [{}, open_mpi(0, 1, 0, 1), srun(0, 1, 0, 0, "1"), {"SLURM_PROCID": "0"}]
)
def test_one_process_is_alone_under_any_launcher(environ: dict[str, str]) -> None:
    env = RankEnv.from_mapping(environ)
    assert (env.is_launched, env.world_size) == (False, 1)


@pytest.mark.parametrize(
    "environ",
    [
        open_mpi(3, 4, 1, 2),
        srun(3, 4, 1, 1, "2(x2)"),
        mpich(3, 4, 1, 2),
        horovod(3, 4, 1, 2),
        jsrun(3, 4, 1, 2),
    ],
)
def test_who_says_where_to_meet_is_understood(environ: dict[str, str]) -> None:
    env = RankEnv.from_mapping(environ | MEETING)
    assert (env.rank, env.world_size, env.local_rank, env.local_world_size) == (3, 4, 1, 2)
    assert (env.node, env.num_nodes, env.master_addr, env.master_port) == (1, 2, "10.0.0.1", 29500)


def test_srun_alone_says_where_its_tasks_meet() -> None:
    environ = STEP | {"SLURM_STEP_NODELIST": "a"}
    ports = set()
    for rank in (0, 1):
        env = RankEnv.from_mapping(srun(rank, 2, 0, rank, "2") | environ)
        assert (env.rank, env.world_size, env.local_world_size) == (rank, 2, 2)
        assert env.master_addr == "127.0.0.1"
        ports.add(env.master_port)
    assert len(ports) == 1
    own = RankEnv.from_mapping(srun(0, 2, 0, 0, "2") | environ | MEETING)
    assert (own.master_addr, own.master_port) == ("10.0.0.1", 29500)  # a user's word counts more


def test_open_mpi_on_one_node_meets_at_a_port_of_its_own() -> None:
    ports = []
    for rank, job in ((0, "807"), (1, "807"), (0, "808")):
        env = RankEnv.from_mapping(open_mpi(rank, 2, rank, 2) | {"PMIX_NAMESPACE": job})
        assert (env.rank, env.local_rank, env.local_world_size, env.node) == (rank, rank, 2, 0)
        assert env.master_addr == "127.0.0.1"
        ports.append(env.master_port)
    assert ports[0] == ports[1] != ports[2]
    assert all(20000 <= port < 32768 for port in ports)


def test_a_pod_of_kubeflows_operator_is_one_rank() -> None:
    environ = {"RANK": "1", "WORLD_SIZE": "2", "PET_NODE_RANK": "1", "PET_NNODES": "2"}
    environ |= {"PET_NPROC_PER_NODE": "auto", "PET_MASTER_ADDR": "10.0.0.1"}
    env = RankEnv.from_mapping(environ | MEETING)
    assert (env.rank, env.local_rank, env.local_world_size) == (1, 0, 1)
    assert (env.node, env.num_nodes) == (1, 2)
    # With two processes in each of two pods WORLD_SIZE is 4, and RANK no rank.
    with pytest.raises(ConfigError, match="RANK is set but"):
        RankEnv.from_mapping(environ | MEETING | {"WORLD_SIZE": "4"})


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 says that this is one of several processes, and RANK"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"} | MEETING, "RANK is not set: each would train al"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1 says"),
        (
            {"PET_NNODES": "1:2", "PET_NODE_RANK": "0"},
            "start it with bundlerun run, bundlerun script",
        ),
    ],
)
def test_a_launcher_that_gave_no_rank_is_told(environ: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        RankEnv.from_mapping(environ)


@pytest.mark.parametrize(
    "environ",
    [{"WORLD_SIZE": "1", "LOCAL_RANK": "0"}, {"PET_NNODES": "1"}, {"PET_NNODES": "1:1"}, MEETING],
)
def test_variables_that_fit_one_process_are_no_reason_to_refuse(environ: dict[str, str]) -> None:
    assert not RankEnv.from_mapping(environ).is_launched


def test_deepspeeds_names_are_understood() -> None:
    environ = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
    env = RankEnv.from_mapping(environ | MEETING | {"CROSS_RANK": "1", "CROSS_SIZE": "2"})
    assert (env.local_world_size, env.node, env.num_nodes, env.is_launched) == (2, 1, 2, True)


def test_rays_names_are_understood() -> None:
    environ = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    env = RankEnv.from_mapping(environ | MEETING | {"NODE_RANK": "1"})
    assert (env.node, env.num_nodes) == (1, 2)


def test_ranks_of_one_node_need_no_word_about_nodes() -> None:
    environ = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    env = RankEnv.from_mapping(environ | MEETING)
    assert (env.node, env.num_nodes) == (0, 1)


def test_torchruns_own_words_win() -> None:
    environ = open_mpi(0, 1, 0, 1) | MEETING | {"RANK": "5", "WORLD_SIZE": "6"}
    environ |= {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "2"}
    found = rank_variables(environ | {"GROUP_WORLD_SIZE": "3", "NODE_RANK": "0"})
    assert (found["RANK"], found["LOCAL_WORLD_SIZE"], found["GROUP_RANK"]) == ("5", "2", "2")


def test_ranks_of_which_too_little_is_known_are_refused_with_the_name() -> None:
    with pytest.raises(ConfigError, match="RANK is set but LOCAL_WORLD_SIZE is not"):
        RankEnv.from_mapping({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})


@pytest.mark.parametrize(
    ("environ", "max_nodes", "text"),
    [
        (open_mpi(0, 2, 0, 2), 1, "2 on this node; bundlerun run starts the ranks of a node"),
        (open_mpi(0, 2, 0, 2), 2, "use mpirun --map-by ppr:1:node bundlerun run"),
        (open_mpi(1, 2, 0, 1), 1, "--nnodes is 1: each would train alone"),
        (srun(0, 2, 0, 0, "2"), 1, "use srun --ntasks-per-node=1 bundlerun run"),
        (srun(0, 3, 0, 0, "2,1"), 2, "2 on this node"),
        (mpich(1, 2, 1, 0), 1, "several on this node"),
    ],
)
def test_bundlerun_started_as_if_it_were_a_rank_is_refused(
    environ: dict[str, str], max_nodes: int, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        check_one_per_node(environ, max_nodes)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        open_mpi(1, 2, 0, 1),
        srun(1, 2, 1, 0, "1(x2)"),
        srun(2, 3, 2, 0, "1(x3)"),  # a spare
        open_mpi(0, 1, 0, 1),
    ],
)
def test_one_bundlerun_per_node_is_as_it_should_be(environ: dict[str, str]) -> None:
    check_one_per_node(environ, 2)


def test_torchruns_variables_are_options() -> None:
    found = torchrun_variables(
        {"PET_NNODES": "1:2", "PET_RDZV_ENDPOINT": "a:1", "PET_RDZV_ID": "", "PATH": "x"}
    )
    assert found == {
        "nnodes": ("PET_NNODES", "1:2"),
        "rdzv_endpoint": ("PET_RDZV_ENDPOINT", "a:1"),
    }


def test_a_master_is_an_endpoint() -> None:
    found = torchrun_variables({"PET_MASTER_ADDR": "job-0", "PET_MASTER_PORT": "23456"})
    assert found == {"rdzv_endpoint": ("PET_MASTER_ADDR", "job-0:23456")}
    found = torchrun_variables({"PET_MASTER_ADDR": "fd00::1", "PET_MASTER_PORT": "7"})
    assert found == {"rdzv_endpoint": ("PET_MASTER_ADDR", "[fd00::1]:7")}


def test_a_variable_that_is_no_option_of_ours_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="PET_RUN_PATH=1 stands for an option of torchrun that"):
        torchrun_variables({"PET_RUN_PATH": "1"})
