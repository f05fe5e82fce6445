"""The course of the learning rate: a pure function of the step."""

from __future__ import annotations

import math

from bundlerun.launcher.config import TrainConfig

_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = _ONE_CYCLE_START / 1e4
_ONE_CYCLE_RISE = 0.3


def lr_factor(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of `step` (from 0) over its highest value.

    Source: warm-up and cosine: Goyal et al. 2017, Loshchilov & Hutter 2016; one-cycle: Smith 2018,
    with the constants of `torch.optim.lr_scheduler.OneCycleLR`.
    """
    total = max(1, config.epochs * steps_per_epoch)
    warmup = config.warmup_epochs * steps_per_epoch
    if config.lr_schedule == "one-cycle":
        return _one_cycle(step, total, warmup or _ONE_CYCLE_RISE * total)
    if step < warmup:
        # Step 0 is not lost at a rate of 0, and the step after the rise is the first at the top.
        return (step + 1) / (warmup + 1)
    if config.lr_schedule == "cosine":
        return _cosine(1.0, 0.0, (step - warmup) / max(1.0, total - warmup))
    if config.lr_schedule == "step":
        return config.lr_gamma ** (step // (config.lr_step_epochs * steps_per_epoch))
    return 1.0


def _one_cycle(step: int, total: int, rise: float) -> float:
    if step < rise:
        return _cosine(_ONE_CYCLE_START, 1.0, step / rise)
    return _cosine(1.0, _ONE_CYCLE_END, (step - rise) / max(1.0, total - 1 - rise))


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, done))) / 2
