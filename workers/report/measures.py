"""Where the time of an epoch went, and how fast the bundles are: what all ranks share of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from bundlerun.workers.rank.meters import EPOCH_END_PHASES, PHASES, Meters, Phase
from bundlerun.workers.rank.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What an epoch's training took, the same on all ranks.

    Args:
        num_unreadable: samples that could not be read.
        busy_s: of each bundle, what one micro-batch takes, seconds.
        phases: seconds per phase, mean over the ranks.
    """

    num_unreadable: int
    busy_s: Sequence[float]
    phases: dict[str, float]


class Measures:
    """Counts what this rank does in an epoch.

    Args:
        session: this rank's place.
        meters: have its times.
        total: adds up numbers over all ranks; collective.
    """

    def __init__(
        self,
        session: Session,
        meters: Meters,
        total: Callable[[Sequence[float]], Sequence[float]],
    ) -> None:
        self._topology = session.topology
        self._bundle = session.place.bundle
        self._meters = meters
        self._total = total
        self._num_unreadable = 0
        self._num_microbatches = 0

    def restart(self) -> None:
        """An epoch begins."""
        self._num_unreadable = 0
        self._num_microbatches = 0
        self._meters.restart()

    def count(self, *, num_microbatches: int, num_unreadable: int) -> None:
        """Counts a step: micro-batches of the bundle, samples that this rank could not read."""
        self._num_microbatches += num_microbatches
        self._num_unreadable += num_unreadable

    def phase(self, phase: Phase) -> AbstractContextManager[None]:
        """Adds the time spent inside to `phase`."""
        return self._meters.phase(phase)

    def share(self) -> Shared:
        """What all ranks measured since `restart`; from here on, the end of the epoch counts.

        Collective: every active rank.
        """
        seconds = self._meters.seconds()
        self._meters.restart()
        num_bundles = self._topology.num_bundles
        # Per micro-batch, as bundles do different numbers of them.
        busy = (seconds["forward"] + seconds["backward"]) / max(1, self._num_microbatches)
        # Each rank fills its bundle's place: one sum over all ranks then has all bundles.
        per_bundle = [0.0] * num_bundles
        per_bundle[self._bundle] = busy
        totals = self._total(
            [float(self._num_unreadable), *per_bundle, *(seconds[p] for p in PHASES)]
        )
        return Shared(
            num_unreadable=int(totals[0]),
            busy_s=totals[1 : 1 + num_bundles],
            phases=self._means(PHASES, totals[1 + num_bundles :]),
        )

    def share_end(self) -> dict[str, float]:
        """What validating and saving took, which come after the epoch's row; as `Shared.phases`.

        Collective: every active rank.
        """
        seconds = self._meters.seconds()
        totals = self._total([seconds[phase] for phase in EPOCH_END_PHASES])
        return self._means(EPOCH_END_PHASES, totals)

    def _means(self, phases: Iterable[Phase], totals: Sequence[float]) -> dict[str, float]:
        num_ranks = len(self._topology.active_ranks)
        return {phase: s / num_ranks for phase, s in zip(phases, totals, strict=True)}
