"""What a step does to one stage's parameters, without other ranks."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError, DivergedError
from bundlerun.launcher.layout.topology import Place
from bundlerun.workers.optim import update
from bundlerun.workers.optim.loss_scale import INITIAL, LossScale
from bundlerun.workers.optim.param_groups import ParamGroups
from bundlerun.workers.optim.update import MOST_LEFT_OUT, StepLoss, Update


class Alone:
    """A session of one rank; `others` are what the stages in front say."""

    is_reporter = True

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.topology = self
        self.place = Place(0, 0, 0, bundle=0, stage=0, replica=0, is_local_master=True)
        self.positions = [(0, 0)]
        self.count = 0

    def gather_bundle(self, value: object) -> list[object]:
        self.count += 1
        return [value]


class Case:
    def __init__(self, **options: Any) -> None:
        self.model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        self.session: Any = Alone()
        config = TrainConfig(data="x", lr=1.0, lr_schedule="constant", **options)
        groups = ParamGroups(optimizer)
        self.scale = LossScale.of(config)
        self._update = Update(config, self.session, self.model, optimizer, groups, self.scale)
        self._step = 0

    @torch.no_grad()
    def step(self, loss: StepLoss, gradient: float = 3.0) -> list[float]:
        """What a step changes; nothing where it was left out."""
        before = self.model.weight.clone()
        self.model.weight.grad = torch.full((1, 2), gradient)
        self._update.go_ahead(self._step, 9)
        self.was_ahead = not torch.equal(before, self.model.weight)
        norms = self._update.norms().tolist()
        counts = self._update.apply(loss, norms, num_samples=4, step=self._step, steps_per_epoch=9)
        self._step += 1
        moved = (before - self.model.weight).flatten().tolist()
        return moved if counts else []


PLAIN = StepLoss(1.0, 0.0, 0.0)
NAN = StepLoss(float("nan"), 0.0, 0.0)


def test_a_gpu_gets_the_optimizers_work_before_numbers_that_change_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case()
    assert [case.step(PLAIN) for _ in range(2)] == [[3.0, 3.0]] * 2
    assert not case.was_ahead, "on the CPU"
    monkeypatch.setattr(update, "is_gpu", lambda device: True)
    case = Case()
    assert case.step(PLAIN) == [3.0, 3.0]
    assert not case.was_ahead, "whether losses say a weight is known after the first step"
    assert case.step(PLAIN) == [3.0, 3.0]
    assert case.was_ahead
    with pytest.raises(DivergedError):
        case.step(NAN)
    weighted = StepLoss(1.0, 8.0, 1.0)
    for options, loss in (({"clip_norm": 9.0}, PLAIN), ({"on_nan": "skip"}, PLAIN), ({}, weighted)):
        case = Case(**options)
        assert case.step(loss) == case.step(loss)
        assert not case.was_ahead


def test_gradients_are_scaled_by_the_weight_and_then_clipped() -> None:
    assert Case().step(PLAIN) == [3.0, 3.0]
    assert Case().step(StepLoss(1.0, 8.0, 1.0)) == [1.5, 1.5]
    assert Case().step(StepLoss(0.0, 0.0, 1.0)) == [0.0, 0.0]
    clipped = Case(clip_norm=2**0.5).step(StepLoss(1.0, 8.0, 1.0))
    assert clipped == pytest.approx([1.0, 1.0], rel=1e-5)
    assert Case(clip_norm=9.0).step(StepLoss(1.0, 8.0, 1.0)) == [1.5, 1.5]


@torch.no_grad()
def test_norms_and_clipping_are_torchs_own_to_twelve_digits() -> None:
    """Squares are added up in float64, but in another order: bits of a sum may differ."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 50, 7), nn.Linear(300, 200), nn.Linear(1, 0)).double()
    own = copy.deepcopy(model)
    for p, q in zip(model.parameters(), own.parameters(), strict=True):
        p.grad = torch.randn_like(p) * 1e3
        q.grad = p.grad.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    config = TrainConfig(data="x", lr=1.0, lr_schedule="constant", clip_norm=0.7)
    session: Any = Alone()
    update = Update(config, session, model, optimizer, ParamGroups(optimizer), LossScale())
    norms = update.norms().tolist()
    total = nn.utils.clip_grad_norm_(own.parameters(), 0.7)
    assert math.sqrt(math.fsum(n * n for n in norms)) == pytest.approx(float(total), rel=1e-12)
    update.apply(PLAIN, norms, num_samples=1, step=0, steps_per_epoch=9)
    for p, q in zip(model.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=0)


def test_squares_of_large_gradients_are_finite() -> None:
    clipped = Case(clip_norm=2**0.5).step(PLAIN, gradient=1e30)
    assert clipped == pytest.approx([1.0, 1.0], rel=1e-5)


def test_ranks_ask_each_other_once_only_where_nothing_needs_it() -> None:
    plain, weighted, clipped = Case(), Case(), Case(clip_norm=1.0)
    for _ in range(3):
        plain.step(PLAIN)
        weighted.step(StepLoss(1.0, 8.0, 1.0))
        clipped.step(PLAIN)
    counts = [case.session.count for case in (plain, weighted, clipped)]
    assert counts == [1, 3, 3]


def test_losses_are_of_one_kind_in_all_steps() -> None:
    case = Case()
    case.step(PLAIN)
    with pytest.raises(ConfigError, match="in some steps and a mean in others"):
        case.step(StepLoss(1.0, 8.0, 1.0))


@pytest.mark.parametrize(
    ("options", "loss", "gradient", "message"),
    [
        ({}, NAN, 3.0, "the loss of step 1 is nan; nothing of this step"),
        ({}, StepLoss(float("inf"), 0.0, 0.0), 3.0, "the loss of step 1 is inf"),
        ({"clip_norm": 1.0}, PLAIN, float("nan"), "the gradient of step 1 is no finite number"),
    ],
)
def test_what_is_no_number_ends_the_run_before_it_changes_anything(
    options: dict[str, Any], loss: StepLoss, gradient: float, message: str
) -> None:
    case = Case(**options)
    with pytest.raises(DivergedError, match=message):
        case.step(loss, gradient)
    assert case.model.weight.flatten().tolist() == [0.0, 0.0]


def test_steps_are_left_out_or_taken_as_the_option_says(caplog: pytest.LogCaptureFixture) -> None:
    case = Case(on_nan="skip")
    assert case.step(NAN) == []
    assert case.step(PLAIN, float("inf")) == []
    assert case.step(PLAIN) == [3.0, 3.0]
    assert [record.message for record in caplog.records] == [
        "the loss of step 1 is nan: the step is left out",
        "the gradient of step 2 is no finite number: the step is left out",
    ]
    assert Case(on_nan="ignore").step(NAN) == [3.0, 3.0]


SCALED = 3.0 * INITIAL


@pytest.mark.parametrize("on_nan", ["stop", "skip", "ignore"])
def test_gradients_that_the_loss_scale_makes_too_large_are_left_out(
    on_nan: str, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case(precision="float16", on_nan=on_nan)
    assert case.step(PLAIN, SCALED) == [3.0, 3.0]
    assert case.step(PLAIN, float("inf")) == []
    assert case.step(PLAIN, float("nan")) == []
    assert case.scale.kept == (INITIAL / 4, 0)
    assert case.step(PLAIN, SCALED / 4) == [3.0, 3.0]
    assert case.scale.kept == (INITIAL / 4, 1)
    told = [] if on_nan == "ignore" else [
        f"the gradient of step {step} is no finite number, at the loss scale {scale}, which is "
        "halved: the step is left out"
        for step, scale in ((2, "65536"), (3, "32768"))
    ]  # fmt: skip
    assert [record.message for record in caplog.records] == told


def test_a_loss_that_is_no_number_is_not_the_fault_of_the_loss_scale() -> None:
    with pytest.raises(DivergedError, match="the loss of step 1 is nan"):
        Case(precision="float16").step(NAN, float("nan"))
    case = Case(precision="float16", on_nan="skip")
    assert case.step(NAN, SCALED) == []
    assert case.scale.kept == (INITIAL / 2, 0)
    case = Case(precision="float16", on_nan="ignore")
    assert case.step(NAN, SCALED) == [3.0, 3.0]  # as torch's scaler, which sees no loss


def test_clipping_comes_after_the_loss_scale() -> None:
    for options in ({"clip_norm": 2**0.5}, {"clip_norm": 9.0}):
        for loss in (PLAIN, StepLoss(1.0, 8.0, 1.0)):
            plain = Case(**options).step(loss)
            assert Case(precision="float16", **options).step(loss, SCALED) == plain


def test_gradients_that_stay_infinite_end_the_run() -> None:
    case = Case(precision="float16")
    for _ in range(MOST_LEFT_OUT - 1):
        case.step(PLAIN, float("inf"))
    with pytest.raises(DivergedError, match=f"as in the {MOST_LEFT_OUT - 1} steps before"):
        case.step(PLAIN, float("inf"))


def test_no_run_leaves_all_steps_out() -> None:
    case = Case(on_nan="skip")
    for _ in range(MOST_LEFT_OUT - 1):
        case.step(NAN)
    with pytest.raises(DivergedError, match=f"as in the {MOST_LEFT_OUT - 1} steps before"):
        case.step(NAN)
