"""What a loss may give, and how one is found that is a mean over something else than samples."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.optim.update import StepLoss
from bundlerun.workers.pipeline.loss import LossCheck, share_of
from bundlerun.workers.step import StepShare

CPU = torch.device("cpu")
WEIGHT = torch.tensor([1.0, 10.0])


class Losses:
    """A recipe that counts the calls of its loss."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        self._function = function
        self.count = 0
        self.calls: list[int] = []
        self.norm = nn.BatchNorm1d(2)

    def loss(self, output: Any, target: Any) -> Any:
        self.count += 1
        self.calls.append(len(output))
        self.norm(torch.ones(2, 2))
        return self._function(output, target)


def look(function: Callable[[Tensor, Tensor], Any], *sizes: int) -> Losses:
    recipe: Any = Losses(function)
    check = LossCheck(recipe, CPU)
    generator = torch.Generator().manual_seed(1)
    first = 0
    for size in sizes:
        output = torch.randn(size, 2, generator=generator, requires_grad=True)
        target = torch.arange(first, first + size) % 3 % 2
        first += size
        found = function(output, target)
        check.look(found, output, target, size)
    losses: Losses = recipe
    return losses


@pytest.mark.parametrize("sizes", [(4, 4), (1, 1, 1), (16,)])
def test_class_weights_are_found_whatever_the_micro_batch(
    sizes: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    look(lambda o, t: cross_entropy(o, t, weight=WEIGHT), *sizes)
    assert len(caplog.records) == 1, "told once"
    assert "is no mean over samples" in caplog.text
    assert "return (sum, weight)" in caplog.text


@pytest.mark.parametrize(
    "function",
    [
        cross_entropy,
        lambda o, t: mse_loss(o[:, 0], t.float()),
        lambda o, t: (cross_entropy(o, t, weight=WEIGHT, reduction="sum"), WEIGHT[t].sum()),
        lambda o, t: cross_entropy(o * torch.rand(()), t, weight=WEIGHT),
        lambda o, t: cross_entropy(o, t) * float("nan"),
    ],
    ids=["mean", "squares", "says its weight", "is random", "is nan"],
)
def test_nothing_is_said_of_other_losses(
    function: Callable[[Tensor, Tensor], Any], caplog: pytest.LogCaptureFixture
) -> None:
    look(function, 4, 1, 1, 8)
    assert not caplog.records


def test_comparing_changes_nothing_of_the_recipe_and_draws_no_number() -> None:
    before = torch.get_rng_state(), random.getstate()

    def draws(output: Tensor, target: Tensor) -> Tensor:
        torch.rand(3)
        random.random()
        return cross_entropy(output, target)

    recipe: Any = Losses(draws)
    output = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    LossCheck(recipe, CPU).look(torch.zeros(()), output, torch.zeros(4, dtype=torch.long), 4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (recipe.count, recipe.calls) == (0, [])
    assert recipe.norm.num_batches_tracked == 0


def test_a_loss_that_takes_no_single_sample_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    look(lambda o, t: cross_entropy(o.view(2, -1, 2).flatten(0, 1), t), 4, 4)
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_a_large_model_in_the_recipe_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundlerun.workers.pipeline.loss._MOST_COPIED_BYTES", 7)
    recipe = look(lambda o, t: cross_entropy(o, t, weight=WEIGHT), 4)
    assert recipe.calls == []


def test_no_more_than_some_samples_are_looked_at() -> None:
    count = 0

    def counted(output: Tensor, target: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return cross_entropy(output, target)

    recipe: Any = Losses(counted)
    check = LossCheck(recipe, CPU)
    for _ in range(50):
        check.look(torch.zeros(()), torch.zeros(8, 2), torch.zeros(8, dtype=torch.long), 8)
    assert count == LossCheck.SAMPLES // 8 * (2 + 8)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (3.0, "loss.. gives float, not a mean"),
        (None, "loss.. gives NoneType, not"),
        (torch.zeros(2), r"gives the shape \[2\], not"),
        ((torch.zeros(()), torch.zeros(2)), r"the weight of loss.. gives the shape \[2\]"),
        ((torch.zeros(()), "a"), "a weight of type str"),
        ((torch.zeros(()), None), "a weight of type NoneType"),
    ],
)
def test_other_things_are_refused(found: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        share_of(found, 2, 4)


def test_shares_add_up_to_the_loss_of_the_step() -> None:
    one, other = share_of(torch.tensor(1.0), 3, 4), share_of(torch.tensor(5.0), 1, 4)
    assert StepLoss(float(one.loss + other.loss), 0.0, 0.0).mean(4) == 2.0
    one, other = share_of((torch.tensor(1.0), 3), 1, 4), share_of((torch.tensor(8.0), 6.0), 3, 4)
    assert StepLoss(float(one.loss + other.loss), 9.0, 1.0).mean(4) == 1.0


def test_a_step_in_which_nothing_counts_has_the_loss_zero() -> None:
    nothing = share_of((torch.tensor(0.0), torch.tensor(0)), 4, 4)
    step = StepLoss(float(nothing.loss), 0.0, 1.0)
    assert (step.mean(4), step.scale(4)) == (0.0, 0.0)


def test_weights_add_up_whatever_their_dtype() -> None:
    outcome = StepShare()
    for _ in range(3):
        found = torch.tensor(1.0), torch.tensor(255, dtype=torch.bfloat16)
        outcome.add(share_of(found, 1, 3), {})
    assert outcome.weight == 765.0


@pytest.mark.parametrize("is_weighted", [True, False])
def test_losses_are_of_one_kind_in_all_micro_batches(is_weighted: bool) -> None:
    one = torch.tensor(1.0)
    outcome = StepShare()
    outcome.add(share_of((one, 2) if is_weighted else one, 1, 2), {})
    with pytest.raises(ConfigError, match="for some micro-batches and a mean for others"):
        outcome.add(share_of(one if is_weighted else (one, 2), 1, 2), {})
