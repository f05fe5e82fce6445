"""Where GPUs hang, with the files of a DGX A100 and of a node with AMD's."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.launcher.layout.hardware import Cpus, rank_layout
from bundlerun.launcher.layout.machine.gpu_places import cores_by_gpu, gpu_numa_nodes

DGX = {"07": 3, "0f": 3, "47": 1, "4e": 1, "87": 7, "90": 7, "b7": 5, "bd": 5}
"""Bus and NUMA node of each GPU of a DGX A100."""


def on_pci(root: Path, address: str, numa_node: int) -> None:
    folder = root / "sys/bus/pci/devices" / address
    folder.mkdir(parents=True)
    (folder / "numa_node").write_text(f"{numa_node}\n")


def nvidia_node(root: Path, *, models: tuple[str, ...] = ("A100",)) -> Path:
    for index, (bus, numa_node) in enumerate(DGX.items()):
        address = f"0000:{bus}:00.0"
        on_pci(root, address, numa_node)
        folder = root / "proc/driver/nvidia/gpus" / address
        folder.mkdir(parents=True)
        model = models[index % len(models)]
        text = f"Model: \t\t {model}\nGPU UUID: \t GPU-{bus}aa\nDevice Minor: \t {7 - index}\n"
        (folder / "information").write_text(text)
    return root


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, (3, 3, 1, 1, 7, 7, 5, 5)),
        ({"CUDA_VISIBLE_DEVICES": "4,0"}, (7, 3)),
        ({"CUDA_VISIBLE_DEVICES": "GPU-bd"}, (5,)),
        ({"CUDA_VISIBLE_DEVICES": "6", "BUNDLERUN_NODE_GPUS": "4,6"}, (7, 5)),
        ({"CUDA_VISIBLE_DEVICES": "MIG-1"}, ()),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
        ({"BUNDLERUN_CPU_ONLY": "1"}, ()),
        # Numbers of the job's GPUs, which need not be the first of the node.
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_JOB_ID": "7"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "GPU-47,GPU-07", "SLURM_JOB_ID": "7"}, (1, 3)),
    ],
)
def test_gpus_are_found_by_their_addresses(
    environ: dict[str, str], wanted: tuple[int, ...], tmp_path: Path
) -> None:
    assert gpu_numa_nodes(environ, nvidia_node(tmp_path)) == wanted


def test_of_unlike_gpus_cuda_alone_knows_the_order(tmp_path: Path) -> None:
    root = nvidia_node(tmp_path, models=("A100", "T4"))
    assert gpu_numa_nodes({}, root) == ()
    assert gpu_numa_nodes({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, root) == tuple(DGX.values())


def test_amds_gpus_are_found_by_what_their_driver_says(tmp_path: Path) -> None:
    nodes = tmp_path / "sys/class/kfd/kfd/topology/nodes"
    for number, gpu_id, location in ((0, "0", 0), (2, "51", 0x3800), (10, "52", 0x2B08)):
        folder = nodes / str(number)
        folder.mkdir(parents=True)
        (folder / "gpu_id").write_text(gpu_id + "\n")
        (folder / "properties").write_text(f"cpu_cores_count 0\nlocation_id {location}\ndomain 1\n")
    on_pci(tmp_path, "0001:38:00.0", 4)
    on_pci(tmp_path, "0001:2b:01.0", 0)
    assert gpu_numa_nodes({}, tmp_path) == (4, 0)
    assert gpu_numa_nodes({"HIP_VISIBLE_DEVICES": "1"}, tmp_path) == (0,)


def test_a_machine_with_one_numa_node_or_none_says_nothing(tmp_path: Path) -> None:
    assert gpu_numa_nodes({}, tmp_path) == ()
    root = nvidia_node(tmp_path)
    (root / "sys/bus/pci/devices/0000:07:00.0/numa_node").write_text("-1\n")
    assert gpu_numa_nodes({}, root) == ()


def dgx_cpus() -> Cpus:
    """Eight NUMA nodes of four cores on two sockets."""
    cores = iter(range(32))
    return Cpus(
        numa_nodes=tuple(tuple((next(cores),) for _ in range(4)) for _ in range(8)),
        numbers=tuple(range(8)),
        distances=tuple(
            tuple(10 if a == b else 12 if a // 4 == b // 4 else 32 for b in range(8))
            for a in range(8)
        ),
    )


def test_ranks_get_cores_next_to_their_gpus_and_of_the_same_socket() -> None:
    gpu_nodes = tuple(DGX.values())
    found = [rank_layout(r, 8, dgx_cpus(), gpu_nodes=gpu_nodes).cpus for r in range(8)]
    # GPUs 0 and 1 hang on NUMA node 3, which has cores 12 to 15; node 2 has no GPU.
    assert found[:2] == [(8, 9, 12, 13), (10, 11, 14, 15)]
    assert all({cpu // 16 for cpu in cpus} == {0 if r < 4 else 1} for r, cpus in enumerate(found))
    assert sorted(cpu for cpus in found for cpu in cpus) == list(range(32))


def test_unknown_places_and_fewer_cores_than_ranks_leave_it_as_on_a_cpu() -> None:
    cpus = dgx_cpus()
    as_before = [rank_layout(rank, 4, cpus) for rank in range(4)]
    assert [rank_layout(rank, 4, cpus, gpu_nodes=(9,)) for rank in range(4)] == as_before
    assert cores_by_gpu([1, 9], [[10, 20], [20, 10]], [0, 0, 1]) == []


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6).flatmap(
        lambda sizes: st.tuples(
            st.just(sizes),
            st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=8),
            st.randoms(use_true_random=False),
        )
    )
)
def test_every_core_goes_to_one_rank(case: tuple[list[int], list[int], object]) -> None:
    sizes, places, _ = case
    distances = [[10 + 2 * abs(a - b) for b in range(len(sizes))] for a in range(len(sizes))]
    shares = cores_by_gpu(sizes, distances, places)
    parts = sorted(part for share in shares for part in share if part[1] < part[2])
    if not shares:
        return
    assert len(shares) == len(places)
    for node, size in enumerate(sizes):
        ends = [(start, end) for each, start, end in parts if each == node]
        assert ends[0][0] == 0
        assert ends[-1][1] == size
        assert all(before[1] == after[0] for before, after in pairwise(ends))
