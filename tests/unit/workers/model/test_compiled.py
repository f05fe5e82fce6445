"""How often a stage is compiled."""

from __future__ import annotations

import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from bundlerun.workers.model.batchnorm import StatisticsPool
from bundlerun.workers.model.compiled import compiled


def stage() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def test_what_is_not_compiled_stays_as_it_is() -> None:
    model = stage()
    assert compiled(model, "off") is model


def test_all_short_microbatches_of_a_run_cost_one_more_compilation() -> None:
    torch._dynamo.reset()
    model, counter = stage(), CompileCounter()
    pool = StatisticsPool(model, torch.zeros(StatisticsPool.size(model), dtype=torch.float64))
    forward = pool.around(compiled(model, "default", counter))
    counts = []
    for size in (8, 8, 5, 8, 3, 7, 2):
        forward(torch.randn(size, 3, 4, 4))[0].sum().backward()
        counts.append(counter.frame_count)
    assert counts == [1, 1, 2, 2, 2, 2, 2]
    model.eval()
    for size in (8, 4, 6):
        forward(torch.randn(size, 3, 4, 4))
    assert counter.frame_count == 3
