"""Metrics summed over ranks, which are threads here: declared ones, and those that are agreed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.report.metric_sums import MetricSums
from bundlerun.workers.step import Share, StepShare

Metrics = dict[str, float]


class Replicas:
    """Sums over threads, in place of `GradientSync.all_sum`."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=10)
        self._parts: list[Tensor] = []
        self.num_sums = 0

    def all_sum(self, values: Tensor) -> Tensor:
        assert values.dtype is torch.float64
        self._parts.append(values)
        self._barrier.wait()
        total = torch.stack(self._parts).sum(0)
        if self._barrier.wait() == 0:
            self.num_sums += 1
            self._parts.clear()
        self._barrier.wait()
        return total


def share_of(*microbatches: Metrics) -> StepShare:
    return added(StepShare(), *microbatches)


def added(share: StepShare, *microbatches: Metrics) -> StepShare:
    for metrics in microbatches:
        tensors = {name: torch.tensor(value) for name, value in metrics.items()}
        share.add(Share(torch.tensor(1.0), None), tensors)
    return share


def step(
    sums: Sequence[MetricSums], works: Sequence[Sequence[Metrics]], first: int, replicas: Replicas
) -> list[Metrics]:
    """What each rank knows after one step, of which `first` has had the first micro-batch."""
    slots = torch.zeros((len(sums), sums[0].num_slots), dtype=torch.float64)
    shares = []
    for own, slot, work in zip(sums, slots, works, strict=True):
        shares.append(added(StepShare(metric_slots=own.slots(slot)), *work))
        own.check(shares[-1])
    of_step = slots.sum(0).tolist()

    def totals(rank: int) -> Metrics:
        return sums[rank].totals(
            of_step, shares[rank], is_first=rank == first, all_sum=replicas.all_sum
        )

    with ThreadPoolExecutor(len(sums)) as pool:
        return list(pool.map(totals, range(len(sums))))


@pytest.mark.parametrize("names", [("mae", "top1"), ("top1", "mae"), None], ids=str)
def test_all_ranks_know_all_sums_in_one_order_whoever_had_work(
    names: tuple[str, ...] | None,
) -> None:
    sums = [MetricSums(names) for _ in range(3)]
    works: list[list[Metrics]] = [
        [{"mae": 1.5, "top1": 1.0}],
        [],
        [{"top1": 2.0, "mae": 0.25}, {"mae": 0.25, "top1": 0.0}],
    ]
    found = step(sums, works, 2, Replicas(3))
    assert found == [{"mae": 2.0, "top1": 3.0}] * 3
    assert [list(each) for each in found] == [list(names or ("top1", "mae"))] * 3


def test_declared_metrics_need_no_sum_of_their_own_and_agreed_names_are_told_once() -> None:
    works: list[list[Metrics]] = [[{"mae": 1.0}], [{"mae": 2.0}]]
    for names, expected in ((("mae",), [0, 0]), (None, [3, 4])):
        replicas, sums = Replicas(2), [MetricSums(names) for _ in range(2)]
        counts = []
        for first in (0, 1):
            assert step(sums, works, first, replicas) == [{"mae": 3.0}] * 2
            counts.append(replicas.num_sums)
        assert counts == expected


def test_there_may_be_no_metric_and_any_number_of_them() -> None:
    for names in ((), None):
        sums = [MetricSums(names) for _ in range(2)]
        assert step(sums, [[{}], []], 0, Replicas(2)) == [{}, {}]
    many = {f"class {number} \N{GREEK SMALL LETTER ALPHA}": float(number) for number in range(300)}
    for declared in (tuple(many), None):
        sums = [MetricSums(declared) for _ in range(2)]
        assert step(sums, [[many], []], 0, Replicas(2)) == [many, many]


def declared_step(metrics: Metrics) -> None:
    MetricSums(("mae", "top1")).check(share_of(metrics))


def agreed_step(metrics: Metrics) -> None:
    sums = MetricSums(None)
    for found in ({"mae": 1.0, "top1": 2.0}, metrics):
        sums.totals([], share_of(found), is_first=True, all_sum=lambda values: values)


@pytest.mark.parametrize(
    ("give", "whose"),
    [(declared_step, "the recipe's metric_names"), (agreed_step, "its first micro-batch")],
)
def test_another_name_or_a_missing_one_is_an_error_that_has_it(
    give: Callable[[Metrics], None], whose: str
) -> None:
    with pytest.raises(ConfigError, match=rf"gives 'top2', which {whose} does not .*nearest: top1"):
        give({"mae": 1.0, "top1": 1.0, "top2": 1.0})
    with pytest.raises(ConfigError, match=rf"does not give 'top1', which {whose} has; give a ten"):
        give({"mae": 1.0})


@pytest.mark.parametrize("later", [{}, {"mae": 1.0, "top1": 2.0}], ids=str)
def test_micro_batches_of_one_rank_have_the_same_names(later: Metrics) -> None:
    name = "mae" if not later else "top1"
    with pytest.raises(ConfigError, match=rf"metrics\(\) gives '{name}' for some micro-batches o"):
        share_of({"mae": 1.0}, later)
