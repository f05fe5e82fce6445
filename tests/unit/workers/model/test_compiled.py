"""How often a stage is compiled."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from bundlerun.launcher.choices import CompileMode
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.model.compiled import begin_replays, compiled
from bundlerun.workers.model.forwards import Recomputed
from bundlerun.workers.model.norms.batchnorm import StatisticsPool


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


def test_a_compiled_stage_is_recomputed_to_the_same_bits() -> None:
    gradients, buffers = [], []
    for recomputes in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model, counter = nn.Sequential(stage(), nn.Dropout(0.5)), CompileCounter()
        sums = torch.zeros(StatisticsPool.size(model), dtype=torch.float64)
        pool = StatisticsPool(model, sums)
        forward = compiled(model, "default", counter)
        if recomputes:
            forward = Recomputed(forward, torch.device("cpu"), begin_again=lambda: None)
        forward = pool.around(forward)
        for size in (8, 5):
            inputs = torch.randn(size, 3, 4, 4, requires_grad=True)
            forward(inputs).square().sum().backward()
            gradients.append([inputs.grad, *(p.grad.clone() for p in model.parameters())])
        buffers.append(sums)
        # Its batch norms are lent other buffers the second time, which is a case of its own.
        assert counter.frame_count == (4 if recomputes else 2)
    half = len(gradients) // 2
    for plain, again in zip(gradients[:half], gradients[half:], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert torch.equal(*buffers)


@pytest.mark.parametrize(
    ("shape", "mode", "tells"),
    [
        ((1,), "reduce-overhead", True),
        ((2,), "max-autotune", True),
        ((1, 1), "max-autotune", False),
        ((1,), "max-autotune-no-cudagraphs", False),
        ((1,), "default", False),
        ((1,), "off", False),
    ],
)
def test_torch_hears_where_a_step_begins_if_it_replays_graphs(
    shape: tuple[int, ...], mode: CompileMode, tells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: told.append(True))
    begin_replays(TrainConfig(data="x", shape=Shape(shape), compile=mode))
    assert told == [True] * tells
