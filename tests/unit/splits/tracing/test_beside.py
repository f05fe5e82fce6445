"""What a forward does beside operations is kept in a cut model, or refused by name."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.graph.model import boundary_names, cut_model
from tests.unit.splits.stage_chain import assert_same, run_chain, run_whole
from tests.unit.splits.tracing.kept_nets import Body, Inside, Net, assert_kept, fixed_features


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
