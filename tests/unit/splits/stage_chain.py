"""Runs stages as workers do: each receives fresh leaves and sends gradients back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    outputs: list[Tensor]
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def tensors(output: object) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]


def loss_of(output: object) -> Tensor:
    return torch.stack(
        [(t * torch.linspace(-1, 1, t.numel()).view_as(t)).sum() for t in tensors(output)]
    ).sum()


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def run_whole(model: nn.Module, image: Tensor) -> Result:
    output = model(image)
    loss_of(output).backward()
    return result([model], output)


def run_chain(stages: Sequence[nn.Module], image: Tensor) -> Result:
    received: list[tuple[Tensor, ...]] = []
    sent: list[tuple[Tensor, ...]] = []
    inputs: tuple[Tensor, ...] = (image,)
    for stage in stages[:-1]:
        received.append(inputs)
        sent.append(stage(*inputs))
        inputs = tuple(leaf(t) for t in sent[-1])
    output = stages[-1](*inputs)
    loss_of(output).backward()
    for mine, outputs in zip(reversed(received), reversed(sent), strict=True):
        pairs = [(t, r.grad) for t, r in zip(outputs, inputs, strict=True) if t.requires_grad]
        torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
        inputs = mine
    return result(stages, output)


def result(stages: Sequence[nn.Module], output: object) -> Result:
    return Result(
        outputs=[t.detach() for t in tensors(output)],
        gradients={n: p.grad for n, p in named(stages, "named_parameters") if p.grad is not None},
        buffers=dict(named(stages, "named_buffers")),
    )


def named(stages: Sequence[nn.Module], kind: str) -> Iterator[tuple[str, Tensor]]:
    for stage in stages:
        yield from getattr(stage, kind)()


def assert_same(a: Result, b: Result) -> None:
    assert [t.shape for t in a.outputs] == [t.shape for t in b.outputs]
    assert all(map(torch.equal, a.outputs, b.outputs))
    for mine, other in ((a.gradients, b.gradients), (a.buffers, b.buffers)):
        assert mine.keys() == other.keys()
        assert [name for name in mine if not torch.equal(mine[name], other[name])] == []
