"""A recomputation gives the bits of a forward that keeps everything, and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.model.forward_state import ForwardState
from bundlerun.workers.model.forwards import Recomputed, forwards_of
from bundlerun.workers.model.norms.batchnorm import StatisticsPool

CONFIG = TrainConfig(data="x")
CPU = torch.device("cpu")


class PowerIteration(nn.Module):
    """Writes a buffer in each forward, and uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("u", torch.ones(4))
        self.weight = nn.Parameter(torch.eye(4) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.u.copy_(torch.nn.functional.normalize(self.weight @ self.u, dim=0))
        u = self.u.clone()  # as spectral norm does: the next forward writes the buffer
        return x @ self.weight / (u @ self.weight @ u)


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 4))


def normalising() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4))


def writing() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), PowerIteration(), nn.Tanh(), PowerIteration())


def step(stage: nn.Module, *, recomputes: bool, num_microbatches: int = 3) -> dict[str, Tensor]:
    """All that a step leaves: forwards first, as with several micro-batches in flight."""
    sums = torch.zeros(StatisticsPool.size(stage), dtype=torch.float64)
    statistics = StatisticsPool(stage, sums)
    state = ForwardState(stage, 1, lambda numbers: numbers)
    (forward,) = forwards_of(stage, CONFIG, statistics, state, CPU, recomputes=recomputes)
    state.begin_step()
    outputs = []
    for number in range(num_microbatches):
        torch.manual_seed(number)
        outputs.append(forward(torch.randn(6, 4)))
    num_found = state.count_found()
    for number, output in enumerate(outputs):
        torch.manual_seed(100 + number)  # what came between the forward and the backward
        output.square().mean().backward()
    state.settle(num_found, is_first=True)
    statistics.apply(statistics.counts.tolist())
    gradients = {f"{n}.grad": p.grad for n, p in stage.named_parameters() if p.grad is not None}
    return {**stage.state_dict(), **gradients, "random": torch.rand(3)}


@pytest.mark.parametrize("make", [dropping, normalising, writing], ids=lambda make: make.__name__)
def test_a_step_is_the_same_to_the_bit(make: Callable[[], nn.Module]) -> None:
    found = []
    for recomputes in (False, True):
        torch.manual_seed(7)
        found.append(step(make(), recomputes=recomputes))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(found[1][name], value), name


def saved_bytes(forward: Callable[[Tensor], Tensor], x: Tensor) -> int:
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(x)
    return sum(kept.values())


def test_only_the_inputs_are_kept() -> None:
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(4)))
    calls = 0

    def forward(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return layers(x)

    x = torch.randn(100, 64, requires_grad=True)
    again = Recomputed(forward, CPU, begin_again=lambda: None)
    again(x)  # knows from here on that the inputs stay as they are
    assert saved_bytes(again, x) <= x.nbytes
    assert saved_bytes(layers, x) > 4 * x.nbytes
    calls = 0
    again(x).sum().backward()
    assert calls == 2
    with torch.no_grad():
        again(x)
    assert calls == 3


def test_a_forward_that_overwrites_its_inputs_gets_them_anew() -> None:
    def forward(x: Tensor) -> Tensor:
        return torch.tanh(x.mul_(2)).square()

    again = Recomputed(forward, CPU, begin_again=lambda: None)
    for _ in range(3):
        x = torch.randn(5)
        weight = torch.ones(5, requires_grad=True)
        wanted = torch.autograd.grad(forward((x * weight).clone()).sum(), weight)[0]
        assert torch.equal(torch.autograd.grad(again(x * weight).sum(), weight)[0], wanted)


def test_nested_inputs_are_taken_as_they_are() -> None:
    again = Recomputed(
        lambda pair, scale: pair["a"] * scale + pair["b"], CPU, begin_again=lambda: None
    )
    a = torch.randn(3, requires_grad=True)
    for _ in range(2):
        a.grad = None
        again({"a": a, "b": torch.ones(3)}, 2.0).sum().backward()
        assert a.grad is not None
        assert torch.equal(a.grad, torch.full((3,), 2.0))
