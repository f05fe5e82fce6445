"""ResNet-50 on one GPU: the trainer against a plain loop, the same batches, pair after pair."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.bench import Act, Bench, ratio, turn
from benchmarks.gpu.trained import (
    Load,
    Ours,
    PlainLoop,
    held_bytes,
    load_of,
    peak_bytes,
)

_TURN = 2
_LEAST_IMAGES_PER_S = 2500


@dataclass(frozen=True, slots=True)
class Setting:
    """What is trained, pairs of turns, and how near to the plain loop it should be."""

    name: str
    load: dict[str, Any]
    num_pairs: int
    least: float
    is_main: bool = False


_BF16 = {"precision": "bfloat16", "channels_last": True}
SETTINGS = (
    Setting("bf16 channels_last 1x256", _BF16, 10, 0.98, is_main=True),
    Setting(
        "bf16 channels_last 8x32", {**_BF16, "num_microbatches": 8, "microbatch": 32}, 10, 0.95
    ),
    Setting("TF32 contiguous 8x32", {"num_microbatches": 8, "microbatch": 32}, 5, 0.95),
)


def run(bench: Bench) -> None:
    """The two that matter first."""
    if bench.is_gpu:
        # As the trainer sets them: the plain loop gets the same.
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
    for setting in SETTINGS:
        load = load_of(bench, **setting.load)
        num_pairs = bench.sized(setting.num_pairs, 1)
        _measure(bench, setting, load, num_pairs)


def _measure(bench: Bench, setting: Setting, load: Load, num_pairs: int) -> None:
    before = held_bytes(bench.device)
    plain = PlainLoop(load, bench.device)
    of_plain = held_bytes(bench.device) - before
    with closing(Ours(load, is_loop=True)) as ours:
        of_ours = held_bytes(bench.device) - before - of_plain
        acts = (turn(plain.step, _TURN), turn(ours.step, _TURN))
        # The first ones choose kernels and take memory.
        for act in acts * bench.sized(3, 1):
            act()
        pairs = bench.pairs_ms(acts, num_pairs)
        # Nothing of a next step is held while the other one's peak is looked at.
        ours.step(is_last=True)
        # Of both, what the other one holds is in the peak; it is taken off again.
        whole: tuple[Act, Act] = (plain.step, partial(ours.step, is_last=True))
        peaks = [peak_bytes(bench.device, turn(act, _TURN)) - other - before
                 for act, other in zip(whole, (of_ours, of_plain), strict=True)]  # fmt: skip
    _say(bench, setting, load, pairs)
    share = peaks[1] / max(1, peaks[0])
    bench.on_gpu.at_most(f"{setting.name}: peak memory, of plain", share, 1.05)


def _say(bench: Bench, setting: Setting, load: Load, pairs: list[tuple[float, float]]) -> None:
    plain, ours = (1000 * _TURN * load.batch / median(ms) for ms in zip(*pairs, strict=True))
    bench.on_gpu.figure(f"{setting.name}: plain loop", plain, "images/s")
    if setting.is_main:
        bench.on_gpu.at_least(f"{setting.name}: trainer", ours, _LEAST_IMAGES_PER_S, "images/s")
    else:
        bench.on_gpu.figure(f"{setting.name}: trainer", ours, "images/s")
    bench.on_gpu.at_least(f"{setting.name}: trainer, of plain", ratio(pairs), setting.least)
