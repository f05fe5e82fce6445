"""What a forward does beside operations is kept in a cut model, or refused by name."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.graph import boundary_names, cut_model
from tests.unit.splits.stage_chain import assert_same, run_chain, run_whole

Body = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """A front, something in between, a rear."""

    def __init__(self, body: Body | nn.Module) -> None:
        super().__init__()
        self.front = nn.Linear(4, 4)
        self.mid = nn.Linear(4, 4)
        self.rear = nn.Linear(4, 3)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x)
        x = self.body(x) if isinstance(self.body, nn.Module) else self.body(self, x)
        return self.rear(x)


class Inside(nn.Module):
    """The same as a submodule."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.mid = nn.Linear(4, 4)
        self.own = body

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


def assert_kept(model: nn.Module, cuts: list[str], *, training: bool = True) -> None:
    model.train(training)
    whole = copy.deepcopy(model)
    image = torch.randn(5, 4)
    for cut in cuts:
        model.zero_grad()
        whole.zero_grad()
        stages = cut_model(model, [cut])
        assert_same(run_chain(stages, image), run_whole(whole, image))
    assert torch.is_grad_enabled()


def fixed_features(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = torch.tanh(net.mid(x))
    return x + y


def no_grad_with_an_island(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = torch.tanh(x)
        with torch.enable_grad():
            z = net.mid(y)
        y = y.exp()
    return x + y + z


def set_by_a_call(net: Any, x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    y = net.mid(x)
    torch.set_grad_enabled(True)
    return x + y


def without_inference(net: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = net.mid(x)
    return x + y.clone()


def half_inside(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net.mid(x)
        with torch.autocast("cpu", enabled=False):
            z = torch.matmul(y.float(), x.float().T) @ x.float()
    return z + y


REGIONS = [fixed_features, no_grad_with_an_island, set_by_a_call, without_inference, half_inside]


@pytest.mark.parametrize("body", REGIONS)
def test_contexts_around_operations_are_kept_on_both_sides_of_a_cut(body: Body) -> None:
    torch.manual_seed(0)
    names = boundary_names(Net(body))
    assert len(names) >= 3
    assert_kept(Net(body), names)


def test_an_autocast_of_the_run_ends_at_an_island_of_the_model() -> None:
    model = Net(half_inside)
    x = torch.randn(5, 4)
    front, rear = cut_model(model, ["matmul"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rear(*front(x)), model(x))
        assert front(x)[0].dtype == torch.bfloat16


def test_a_graph_of_evaluation_enables_gradients_where_the_model_does() -> None:
    seen: list[bool] = []
    model = Net(no_grad_with_an_island).eval()
    front, _ = cut_model(model, ["exp"])
    model.mid.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    with torch.no_grad():
        front(torch.randn(5, 4))
    assert seen == [True]


@pytest.mark.parametrize("body", [fixed_features, half_inside])
def test_a_stage_with_a_region_compiles_without_a_graph_break(body: Body) -> None:
    model = Net(body)
    front, rear = cut_model(model, ["rear"])
    x = torch.randn(5, 4)
    compiled = torch.compile(front, backend="eager", fullgraph=True)
    assert torch.equal(rear(*compiled(x)), model(x))
    assert compiled(x)[0].requires_grad
    assert torch.is_grad_enabled()


GENERATOR = np.random.default_rng(0)


def layer_drop(net: Any, x: Tensor) -> Tensor:
    return x if random.random() < 0.1 else net.mid(x)


def torch_drop(net: Any, x: Tensor) -> Tensor:
    return x if torch.rand(1).item() < 0.1 else net.mid(x)


def numpy_scale(net: Any, x: Tensor) -> Tensor:
    return net.mid(x) * float(np.random.rand())


def own_generator(net: Any, x: Tensor) -> Tensor:
    return net.mid(x) * float(GENERATOR.random())


def random_constant(net: Any, x: Tensor) -> Tensor:
    return net.mid(x) + torch.randn(4)


def counter(net: Any, x: Tensor) -> Tensor:
    net.calls = getattr(net, "calls", 0) + 1
    return net.mid(x)


def keeps(net: Any, x: Tensor) -> Tensor:
    net.features = net.mid(x)
    return net.features


def keeps_in_a_list(net: Any, x: Tensor) -> Tensor:
    net.__dict__.setdefault("all", []).append(net.mid(x))
    return x


def attention(net: Any, x: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return nn.functional.scaled_dot_product_attention(x, net.mid(x), x)


def leaves_a_setting(net: Any, x: Tensor) -> Tensor:
    y = net.mid(x)
    torch.set_float32_matmul_precision("high")
    return y


def saves_elsewhere(net: Any, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return net.mid(x)


class Doubled(torch.autograd.Function):
    """Its backward is none of its forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * 2


doubled = Doubled.apply


def own_backward(net: Any, x: Tensor) -> Tensor:
    return net.mid(Doubled.apply(x))


def own_backward_by_another_name(net: Any, x: Tensor) -> Tensor:
    return net.mid(doubled(x))


def computed_again(net: Any, x: Tensor) -> Tensor:
    return checkpoint(net.mid, x, use_reentrant=False)  # type: ignore[no-any-return]


def computed_again_in_the_old_way(net: Any, x: Tensor) -> Tensor:
    return checkpoint(net.mid, x, use_reentrant=True)  # type: ignore[no-any-return]


BESIDE: dict[Body, str] = {
    computed_again: r"sets hooks on saved tensors \(activation checkpointing does\)",
    computed_again_in_the_old_way: "applies the autograd function CheckpointFunction",
    layer_drop: r"draws random numbers \(Python's random\)",
    torch_drop: r"draws random numbers \(torch\)",
    numpy_scale: r"draws random numbers \(numpy\)",
    own_generator: "does not do the same in each call: 'mul' is the first to differ",
    random_constant: r"draws random numbers \(torch\)",
    counter: "changes 'calls' in each call",
    keeps: "keeps a result in 'features'",
    keeps_in_a_list: "keeps a result in 'all'",
    attention: "sets the kernels of attention",
    leaves_a_setting: "sets the precision of matrix products",
    saves_elsewhere: "sets hooks on saved tensors",
    own_backward: "applies the autograd function Doubled",
    own_backward_by_another_name: "applies the autograd function Doubled",
}


@pytest.fixture(autouse=True)
def _matmul_precision_kept() -> Any:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("body", BESIDE)
def test_what_no_graph_keeps_is_refused_by_name(body: Body) -> None:
    model = Net(body)
    before = dict(vars(model))
    state = random.getstate(), torch.get_rng_state().sum()
    with pytest.raises(ConfigError, match=f"cannot cut Net: its own forward {BESIDE[body]}"):
        cut_model(model, ["rear"])
    assert dict(vars(model)) == before
    assert (random.getstate(), torch.get_rng_state().sum()) == state


@pytest.mark.parametrize("body", BESIDE)
def test_a_submodule_that_does_it_is_taken_whole_and_does_it(body: Body) -> None:
    model = Net(Inside(body))
    assert boundary_names(model) == ["body", "rear"]
    whole = copy.deepcopy(model)
    stages = cut_model(model, ["body"])
    image = torch.randn(5, 4)
    results = []
    for run in (lambda: run_chain(stages, image), lambda: run_whole(whole, image)):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        GENERATOR.bit_generator.state = np.random.default_rng(0).bit_generator.state
        results.append(run())
    assert_same(*results)


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
