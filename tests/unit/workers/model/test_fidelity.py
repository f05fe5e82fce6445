"""The check before the first step: stages that are not the model are refused by name."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.graph.model import cut_model
from bundlerun.splits.models import make_stages
from bundlerun.workers.model.fidelity import check_fidelity
from bundlerun.workers.model.trial import Subject


class Net(nn.Module):
    """Something of everything: statistics, dropout, a counter, a list, a buffer that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)
        self.calls = 0
        self.seen: list[int] = []
        self.register_buffer("kept", torch.zeros(2))

    def features(self, x: Tensor) -> Tensor:
        return self.drop(torch.relu(self.norm(self.stem(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> dict[str, Any]:
        self.calls += 1
        self.seen.append(self.calls)
        self.kept += 1
        self.extra = torch.ones(1)
        return {"out": self.head(self.features(x)), "more": [x.mean(), 3]}


class Part(nn.Module):
    """A stage made by hand of some modules of a model."""

    def __init__(self, model: nn.Module, names: Sequence[str], run: Callable[..., Any]) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, model.get_submodule(name))
        self.run = run

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def images(count: int = 4) -> tuple[Tensor]:
    return (torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1)),)


def check(whole: nn.Module, stages: Sequence[nn.Module], longest_s: float = 60.0) -> None:
    check_fidelity(Subject(whole=whole, stages=stages), images, longest_s)


def front(m: Part, x: Tensor) -> tuple[Tensor, Tensor]:
    return m.drop(torch.relu(m.norm(m.stem(x)))).mean((2, 3)), x.mean()


def rear(m: Part, y: Tensor, mean: Tensor) -> dict[str, Any]:
    return {"out": m.head(y), "more": [mean, 3]}


def in_parts(
    model: Net, front: Callable[..., Any] = front, rear: Callable[..., Any] = rear
) -> list[nn.Module]:
    return [Part(model, ["stem", "norm", "drop"], front), Part(model, ["head"], rear)]


def test_stages_that_do_the_same_pass_and_leave_no_trace() -> None:
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    random.seed(3)
    state = torch.get_rng_state()
    check(model, in_parts(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == random.Random(3).getstate()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert (model.calls, model.seen, hasattr(model, "extra")) == (0, [], False)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert "forward" not in vars(model.norm)
    assert not model.norm._forward_hooks


@pytest.mark.parametrize(
    ("front", "rear", "reason"),
    [
        (
            lambda m, x: (torch.relu(m.norm(m.stem(x))).mean((2, 3)), x.mean()),
            rear,
            r"in training, Net in stages is not what it is by itself: output\['out'\] differs by "
            ".*only one of the two calls 'drop'",
        ),
        (
            lambda m, x: (front(m, x)[0].detach(), x.mean()),
            rear,
            "the gradient of 'stem.weight' is missing and not a tensor of 4x3x3x3",
        ),
        (
            lambda m, x: (m.drop(torch.tanh(m.norm(m.stem(x)))).mean((2, 3)), x.mean()),
            rear,
            r"in evaluation, .*output\['out'\] differs by .*another result is 'drop'",
        ),
        (
            front,
            lambda m, y, mean: {"out": m.head(y) * 1.1, "more": [mean, 3]},
            "it begins after the last module, 'head'",
        ),
        (front, lambda m, y, mean: {"out": m.head(y)}, "the output has another structure"),
        (
            front,
            lambda m, y, mean: {"out": m.head(y), "more": [mean, 4]},
            r"output\['more'\]\[1\] is 4 and not 3",
        ),
        (
            front,
            lambda m, y, mean: {"out": m.head(y)[:1], "more": [mean, 3]},
            r"output\['out'\] is a tensor of 1x2 and not a tensor of 2x2",
        ),
        (
            front,
            lambda m, y, mean: m.head(y.unknown),
            "stage 1 of Net raises AttributeError: 'Tensor' object has no attribute 'unknown'",
        ),
        (
            lambda m, x: (*front(m, x), {"more": [object()]}),
            lambda m, y, mean, _: rear(m, y, mean),
            r"stage 0 of Net raises ConfigError: what a stage hands on cannot be sent: "
            r"\[2\]\['more'\]\[0\] is of type object",
        ),
    ],
)
def test_stages_that_do_something_else_are_refused_with_what_and_where(
    front: Callable[..., Any], rear: Callable[..., Any], reason: str
) -> None:
    model = Net()
    with pytest.raises(ConfigError, match=reason):
        check(model, in_parts(model, front, rear))


@pytest.mark.parametrize("chunks", [1, 2])
def test_real_cuts_pass(chunks: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.3),
        nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip
    stages = make_stages(
        model, cut=["_2", "_4", "_6"][: 2 * chunks - 1], num_stages=2, chunks_per_stage=chunks
    )
    check_fidelity(Subject(whole=model, stages=stages, chunks_per_stage=chunks), images, 60.0)


def test_an_uncut_model_with_torchs_own_norms_is_not_run() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True))
    assert not Subject(whole=model, stages=[model]).may_differ


def test_a_norm_that_needs_its_buffers_as_they_are_is_refused() -> None:
    class ByMomentum(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (self.momentum or 0.0)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), ByMomentum(4))
    with pytest.raises(ConfigError, match="with its running statistics gathered is not what"):
        check(model, [model])
    with pytest.raises(ConfigError, match="another result is '1'"):
        check(model, cut_model(model, ["_1"]))


def test_a_model_that_gives_another_result_each_time_is_let_through_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Noisy(Net):
        generator = torch.Generator()

        def features(self, x: Tensor) -> Tensor:
            y = super().features(x)
            return y + torch.randn(y.shape, generator=self.generator)

    model = Noisy()
    with caplog.at_level(logging.INFO):
        check(model, in_parts(model))
    assert "gives another result each time" in caplog.text


def test_two_samples_are_used_and_all_where_the_model_wants_more() -> None:
    sizes: list[int] = []

    class Choosy(Net):
        least = 0

        def features(self, x: Tensor) -> Tensor:
            if self.training and len(x) < self.least:
                raise ValueError("too few")
            sizes.append(len(x))
            return super().features(x)

    model = Choosy()
    check(model, in_parts(model))
    assert set(sizes) == {2}
    sizes.clear()
    model.least = 3
    check(model, in_parts(model))
    assert sizes == [2, 4, 4]


def test_what_cannot_be_compared_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Net):
        def features(self, x: Tensor) -> Tensor:
            raise RuntimeError("wants a GPU")

    model = Broken()
    with caplog.at_level(logging.INFO):
        check(model, in_parts(model))
        assert "does not run on the CPU: RuntimeError: wants a GPU" in caplog.text
        check(Net(), in_parts(Net()), longest_s=0.0)
        assert "would take some" in caplog.text
