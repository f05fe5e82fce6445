"""What modules, their hooks and their arguments do is kept in a cut model, or refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.graph.model import boundary_names, cut_model
from tests.unit.splits.stage_chain import run_chain, run_whole
from tests.unit.splits.tracing.kept_nets import Net, assert_kept, fixed_features


class Caches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.cache["twice"] = self.scale * 2
        return x * self.cache["twice"]


class ReplacesBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.get_buffer("calls") + 1
        return x * self.calls


class RegistersBuffer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "mask"):
            self.register_buffer("mask", torch.full((4,), 2.0))
        return x * self.get_buffer("mask")


@pytest.mark.parametrize("kind", [ReplacesBuffer, RegistersBuffer])
def test_a_module_that_makes_a_buffer_is_taken_whole_and_left_as_it_was(
    kind: type[nn.Module],
) -> None:
    model = Net(kind())
    buffers = dict(model.body.named_buffers())
    assert "body" in boundary_names(model)
    assert dict(model.body.named_buffers()) == buffers
    assert_kept(model, ["body"])


class AlsoCaches(Caches):
    """Another class, so it is found after the first."""


def test_several_modules_with_caches_are_taken_whole_one_after_the_other() -> None:
    model = nn.Sequential(Caches(), nn.Linear(4, 4), AlsoCaches(), nn.Linear(4, 4))
    assert boundary_names(model) == ["1", "2", "3"]
    assert not model[0].cache
    assert not model[2].cache
    assert_kept(model, ["1", "2", "3"], training=False)


def test_a_hook_on_a_container_runs_in_its_stage() -> None:
    model = Net(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    calls: list[torch.Size] = []
    assert isinstance(model.body, nn.Module)
    model.body.register_forward_hook(lambda _m, _i, out: calls.append(out.shape))
    front, _ = cut_model(model, ["rear"])
    assert not calls
    front(torch.randn(5, 4))
    front(torch.randn(2, 4))
    assert calls == [(5, 4), (2, 4)]


def test_a_backward_hook_on_a_container_runs_in_its_stage() -> None:
    model = Net(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    assert isinstance(model.body, nn.Module)
    model.body.register_full_backward_hook(lambda _m, into, _out: (into[0] * 3,))
    assert_kept(model, ["body", "rear"])


def test_hooks_on_the_model_itself_are_refused() -> None:
    model = Net(fixed_features)
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match="has hooks on the model itself; give them to a"):
        cut_model(model, ["rear"])


class Options(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *more: Tensor, scale: float = 2.0, **rest: int
    ) -> Tensor:
        x = self.a(x) * scale
        if mask is not None:
            x = x * mask
        for other in more:
            x = x - other
        assert not rest
        return self.b(x)


@pytest.mark.parametrize("num_inputs", [1, 2, 4])
def test_arguments_that_the_data_does_not_give_have_their_defaults(num_inputs: int) -> None:
    model = Options()
    inputs = [torch.randn(5, 4) for _ in range(num_inputs)]
    front, rear = cut_model(model, ["b"], num_inputs=num_inputs)
    assert torch.equal(rear(*front(*inputs)), model(*inputs))


def test_a_forward_of_the_instance_is_the_one_that_counts() -> None:
    model = Net(fixed_features)
    model.forward = lambda x: model.rear(model.front(x))  # type: ignore[method-assign]
    x = torch.randn(5, 4)
    front, rear = cut_model(model, ["rear"])
    assert torch.equal(rear(*front(x)), model(x))


class Aliased(nn.Module):
    """Two names of one tensor, of which one is changed in place by an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        kept = x
        flat = x.view(-1)
        x += 1
        x *= 2
        y = self.b(x)
        y -= kept
        return y * flat.sum()


def test_what_an_operator_changes_in_place_is_changed_under_all_names() -> None:
    for cut in boundary_names(Aliased()):
        torch.manual_seed(0)
        model = Aliased().double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randint_like(parameter, -3, 4))  # sums are exact
        whole = copy.deepcopy(model)
        image = torch.randint(-3, 4, (5, 4)).double()
        got, right = run_chain(cut_model(model, [cut]), image), run_whole(whole, image)
        assert torch.equal(got.outputs[0], right.outputs[0])
        for name, gradient in right.gradients.items():
            torch.testing.assert_close(got.gradients[name], gradient)


def asserts(net: Any, x: Tensor) -> Tensor:
    torch._assert(x.dim() == 2, "rows of numbers")
    return net.mid(x)


def test_a_default_device_around_the_trace_is_no_setting_of_the_model() -> None:
    with torch.device("meta"):
        assert len(cut_model(Net(asserts), ["mid"])) == 2
