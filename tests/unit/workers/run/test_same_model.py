"""Ranks that have made different models are told so, with names, before a step is tried."""

from __future__ import annotations

import pytest
from torch import nn

from bundlerun.workers.run.same_model import described, difference_of


def model(width: int, more: int = 0) -> list[nn.Module]:
    front = nn.Sequential(nn.Linear(4, width), *(nn.Linear(2, 2) for _ in range(more)))
    return [front, nn.BatchNorm1d(width)]


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (
            model(9),
            "0.weight of stage 0 is (8, 4) float32 on rank 0 on a and (9, 4) float32 on rank 3 on "
            "b; and 5 more differ",
        ),
        (
            model(8, 1),
            "1.weight of stage 0 is not there on rank 0 on a and (2, 2) float32 on rank 3 on b; "
            "and 1 more differ",
        ),
        (
            [model(8)[0].double(), model(8)[1]],
            "0.weight of stage 0 is (8, 4) float32 on rank 0 on a and (8, 4) float64 on rank 3",
        ),
        ([*model(8)[:1], nn.Identity(), model(8)[1]], "weight of stage 1 is (8,) float32 on rank"),
    ],
)
def test_the_first_difference_is_named(other: list[nn.Module], text: str) -> None:
    said = difference_of("rank 0 on a", described(model(8)), "rank 3 on b", described(other))
    assert said.startswith("ranks have made different models: ")
    assert text in said


def test_another_order_is_another_model() -> None:
    one = {"a of stage 0": "(1,) float32", "b of stage 0": "(1,) float32"}
    other = dict(reversed(one.items()))
    said = difference_of("rank 0 on a", one, "rank 1 on a", other)
    assert "comes a of stage 0 on rank 0 on a and b of stage 0 on rank 1 on a" in said
