from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.hardware import (
    Cpus,
    Devices,
    Hardware,
    RankLayout,
    choose_devices,
    default_slots,
    num_threads,
    parse_cpu_list,
    rank_layout,
    read_cpus,
)
from bundlerun.launcher.layout.shape import Shape


def cpus_of(*cores_per_node: int, threads_per_core: int = 1) -> Cpus:
    numbers = iter(range(1000))
    return Cpus(
        numa_nodes=tuple(
            tuple(tuple(next(numbers) for _ in range(threads_per_core)) for _ in range(cores))
            for cores in cores_per_node
        )
    )


def layouts(cpus: Cpus, num_ranks: int) -> list[RankLayout]:
    return [rank_layout(rank, num_ranks, cpus) for rank in range(num_ranks)]


def share(cores: int, cpus: tuple[int, ...] = ()) -> RankLayout:
    """That of one rank of several, where nobody says how many threads."""
    return RankLayout(threads=1, threads_from="as torchrun", cores=cores, cpus=cpus)


def test_the_picture_of_two_numa_nodes_is_what_comes_out() -> None:
    assert layouts(cpus_of(4, 4), 4) == [
        share(2, (0, 1)),
        share(2, (2, 3)),
        share(2, (4, 5)),
        share(2, (6, 7)),
    ]


def test_fewer_ranks_than_numa_nodes_get_whole_ones() -> None:
    assert [layout.cpus for layout in layouts(cpus_of(2, 2, 2), 2)] == [(0, 1), (2, 3, 4, 5)]


def test_both_threads_of_a_core_go_to_one_rank_and_count_once() -> None:
    assert layouts(cpus_of(2, threads_per_core=2), 2) == [
        share(1, (0, 1)),
        share(1, (2, 3)),
    ]


def test_with_fewer_cores_than_ranks_nobody_is_pinned() -> None:
    assert layouts(cpus_of(2), 3) == [share(1)] * 3


def test_a_quota_limits_the_cores_and_pins_nobody() -> None:
    cpus = Cpus(numa_nodes=cpus_of(16).numa_nodes, quota=4.5)
    assert layouts(cpus, 2) == [share(2)] * 2


def test_given_threads_and_no_affinity_are_kept_to() -> None:
    layout = rank_layout(0, 2, cpus_of(8), threads=3, affinity=False)
    assert layout == RankLayout(threads=3, threads_from="--threads", cores=4)


def test_a_numa_node_with_too_few_cores_does_not_leave_a_rank_without() -> None:
    shares = [layout.cpus for layout in layouts(cpus_of(1, 7), 4)]
    assert shares == [(0, 1), (2, 3), (4, 5), (6, 7)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 12))
def test_no_core_is_given_twice_and_every_rank_has_one(cores: list[int], num_ranks: int) -> None:
    found = layouts(cpus_of(*cores), num_ranks)
    given_out = [cpu for layout in found for cpu in layout.cpus]
    assert len(given_out) == len(set(given_out))
    if sum(cores) >= num_ranks:
        assert sorted(given_out) == list(range(sum(cores)))
        assert all(layout.cores == len(layout.cpus) > 0 for layout in found)


def fake_sys(root: Path, numa: dict[int, str], siblings: dict[int, str]) -> Path:
    for node, text in numa.items():
        folder = root / f"devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(text + "\n")
    for cpu, text in siblings.items():
        folder = root / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    return root


def test_numa_nodes_and_siblings_are_read_from_sysfs(tmp_path: Path) -> None:
    sys = fake_sys(
        tmp_path,
        {0: "0-1,4-5", 1: "2-3,6-7", 10: ""},
        {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)},
    )
    cpus = read_cpus(allowed=range(8), sys=sys)
    assert cpus.numa_nodes == (((0, 4), (1, 5)), ((2, 6), (3, 7)))


def test_cores_that_are_not_allowed_are_left_out(tmp_path: Path) -> None:
    sys = fake_sys(tmp_path, {0: "0-3", 1: "4-7"}, {})
    assert read_cpus(allowed=[1, 3], sys=sys).numa_nodes == (((1,), (3,)),)


def test_a_machine_without_numa_nodes_is_one(tmp_path: Path) -> None:
    assert read_cpus(allowed=[0, 1], sys=tmp_path).numa_nodes == (((0,), (1,)),)


@pytest.mark.parametrize(("text", "cpus"), [("0-2,5\n", [0, 1, 2, 5]), ("7", [7]), ("\n", [])])
def test_the_kernels_cpu_lists_are_read(text: str, cpus: list[int]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("option", "variable", "num_ranks", "expected"),
    [
        (3, "2", 4, (3, "--threads")),
        (0, "2", 4, (2, "OMP_NUM_THREADS")),
        (0, "2", 1, (2, "OMP_NUM_THREADS")),
        (0, "6,2", 1, (6, "OMP_NUM_THREADS")),
        (0, None, 4, (1, "as torchrun")),
        (0, None, 1, (8, "free cores")),
        (0, "0", 4, (1, "as torchrun")),
        (0, "many", 1, (8, "free cores")),
    ],
)
def test_the_option_counts_more_than_the_variable_and_that_more_than_the_cores(
    option: int, variable: str | None, num_ranks: int, expected: tuple[int, str]
) -> None:
    environ = {} if variable is None else {"OMP_NUM_THREADS": variable}
    assert num_threads(option, environ, num_ranks, 8) == expected
    assert num_threads(option, {**environ, "MKL_NUM_THREADS": "5"}, num_ranks, 8) == expected


def node(num_gpus: int, cores: int = 8) -> Hardware:
    return Hardware(num_gpus=num_gpus, cpus=cpus_of(cores))


@pytest.mark.parametrize(
    ("gpus", "kind", "slots", "kind_found", "count"),
    [
        (4, "auto", 0, "gpu", 4),
        (4, "auto", 6, "cpu", 6),
        (4, "cpu", 0, "cpu", 8),
        (0, "auto", 0, "cpu", 8),
        (2, "gpu", 0, "gpu", 2),
    ],
)
def test_devices_are_gpus_unless_slots_are_asked_for(
    gpus: int, kind: str, slots: int, kind_found: str, count: int
) -> None:
    found = choose_devices(node(gpus), Shape((1, 1)), kind=kind, slots=slots)
    assert found == Devices(kind=kind_found, count=count)


@pytest.mark.parametrize(
    ("shape", "cores", "slots"), [((1, 1), 5, 4), ((1, 1), 1, 2), ((4, 2), 3, 6), ((1,), 3, 3)]
)
def test_default_slots_are_whole_bundles_and_one_at_least(
    shape: tuple[int, ...], cores: int, slots: int
) -> None:
    assert default_slots(Shape(shape), cores) == slots


def test_gpus_that_are_not_there_are_the_machines_fault() -> None:
    with pytest.raises(ConfigError, match="shows no GPU"):
        choose_devices(node(0), Shape((1,)), kind="gpu")


def test_slots_do_not_go_with_gpus() -> None:
    with pytest.raises(ConfigError, match="--slots 2 counts CPU slots"):
        choose_devices(node(1), Shape((1,)), kind="gpu", slots=2)
