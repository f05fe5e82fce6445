"""The course of the learning rate agrees with torch's own schedulers."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.optim.lr import lr_factor

EPOCHS, PER_EPOCH = 4, 5
TOTAL = EPOCHS * PER_EPOCH


def config(schedule: str, warmup: float = 0.0) -> TrainConfig:
    return TrainConfig(
        lr_schedule=schedule, epochs=EPOCHS, warmup_epochs=warmup, lr_step_epochs=1, lr_gamma=0.5
    )


def factors(schedule: str, warmup: float = 0.0) -> list[float]:
    return [lr_factor(config(schedule, warmup), step, PER_EPOCH) for step in range(TOTAL)]


def of_torch(make: type[LRScheduler], **options: object) -> list[float]:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    scheduler = make(optimizer, **options)  # type: ignore[arg-type]
    found = []
    for _ in range(TOTAL):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_is_torchs_cosine() -> None:
    assert factors("cosine") == pytest.approx(of_torch(CosineAnnealingLR, T_max=TOTAL))


def test_step_is_torchs_step() -> None:
    wanted = of_torch(StepLR, step_size=PER_EPOCH, gamma=0.5)
    assert factors("step") == pytest.approx(wanted)


def test_one_cycle_has_torchs_ends_and_top() -> None:
    wanted = of_torch(OneCycleLR, max_lr=1.0, total_steps=TOTAL)
    found = factors("one-cycle")
    assert found[0] == pytest.approx(wanted[0])
    assert found[-1] == pytest.approx(wanted[-1])
    assert max(found) == pytest.approx(1.0, abs=0.01)


def test_constant_stays() -> None:
    assert factors("constant") == [1.0] * TOTAL


def test_warm_up_rises_evenly_and_reaches_the_top_just_after() -> None:
    found = factors("constant", warmup=1.0)
    assert found[:PER_EPOCH] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert found[PER_EPOCH] == 1.0


def in_sequence(main: str, warmup: int, method: str, *, start: float) -> list[float]:
    """What torch's schedulers give that torchvision's reference steps once per epoch."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler: LRScheduler
    match main:
        case "cosine":
            scheduler = CosineAnnealingLR(optimizer, T_max=EPOCHS - warmup, eta_min=0.1)
        case "step":
            scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
        case _:
            scheduler = ExponentialLR(optimizer, gamma=0.5)
    if warmup:
        is_linear = method == "linear"
        rise: LRScheduler = (
            LinearLR(optimizer, start_factor=start, total_iters=warmup)
            if is_linear
            else ConstantLR(optimizer, factor=start, total_iters=warmup)
        )
        scheduler = SequentialLR(optimizer, [rise, scheduler], milestones=[warmup])
    found = []
    for _ in range(EPOCHS):
        found += [optimizer.param_groups[0]["lr"]] * PER_EPOCH
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("method", ["linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 2])
@pytest.mark.parametrize("main", ["cosine", "step", "exponential"])
def test_by_epoch_it_is_torchs_schedulers_in_sequence(main: str, warmup: int, method: str) -> None:
    config = TrainConfig(
        lr=2.0, lr_min=0.1 if main == "cosine" else 0.0, lr_schedule=main, lr_by="epoch",
        epochs=EPOCHS, warmup_epochs=warmup, warmup_method=method, warmup_decay=0.25,
        lr_step_epochs=1, lr_gamma=0.5,
    )  # fmt: skip

    found = [2.0 * lr_factor(config, step, PER_EPOCH) for step in range(TOTAL)]

    assert found == pytest.approx(in_sequence(main, warmup, method, start=0.25), rel=1e-12)


def test_by_step_a_warm_up_may_begin_anywhere() -> None:
    config = TrainConfig(
        lr_schedule="exponential", lr_gamma=0.5, epochs=4, warmup_epochs=1, warmup_decay=0.2
    )
    found = [lr_factor(config, step, 4) for step in range(12)]
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert (found[4], found[8]) == pytest.approx((1.0, 0.5))


def test_a_constant_warm_up_is_a_hundredth_unless_it_is_said() -> None:
    config = TrainConfig(warmup_epochs=1, warmup_method="constant", lr_schedule="constant")
    assert [lr_factor(config, step, 2) for step in range(3)] == [0.01, 0.01, 1.0]
