"""Runs stages as workers do, in one process, and compares them with the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint as torch_checkpoint

from bundlerun.splits.replay.model import ReplayedModel
from bundlerun.workers.model.fidelity import check_fidelity
from bundlerun.workers.model.trial import Result, Subject, run, staged_pass, whole_pass

Forward = Callable[["Layers", Tensor], Any]


class Layers(nn.Module):
    """Three layers, and a forward that a test gives."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.own = forward

    def forward(self, x: Tensor) -> Any:
        return self.own(self, x)


def layers(forward: Forward) -> Layers:
    torch.manual_seed(0)
    return Layers(forward).double()


def example(num_samples: int = 3) -> Tensor:
    return torch.randn(num_samples, 4, generator=torch.Generator().manual_seed(7)).double()


def subject_of(
    model: nn.Module, inputs: Sequence[Any], cuts: Sequence[str], chunks: int = 1
) -> Subject:
    stages = ReplayedModel(model, inputs).cut(cuts, chunks)
    return Subject(whole=model, stages=stages, chunks_per_stage=chunks)


def assert_same(subject: Subject, inputs: tuple[Any, ...]) -> None:
    """Outputs and gradients are those of the model, in both modes."""
    for training in (False, True):
        own, other = (run(subject, how, inputs, training) for how in (whole_pass, staged_pass))
        assert_close(own, other)
    check_fidelity(subject, lambda: inputs, 1e9)


def assert_close(own: Result, other: Result, tolerance: float = 1e-10) -> None:
    assert [leaf.place for leaf in own.outputs] == [leaf.place for leaf in other.outputs]
    pairs = [(a.value, b.value) for a, b in zip(own.outputs, other.outputs, strict=True)]
    pairs += [(own.gradients[key], other.gradients[key]) for key in own.gradients]
    for one, two in pairs:
        if isinstance(one, Tensor) and isinstance(two, Tensor):
            torch.testing.assert_close(two, one, rtol=tolerance, atol=tolerance)
        else:
            assert one is two or one == two


def checkpointed(layer: nn.Module, *args: Tensor) -> Tensor:
    made: Tensor = torch_checkpoint.checkpoint(layer, *args, use_reentrant=False)
    return made
