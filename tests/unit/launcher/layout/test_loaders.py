"""Ranks that read have loading processes on the cores that nobody else needs, and always some."""

from __future__ import annotations

import pytest

from bundlerun.launcher.layout.loaders import (
    MOST_LOADERS,
    Loaders,
    NodeCores,
    loaders_of,
    num_loaders,
)
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Place, Topology

EIGHT = NodeCores(num_cores=8, shares=((0, 1, 2, 3), (4, 5, 6, 7)))


def places(shape: tuple[int, ...], num_ranks: int) -> list[Place]:
    return list(Topology(Shape(shape), (num_ranks,)).places)


@pytest.mark.parametrize(
    ("shape", "num_ranks", "num_cores", "expected"),
    [
        ((1, 1), 2, 8, 5),  # two that train, one that pins
        ((1,), 2, 8, 2),
        ((1,), 8, 112, 12),
        ((1, 1), 8, 64, 13),
        ((1, 1), 8, 256, MOST_LOADERS),
        ((2, 1), 3, 16, 5),
        ((1, 1), 3, 8, 5),  # a spare rank trains nothing
        ((1,), 1, 1, 1),
        ((1,), 8, 8, 1),
        ((1, 1), 4, 2, 1),  # a quota
    ],
)
def test_a_gpu_that_computes_leaves_cores_and_no_reader_is_without_a_process(
    shape: tuple[int, ...], num_ranks: int, num_cores: int, expected: int
) -> None:
    assert num_loaders(-1, places(shape, num_ranks), num_cores, has_gpu=True) == expected


@pytest.mark.parametrize("has_gpu", [False, True])
@pytest.mark.parametrize("wanted", [0, 3])
def test_who_says_how_many_gets_as_many(wanted: int, has_gpu: bool) -> None:
    assert num_loaders(wanted, places((1, 1), 2), 8, has_gpu=has_gpu) == wanted


def test_without_a_gpu_the_model_needs_the_cores() -> None:
    assert num_loaders(-1, places((1,), 1), 8, has_gpu=False) == 0
    assert loaders_of(-1, places((1, 1), 2), 0, EIGHT, has_gpu=False) == Loaders()


def test_processes_run_on_the_cores_of_ranks_that_read_nothing_too() -> None:
    found = loaders_of(-1, places((1, 1), 2), 0, EIGHT, has_gpu=True)
    assert found == Loaders(count=5, cpus=tuple(range(8)))


def test_where_all_read_each_keeps_to_its_own_cores() -> None:
    found = loaders_of(-1, places((1,), 2), 1, EIGHT, has_gpu=True)
    assert found == Loaders(count=2, cpus=(4, 5, 6, 7))


@pytest.mark.parametrize("shares", [(), ((), ())])
def test_processes_of_ranks_that_are_not_pinned_are_not(
    shares: tuple[tuple[int, ...], ...],
) -> None:
    cores = NodeCores(num_cores=8, shares=shares)
    found = loaders_of(-1, places((1, 1), 2), 0, cores, has_gpu=True)
    assert found == Loaders(count=5)
