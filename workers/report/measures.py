"""Where the time of an epoch went, and how fast the bundles are: what all ranks share of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain, islice

from bundlerun.workers.device.accelerator import is_gpu, memory
from bundlerun.workers.rank.meters import EPOCH_END_PHASES, LAUNCH, PHASES, Meters, Phase
from bundlerun.workers.rank.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """What is said of all GPUs of a run; on the CPU nothing is.

    Args:
        count: ranks that have one.
        peak_bytes: of each stage, the most memory that one of its ranks has held so far; 0 where
            its kind of GPU gives no figures.
    """

    count: int
    peak_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What an epoch's training took, the same on all ranks.

    Args:
        num_unreadable: samples that could not be read.
        busy_s: of each bundle, what one micro-batch takes, seconds.
        phases: seconds per phase, mean over the ranks.
        gpus: of the run; None on the CPU.
    """

    num_unreadable: int
    busy_s: Sequence[float]
    phases: dict[str, float]
    gpus: Gpus | None = None


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
        self._place = session.place
        self._device = session.device
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
        # Per micro-batch, as bundles do different numbers of them.
        busy = (seconds["forward"] + seconds["backward"]) / max(1, self._num_microbatches)
        ranks = self._topology.active_ranks
        # Each rank fills its own places: one sum over all ranks then has those of all.
        parts = [
            [float(self._num_unreadable)],
            _only(self._place.bundle, self._topology.num_bundles, busy),
            [seconds[phase] for phase in PHASES],
            [float(is_gpu(self._device))],
            _only(ranks.index(self._place.rank), len(ranks), self._peak_bytes()),
        ]
        totals = iter(self._total(list(chain(*parts))))
        unreadable, busy_s, phases, gpus, peaks = (list(islice(totals, len(p))) for p in parts)
        return Shared(
            num_unreadable=int(unreadable[0]),
            busy_s=busy_s,
            phases=self._means(PHASES, phases),
            gpus=self._gpus(int(gpus[0]), peaks),
        )

    def _peak_bytes(self) -> float:
        found = memory(self._device)
        return 0.0 if found is None else float(found.peak)

    def _gpus(self, count: int, peaks: Sequence[float]) -> Gpus | None:
        """What is said of them, from the peak of each active rank."""
        if not count:
            return None
        most = [0] * self._topology.num_stages
        for rank, peak in zip(self._topology.active_ranks, peaks, strict=True):
            stage = self._topology.places[rank].stage
            most[stage] = max(most[stage], int(peak))
        return Gpus(count=count, peak_bytes=tuple(most))

    def share_end(self) -> dict[str, float]:
        """What validating and saving took, which come after the epoch's row; as `Shared.phases`.

        Collective: every active rank.
        """
        seconds = self._meters.seconds()
        totals = self._total([seconds[phase] for phase in EPOCH_END_PHASES])
        return self._means(EPOCH_END_PHASES, totals)

    def _means(self, phases: Iterable[Phase], totals: Sequence[float]) -> dict[str, float]:
        num_ranks = len(self._topology.active_ranks)
        means = {phase: s / num_ranks for phase, s in zip(phases, totals, strict=True)}
        # On the CPU there is no such thing.
        return {phase: mean for phase, mean in means.items() if mean or phase != LAUNCH}


def _only(place: int, count: int, value: float) -> list[float]:
    """`count` numbers: `value` at one place, and zeros."""
    return [value if index == place else 0.0 for index in range(count)]
