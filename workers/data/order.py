"""Which sample is in which micro-batch of which step, and which bundle does it (I1).

order of epoch 3   7 2 9 0 5 | 1 8 3 6 4 | 11 10       12 samples, batch size 5
step               0           1           2
micro-batches of 2 7 2, 9 0, 5 ...         11 10       nothing is dropped
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Sequence
from itertools import accumulate, chain
from statistics import fmean
from typing import NamedTuple, TypeVar

import torch

from bundlerun.launcher.layout.rounding import divided_up

T = TypeVar("T")
NEAR_EQUAL = 1.1
"""Bundles whose times differ by a smaller factor share alike: such differences are noise."""


def mix_seed(*parts: int) -> int:
    """A 64-bit seed in which every bit depends on every part."""
    # Hashed: sums or products of the parts would give equal seeds for other parts.
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def sample_order(seed: int, epoch: int, num_samples: int) -> list[int]:
    """The order in which an epoch uses the samples, the same on every rank and node."""
    # Its own generator, so that the order does not depend on what drew numbers before.
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    order: list[int] = torch.randperm(num_samples, generator=generator).tolist()
    return order


def block_order(
    seed: int, epoch: int, sizes: Sequence[int], window: int, run: int = 1
) -> list[int]:
    """As `sample_order`, where samples that are stored together are used at about the same time.

    stored        0 1 2 | 3 4 5 | 6 7 | 8 9 10      blocks
    shuffled      6 7 | 3 4 5 | 8 9 10 | 0 1 2
    window of 4   6 7 3 4 5 / 8 9 10 0 1 2          whole blocks, until there are enough samples
    each shuffled 5 3 7 6 4 / 1 9 8 0 10 2

    Args:
        seed, epoch: of the run.
        sizes: samples of each block; samples are numbered through all blocks.
        window: samples that are shuffled together, at least; 0: all.
        run: samples of a block, in a random order, that stay next to each other in a window. So a
            micro-batch is of few blocks, and each block is read for few micro-batches.
    """
    total = sum(sizes)
    if not window or window >= total:
        return sample_order(seed, epoch, total)
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    ends = list(accumulate(sizes))
    order: list[int] = []
    runs: list[Sequence[int]] = []
    num_held = 0
    for block in torch.randperm(len(sizes), generator=generator).tolist():
        samples: Sequence[int] = range(ends[block] - sizes[block], ends[block])
        if run > 1:
            samples = _shuffled(samples, generator)
        runs += [samples[first : first + run] for first in range(0, len(samples), run)]
        num_held += len(samples)
        if num_held >= window:
            order += chain.from_iterable(_shuffled(runs, generator))
            runs, num_held = [], 0
    order += chain.from_iterable(_shuffled(runs, generator))
    return order


def _shuffled(items: Sequence[T], generator: torch.Generator) -> list[T]:
    return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]


def num_steps(num_samples: int, batch_size: int) -> int:
    """Steps that use every sample once; the last one may be smaller."""
    return divided_up(num_samples, batch_size)


def step_microbatches(
    order: Sequence[int], step: int, *, batch_size: int, microbatch_size: int
) -> list[list[int]]:
    """The samples of each micro-batch of a step, over all bundles.

    Args:
        order: every sample once.
        step: counts from 0 inside the epoch.
        batch_size: samples of a step; the last step has what is left.
        microbatch_size: samples of a micro-batch; the last one of a step has what is left.
    """
    end = min((step + 1) * batch_size, len(order))
    starts = range(step * batch_size, end, microbatch_size)
    return [list(order[start : min(start + microbatch_size, end)]) for start in starts]


def repeated_order(order: Sequence[int], repeats: int) -> list[int]:
    """An epoch that has each of its samples several times in a row, each time otherwise random.

    of 7 samples, 3 times   4 11 18  2 9 16  6         as many as there are samples

    Returns:
        The sample, plus the number of all samples for each time before.
    """
    count = len(order)
    return [i + count * n for i in order[: divided_up(count, repeats)] for n in range(repeats)][
        :count
    ]


def dealt_microbatches(
    order: Sequence[int], step: int, *, batch_size: int, microbatch_size: int
) -> list[list[int]]:
    """As `step_microbatches`, but samples next to each other come into different micro-batches.

    A micro-batch of copies of few samples would say little, and mixing would mix them with
    themselves. So may ranks have them where each has a part of every batch.
    """
    plain = step_microbatches(order, step, batch_size=batch_size, microbatch_size=microbatch_size)
    dealt: list[list[int]] = [[] for _ in plain]
    samples = chain.from_iterable(plain)
    # Round by round, one to each that is not full; only the last may be smaller.
    for place in range(max(map(len, plain))):
        for microbatch, whole in zip(dealt, plain, strict=True):
            if place < len(whole):
                microbatch.append(next(samples))
    return dealt


class Speeds(NamedTuple):
    """What micro-batches take each bundle.

    Args:
        seconds: a further one; what is not above 0 and finite is unknown.
        fill_s: the first one of a step besides, which goes through all stages.
    """

    seconds: tuple[float, ...]
    fill_s: tuple[float, ...]

    @classmethod
    def equal(cls, num_bundles: int) -> Speeds:
        """Of bundles of which nothing is known."""
        return cls((1.0,) * num_bundles, (0.0,) * num_bundles)

    @classmethod
    def mean(cls, each: Sequence[Speeds]) -> Speeds:
        """Bundle by bundle."""
        return cls(
            tuple(map(fmean, zip(*(one.seconds for one in each), strict=True))),
            tuple(map(fmean, zip(*(one.fill_s for one in each), strict=True))),
        )

    def span_s(self, counts: Sequence[int]) -> float:
        """How long the bundle computes that computes longest."""
        each = zip(counts, self.seconds, self.fill_s, strict=True)
        return max((count * time + fill if count else 0.0) for count, time, fill in each)


def share_out(num_microbatches: int, speeds: Speeds) -> list[int]:
    """How many micro-batches each bundle gets, so that the slowest is done as early as can be.

    Args:
        num_microbatches: to be shared out.
        speeds: of the bundles; one that is unknown is taken for the mean of the others.

    Returns:
        One count per bundle, their sum is `num_microbatches`. Bundle i does the consecutive ones
        from the sum of the counts before it.
    """
    times = _levelled(speeds.seconds)
    counts = [0] * len(times)
    # Next in line is who would be done first with one more; equal ones in order of the bundles.
    line = [
        (time + fill, bundle)
        for bundle, (time, fill) in enumerate(zip(times, speeds.fill_s, strict=True))
    ]
    heapq.heapify(line)
    for _ in range(num_microbatches):
        done, bundle = line[0]
        counts[bundle] += 1
        heapq.heapreplace(line, (done + times[bundle], bundle))
    return counts


def _levelled(seconds: Sequence[float]) -> list[float]:
    """The times with near-equal ones made equal: each gets the least of its neighbourhood."""
    known = [time for time in seconds if 0 < time < math.inf]
    # A bundle that has measured nothing yet gets a usual share.
    mean = fmean(known) if known else 1.0
    times = [time if 0 < time < math.inf else mean for time in seconds]
    levels: list[float] = []
    for time in sorted(times):
        # A level begins where a time is clearly above the last level, in ascending order.
        if not levels or time > levels[-1] * NEAR_EQUAL:
            levels.append(time)
    return [max(level for level in levels if level <= time) for time in times]
