"""What the trainer adds to a model's own work stays within its bounds, whatever the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.machine.operations import PER_MICROBATCH, PER_STEP, WAITS, added
from benchmarks.workload.counted import Counted


def norms(num_layers: int) -> nn.Module:
    """Several batch norms; an operation for each of them would be over the bound."""
    layers = [each for _ in range(num_layers) for each in (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))


@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"on_nan": "skip"}])
def test_a_rank_alone_adds_a_handful_of_operations_and_one_wait(options: dict[str, Any]) -> None:
    found = added(lambda: norms(20), **options)
    assert 0 < found.per_microbatch <= PER_MICROBATCH
    assert 0 < found.per_step <= PER_STEP
    assert 0 < found.num_waits <= WAITS


def test_a_replica_adds_as_few_whatever_the_number_of_gradients() -> None:
    found = added(lambda: norms(20), num_ranks=2, clip_norm=1.0)
    assert 0 < found.per_microbatch <= PER_MICROBATCH
    assert 0 < found.per_step <= PER_STEP
    assert 0 < found.num_waits <= WAITS


def test_what_is_counted() -> None:
    x = torch.ones(2)
    with Counted() as counted:
        y = (x.view(2, 1) * 2).t()
        torch._foreach_add_([x, y], 1)
        assert y.tolist() == [[3.0, 3.0]]
        assert float(x.sum()) == 4.0
        assert torch.equal(x, x)
    assert counted.operations == {"mul": 1, "_foreach_add_": 1, "sum": 1}
    assert counted.num_waits == 3
    assert x.tolist() == [2.0, 2.0]
    assert counted.num_waits == 3
