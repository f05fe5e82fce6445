"""Pure: devices and bundles that a plan leaves without work, and the way to give them some.

shape 1,1, 2 micro-batches per bundle: a third of the devices' time is idle

F0 F1       B0 --    B1 --
   F0 B0 -- F1 B1 --
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bundlerun.launcher.layout.microbatch import (
    LEAST_SAMPLES,
    MOST_IDLE,
    enough_microbatches,
    idle_about,
)
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.timeline import Costs, simulate

_MOST_SIMULATED = 200
"""Micro-batches of a bundle; for more the formula of 1f1b is near enough, and quick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A step's samples, and how they are cut."""

    size: int
    samples: int

    @property
    def num_microbatches(self) -> int:
        """Micro-batches of a step."""
        return self.size // self.samples


def num_workless(batch: Batch, num_bundles: int) -> int:
    """Bundles that have nothing to do in any step."""
    return max(0, num_bundles - batch.num_microbatches)


def idle_share(pipeline: Pipeline, batch: Batch, num_bundles: int) -> float:
    """The share of the time of all bundles' devices that a step leaves idle.

    Devices are equally fast, a stage of several devices has as many times the work of one, and
    transfers take nothing.
    """
    fewest, num_longer = divmod(batch.num_microbatches, num_bundles)
    if fewest >= _MOST_SIMULATED:
        return idle_about(batch.num_microbatches, pipeline.shape.num_stages, num_bundles)
    most = fewest + bool(num_longer)
    widths, chunks = pipeline.shape.widths, pipeline.chunks
    times = [float(widths[chunks.stage_of(chunk)]) for chunk in range(chunks.num_chunks)]
    costs = Costs(forward=times, backward=[2 * t for t in times])
    # The bundle with the most micro-batches decides how long the step is for all.
    timeline = simulate(pipeline.bundle(most), costs)
    assert timeline is not None
    # Of one micro-batch, on all stages.
    work = sum(s.end - s.start for rank in timeline.spans.values() for s in rank) / most
    available = timeline.duration * pipeline.shape.size * num_bundles
    return 1 - work * batch.num_microbatches / available


def warnings(pipeline: Pipeline, batch: Batch, num_bundles: int) -> Iterator[str]:
    """Yields what a user should know of time that nobody uses, with the way to use it."""

    def share(other: Batch) -> float:
        return idle_share(pipeline, other, num_bundles)

    workless, idle = num_workless(batch, num_bundles), share(batch)
    if workless:
        yield (
            f"{workless:,} of {num_bundles:,} bundles have no work: a step of --batch-size "
            f"{batch.size} is {batch.num_microbatches} micro-batches of {batch.samples} samples"
        )
    if idle > MOST_IDLE:
        per_bundle = batch.num_microbatches / num_bundles
        what = "micro-batch" if per_bundle == 1 else "micro-batches"
        stages = pipeline.shape.num_stages
        of = "one stage" if stages == 1 else f"{stages} stages"
        yield (
            f"{idle:.0%} of the devices' time is idle by plan: {per_bundle:.3g} {what} for each "
            f"bundle of {of}; {_mend(batch, share, stages, num_bundles)}"
        )


def _mend(batch: Batch, share: Callable[[Batch], float], num_stages: int, num_bundles: int) -> str:
    """Options that would leave less time idle, and how much they leave."""
    smaller = [d for d in range(batch.samples - 1, 1, -1) if batch.size % d == 0]
    finer = (Batch(size=batch.size, samples=samples) for samples in smaller)
    better = next((other for other in finer if share(other) <= MOST_IDLE), None)
    least = batch.samples * enough_microbatches(num_stages) * num_bundles
    larger = Batch(size=least, samples=batch.samples)
    ways = []
    if better is not None:
        seen = f", and batch norms see only {better.samples} samples at a time"
        words = f"--microbatch-size {better.samples} leaves {share(better):.0%}"
        ways.append(words + (seen if better.samples < LEAST_SAMPLES else ""))
    if larger.size > batch.size and (better is None or better.samples < LEAST_SAMPLES):
        words = f"--batch-size {larger.size} --microbatch-size {larger.samples}"
        ways.append(f"{words} leaves {share(larger):.0%}")
    return "; ".join(ways) or "use fewer devices"
