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
    # Counted in what the rate changes with: steps, or epochs.
    is_by_step = config.lr_by == "step"
    per_epoch = steps_per_epoch if is_by_step else 1
    now = step if is_by_step else step // steps_per_epoch
    total = max(1, config.epochs * per_epoch)
    warmup = config.warmup_epochs * per_epoch
    if config.lr_schedule == "one-cycle":
        return _one_cycle(now, total, warmup or _ONE_CYCLE_RISE * total)
    if now < warmup:
        return _warm_up(config, now, warmup)
    since = now - warmup
    if config.lr_schedule == "cosine":
        lowest = config.lr_min / config.lr if config.lr else 0.0
        return _cosine(1.0, lowest, since / max(1.0, total - warmup))
    if config.lr_schedule == "exponential":
        return float(config.lr_gamma ** (since / per_epoch))
    if config.lr_schedule == "step":
        # By epoch, torch's schedulers in sequence: each begins where the one before ends.
        begun = now if is_by_step else since
        return float(config.lr_gamma ** (begun // (config.lr_step_epochs * per_epoch)))
    return 1.0


def _warm_up(config: TrainConfig, now: int, warmup: float) -> float:
    start = config.warmup_start
    if start is None:
        # Step 0 is not lost at a rate of 0, and the step after the rise is the first at the top.
        return (now + 1) / (warmup + 1)
    return start if config.warmup_method == "constant" else start + (1 - start) * now / warmup


def _one_cycle(step: int, total: int, rise: float) -> float:
    if step < rise:
        return _cosine(_ONE_CYCLE_START, 1.0, step / rise)
    return _cosine(1.0, _ONE_CYCLE_END, (step - rise) / max(1.0, total - 1 - rise))


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, done))) / 2
