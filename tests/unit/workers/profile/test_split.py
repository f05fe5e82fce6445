"""What a backward takes longer in two passes, by a clock that says what it is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.planning.model_costs import ModelCosts, Piece
from bundlerun.splits.profile.passes import Subject
from bundlerun.workers.profile.profiled import with_split
from bundlerun.workers.profile.split import split_share


class Told:
    """The backwards take what it is told, in turn."""

    def __init__(self, *seconds: float) -> None:
        self._seconds: Iterator[float] = iter(seconds)

    def mark(self) -> float:
        """Nothing: what is between two of them is told."""
        return 0.0

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """What comes next."""
        assert len(marks) == 2
        return [next(self._seconds)]


class InPlace(nn.Module):
    """Overwrites its input, as a stage may."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """A number per row."""
        x += 1
        made: Tensor = self.line(x)
        return made


def subject(model: nn.Module, given: Tensor) -> Subject:
    return Subject(
        forward=lambda _, x: model(x),
        count=1,
        inputs=lambda: (given.clone(),),
        judge=lambda output: output.sum(),
    )


@pytest.mark.parametrize(
    ("whole", "split", "share"), [((2.0, 4.0), (5.0, 3.0), 0.5), ((2.0, 2.0), (1.5, 1.5), 0.0)]
)
def test_the_least_of_each_counts(
    whole: tuple[float, float], split: tuple[float, float], share: float
) -> None:
    clock = Told(whole[0], split[0], whole[1], split[1])
    assert split_share(InPlace(), subject(InPlace(), torch.ones(2, 3)), clock) == share


def test_both_make_the_same_gradients() -> None:
    model = InPlace()
    split_share(model, subject(model, torch.ones(2, 3)), Told(*[1.0] * 4))
    # Two tries of each: four times the gradient of one pass, which is the input's sum.
    assert model.line.weight.grad is not None
    assert model.line.weight.grad.tolist() == [[16.0] * 3]


def test_tokens_have_no_gradients() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 1))
    assert split_share(model, subject(model, torch.tensor([1, 2])), Told(*[1.0] * 4)) == 0
    assert all(p.grad is not None for p in model.parameters())


def test_each_piece_has_its_share() -> None:
    costs = ModelCosts(samples=1, pieces=(Piece(backward_s=2.0),), boundaries=())
    assert with_split(costs, 0.25).pieces[0].split_s == 0.5
