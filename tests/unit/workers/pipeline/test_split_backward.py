"""An input pass and a weight pass give what one backward gives, to the bit."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from bundlerun.workers.pipeline.split_backward import input_pass

ONE = torch.tensor(1.0)
Made = tuple[nn.Module, list[Tensor]]
"""A stage that takes and returns tensors, and what it is called with."""


class Calls(nn.Module):
    """A module of a function over its own submodules."""

    def __init__(
        self, function: Callable[..., Tensor | tuple[Tensor, ...]], **modules: nn.Module
    ) -> None:
        super().__init__()
        self.m = nn.ModuleDict(modules)
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(self.m, *inputs)


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def rows() -> Tensor:
    return torch.randn(3, 4)


def plain() -> Made:
    return nn.Sequential(linear(), nn.Tanh(), linear(), nn.ReLU(), linear()), [rows()]


def convolutions() -> Made:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)
    ), [torch.randn(2, 3, 8, 8)]


def attention() -> Made:
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True), [
        torch.randn(2, 3, 4)
    ]


def used_twice() -> Made:
    module = Calls(
        lambda m, x: m.b(torch.tanh(m.a(torch.tanh(m.a(x))))) + x, a=linear(), b=linear()
    )
    return module, [rows()]


def used_twice_and_beside_the_path() -> Made:
    module = Calls(lambda m, x: (m.a(m.b(m.a(x)).sin()), m.a.weight * 2), a=linear(), b=linear())
    return module, [rows()]


def off_the_path() -> Made:
    module = Calls(lambda m, x: (m.a(x), m.b.weight.tanh() @ m.b.weight), a=linear(), b=linear())
    return module, [rows()]


def unused_and_frozen() -> Made:
    module = Calls(lambda m, x: m.c(m.a(x)), a=linear(), b=linear(), c=linear())
    module.m["a"].weight.requires_grad_(False)
    return module, [rows()]


def tensor_passed_through() -> Made:
    return Calls(lambda m, x, y: (m.a(x) * y, x), a=linear()), [rows(), rows()]


def input_unused() -> Made:
    return Calls(lambda m, x, y: m.a(x), a=linear()), [rows(), rows()]


def views_of_one_result() -> Made:
    return Calls(lambda m, x: m.a(x).chunk(2, dim=1), a=linear()), [rows()]


def weights_worked_on() -> Made:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(linear()), linear()), [rows()]


def recurrent() -> Made:
    return Calls(lambda m, x: m.a(x)[0], a=nn.LSTM(4, 4, 2)), [torch.randn(5, 3, 4)]


def recomputed() -> Made:
    def forward(m: nn.ModuleDict, x: Tensor) -> Tensor:
        return m.b(checkpoint(m.a, x, use_reentrant=False))

    return Calls(forward, a=linear(), b=linear()), [rows()]


class Scaled(torch.autograd.Function):
    """Works out both gradients at once, as a batch norm of cuDNN does."""

    num_backwards = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        Scaled.num_backwards += 1
        x, weight = ctx.saved_tensors
        return gradient * weight, (gradient * x).sum(0)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return Scaled.apply(x, self.weight)


def all_at_once() -> Made:
    return nn.Sequential(linear(), Scale(), nn.Tanh(), Scale(), linear()), [rows()]


def all_at_once_and_used_elsewhere() -> Made:
    module = Calls(
        lambda m, x: (m.s(torch.tanh(m.s(m.a(x)) + m.s.weight)), m.s.weight.sin()),
        a=linear(),
        s=Scale(),
    )
    return module, [rows()]


def weightless() -> Made:
    return nn.Tanh(), [rows()]


ALL = [
    plain,
    convolutions,
    attention,
    used_twice,
    used_twice_and_beside_the_path,
    off_the_path,
    unused_and_frozen,
    tensor_passed_through,
    input_unused,
    views_of_one_result,
    weights_worked_on,
    recurrent,
    recomputed,
    all_at_once,
    all_at_once_and_used_elsewhere,
    weightless,
]


def run(module: nn.Module, inputs: Sequence[Tensor], *, autocast: bool = False) -> list[Tensor]:
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        result = module(*inputs)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    return [t for t in outputs if t.requires_grad]


def edges(outputs: Sequence[Tensor]) -> list[GradientEdge]:
    return [get_gradient_edge(t) for t in outputs]


def leaves(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [x.clone().requires_grad_() for x in inputs]


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_two_passes_are_one_backward(make: Callable[[], Made], autocast: bool) -> None:
    torch.manual_seed(1)
    module, given = make()
    whole, split = leaves(given), leaves(given)
    outputs = run(module, whole, autocast=autocast)
    torch.manual_seed(3)
    sent = [torch.randn_like(t) for t in outputs]
    torch.autograd.backward(outputs, sent)
    wanted = gradients_of(module)

    inputs, rest = input_pass(edges(run(module, split, autocast=autocast)), sent, split)
    assert not gradients_of(module)
    rest.run()

    assert_same(gradients_of(module), wanted)
    for found, x in zip(inputs, whole, strict=True):
        assert (found is None) == (x.grad is None)
        assert found is None or x.grad is None or torch.equal(found, x.grad)


def test_hooks_see_each_weight_once_and_only_in_the_weight_pass() -> None:
    module, given = used_twice()
    seen: list[Tensor] = []
    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(seen.append)
    inputs = leaves(given)
    _, rest = input_pass(edges([run(module, inputs)[0].sum()]), [ONE], inputs)
    assert not seen
    rest.run()
    assert sorted(map(id, seen)) == sorted(map(id, module.parameters()))


def test_a_node_that_works_out_all_gradients_at_once_runs_once() -> None:
    module, given = all_at_once()
    inputs = leaves(given)
    Scaled.num_backwards = 0
    _, rest = input_pass(edges([run(module, inputs)[0].sum()]), [ONE], inputs)
    assert Scaled.num_backwards == 2
    assert not gradients_of(module)
    rest.run()
    assert Scaled.num_backwards == 2
    assert len(gradients_of(module)) == 6


class NormBackwards(TorchDispatchMode):
    """Counts the backwards of norms."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        self.count += "_norm_backward" in str(func)
        return func(*args, **(kwargs or {}))


def normed(norm: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(4, 4, 1))


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(4), nn.LayerNorm(8), nn.GroupNorm(2, 4)],
    ids=lambda norm: type(norm).__name__,
)
def test_a_norm_has_one_backward(norm: nn.Module) -> None:
    """Its sums over the batch are needed for both; without weights' part they take as long."""
    module, given = normed(norm), [torch.randn(2, 4, 8, 8)]
    whole, split = leaves(given), leaves(given)
    run(module, whole)[0].sum().backward()
    expected = gradients_of(module)
    output = run(module, split)[0].sum()
    with NormBackwards() as norms:
        found, rest = input_pass(edges([output]), [ONE], split)
        rest.run()
    assert norms.count == 1
    assert_same(gradients_of(module), expected)
    assert found[0] is not None
    assert whole[0].grad is not None
    assert torch.equal(found[0], whole[0].grad)


def test_a_hook_of_a_weight_sees_its_gradient_once() -> None:
    module, given = all_at_once()
    seen: list[Tensor] = []

    def double(gradient: Tensor) -> Tensor:
        seen.append(gradient)
        return 2 * gradient

    module[1].weight.register_hook(double)
    whole, split = leaves(given), leaves(given)
    run(module, whole)[0].sum().backward()
    expected = gradients_of(module)
    _, rest = input_pass(edges([run(module, split)[0].sum()]), [ONE], split)
    rest.run()
    assert len(seen) == 2
    assert_same(gradients_of(module), expected)


def test_gradients_add_up_over_microbatches_in_any_order_of_weight_passes() -> None:
    module, _ = plain()
    given = [leaves([rows()]) for _ in range(3)]
    for x in given:
        run(module, x)[0].sum().backward()
    wanted = gradients_of(module)
    rests = [input_pass(edges([run(module, x)[0].sum()]), [ONE], x)[1] for x in given]
    for rest in rests:
        rest.run()
    assert_same(gradients_of(module), wanted)


def test_the_weight_pass_lets_the_activations_go() -> None:
    class Traced(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            held.append(weakref.ref(ctx))
            return x.clone()

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
            return gradient

    held: list[weakref.ref[object]] = []
    module = Calls(lambda m, x: m.b(Traced.apply(m.a(x))), a=linear(), b=linear())
    inputs = leaves([rows()])
    gc.disable()
    try:
        _, rest = input_pass(edges([run(module, inputs)[0].sum()]), [ONE], inputs)
        assert held[0]() is not None
        rest.run()
        assert held[0]() is None
    finally:
        gc.enable()
