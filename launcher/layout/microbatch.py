"""How many samples a micro-batch has if `--microbatch-size` does not say.

A pipeline is full with a few micro-batches per stage in each bundle, so their size follows from the
planned number of bundles. It is settled once, when the run starts for the first time, and kept in
the run folder: from then on nodes that come or go do not change it (I1). Only where the first step
does not fit into a GPU, the next start has smaller ones.
"""

from __future__ import annotations

import math

from bundlerun.launcher.layout.rounding import divided_up

BUNDLES_VARIABLE = "BUNDLERUN_PLANNED_BUNDLES"
"""How an agent tells its ranks the number of bundles once all nodes have come."""
MOST_SAMPLES = 32
MOST_ON_GPUS = 128
"""An operation on 32 samples ends before the next one is launched, on a large GPU."""
LEAST_SAMPLES = 8
"""Batch norms see a micro-batch; with fewer samples their noise costs accuracy (Wu, He: Group
Normalization, 2018: 0.2 points at 16 samples, 1 at 8, 4 at 4). So the user has to ask for fewer."""
PER_STAGE = 4
"""Micro-batches per stage that each bundle of a pipeline gets at least."""
MOST_IDLE = 0.15
"""Share of the devices' time that may be idle by plan before the user is warned."""


def default_samples(
    batch_size: int, num_stages: int, num_bundles: int, *, has_gpus: bool = False
) -> int:
    """Samples of a micro-batch: as many as keep all devices at work, where the batch allows."""
    most = MOST_ON_GPUS if has_gpus else MOST_SAMPLES
    found = divisors(batch_size)
    usual = [d for d in found if LEAST_SAMPLES <= d <= most]
    # A batch size such as a large prime has no divisor in the usual range.
    usual = usual or [max(d for d in found if d <= most)]
    idle = {d: idle_about(batch_size // d, num_stages, num_bundles) for d in usual}
    fewest = num_bundles * enough_microbatches(num_stages)
    full = [d for d in usual if idle[d] <= MOST_IDLE and batch_size // d >= fewest]
    # The largest that keeps all at work; if none does, the least idle, the larger of equals.
    return max(full, default=min(usual, key=lambda d: (idle[d], -d)))


def smaller_samples(samples: int) -> int:
    """What a default is to become that does not fit into a GPU; 0: so small is for the user to say.

    From 128 it takes three starts to get to 32, as many as a run has for its first step (I12).
    """
    half = max((d for d in divisors(samples) if d <= samples // 2), default=0)
    return half if samples > MOST_SAMPLES and half >= LEAST_SAMPLES else 0


def divisors(number: int) -> list[int]:
    """All of them, the smallest first; for those up to the root each has its partner above it."""
    low = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*low, *(number // d for d in low)})


def enough_microbatches(num_stages: int) -> int:
    """Micro-batches that a bundle should have; without a pipeline to fill one is enough."""
    if num_stages == 1:
        return 1
    until_idle = math.ceil((num_stages - 1) * (1 - MOST_IDLE) / MOST_IDLE)
    return max(PER_STAGE * num_stages, until_idle)


def idle_about(num_microbatches: int, num_stages: int, num_bundles: int) -> float:
    """The share of the devices' time that is idle in 1f1b, where all stages are equally long."""
    longest = divided_up(num_microbatches, num_bundles) + num_stages - 1
    return 1 - num_microbatches / (num_bundles * longest)
