"""The course of the learning rate agrees with torch's own schedulers."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, StepLR

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
