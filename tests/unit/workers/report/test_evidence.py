"""What a metric that is no sum has to know comes together from all replicas."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.report.evidence import joined, together


def sums_of(count: int) -> list[Callable[[Tensor], Tensor]]:
    """A sum over threads, for each of them."""
    barrier, given = Barrier(count, timeout=10), [torch.zeros(0)] * count

    def sum_of(replica: int, values: Tensor) -> Tensor:
        given[replica] = values
        barrier.wait()
        found = torch.stack(list(given)).sum(dim=0)
        barrier.wait()
        return found

    return [lambda values, replica=n: sum_of(replica, values) for n in range(count)]


def test_rows_of_all_replicas_are_on_each_one_also_of_those_without_work() -> None:
    rows = torch.arange(12, dtype=torch.float64).view(6, 2) / 7
    own = [
        joined([{"a": rows[:1], "b": torch.zeros(0, 3)}, {"a": rows[1:3], "b": torch.ones(1, 3)}]),
        joined([]),
        joined([{"a": rows[3:], "b": torch.zeros(0, 3)}]),
    ]
    sums = sums_of(3)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda n: together(own[n], n, 3, sums[n]), range(3)))
    for each in found:
        assert torch.equal(each["a"], rows)
        assert torch.equal(each["b"], torch.ones(1, 3, dtype=torch.float64))
    (alone,) = sums_of(1)
    assert together(joined([]), 0, 1, alone) == {}


def test_evidence_that_is_not_alike_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no tensor \(rows, columns\) as 'a'"):
        joined([{"a": torch.zeros(3)}])
    with pytest.raises(ConfigError, match="'b' with 2 columns for one micro-batch and 'a' with 2"):
        joined([{"a": torch.zeros(1, 2)}, {"b": torch.zeros(1, 2)}])
