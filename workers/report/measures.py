"""Where the time of an epoch went, and how fast the bundles are: what all ranks share of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain, islice

from bundlerun.launcher.why.sums import RankSums, Sent
from bundlerun.workers.device.accelerator import is_gpu, memory
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.rank.life.standing import note_scheduled
from bundlerun.workers.rank.meters import EPOCH_END_PHASES, LAUNCH, PHASES, Meters, Phase
from bundlerun.workers.shares.sending import Sending

MOST_RANKS = 1024
"""Of more, nobody is told what each did at an epoch's end; each agent still writes it down."""
_NUM_SUMS = 4 + len(Sent._fields)


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
    ranks: tuple[RankSums, ...] = ()
    """What each active rank did; nothing where there are more than `MOST_RANKS`."""


class Measures:
    """Counts what this rank does in an epoch.

    Args:
        session: this rank's place.
        meters: have its times.
        total: adds up numbers over all ranks; collective.
        sending: what it sends to other nodes.
    """

    def __init__(
        self,
        session: Session,
        meters: Meters,
        total: Callable[[Sequence[float]], Sequence[float]],
        sending: Sending,
    ) -> None:
        self._topology = session.topology
        self._place = session.place
        self._device = session.device
        self._meters = meters
        self._total = total
        self._num_unreadable = 0
        self._num_microbatches = 0
        self._nodes = session.nodes
        self._sending = sending

    def restart(self) -> None:
        """An epoch begins."""
        self._num_unreadable = 0
        self._num_microbatches = 0
        self._meters.restart()
        self._sending.restart()

    def count(self, *, num_microbatches: int, num_unreadable: int) -> None:
        """Counts a step: micro-batches of the bundle, samples that this rank could not read."""
        self._num_microbatches += num_microbatches
        self._num_unreadable += num_unreadable
        self._meters.sheet.count(num_microbatches)
        self._sending.look()

    def phase(self, phase: Phase) -> AbstractContextManager[None]:
        """Adds the time spent inside to `phase`."""
        return self._meters.phase(phase)

    def share(self) -> Shared:
        """What all ranks measured since `restart`; from here on, the end of the epoch counts.

        Collective: every active rank.
        """
        self._sending.look(at_once=True)
        note_scheduled(self._meters.sheet)
        seconds, own = self._meters.seconds(), self._own_sums()
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
            self._block(ranks, [*own, *seconds.values()]),
        ]
        totals = iter(self._total(list(chain(*parts))))
        unreadable, busy_s, phases, gpus, peaks, blocks = (
            list(islice(totals, len(p))) for p in parts
        )
        return Shared(
            num_unreadable=int(unreadable[0]),
            busy_s=busy_s,
            phases=self._means(PHASES, phases),
            gpus=self._gpus(int(gpus[0]), peaks),
            ranks=self._rank_sums(ranks, blocks),
        )

    def _own_sums(self) -> list[float]:
        """What is told of this rank besides its phases, `_NUM_SUMS` numbers."""
        sheet = self._meters.sheet
        node, sent = sheet.sent
        return [
            self._meters.wall_s(),
            float(self._num_microbatches),
            sheet.cpu_s,
            sheet.run_delay_s,
            float(node),
            *sent[1:],
        ]

    def _block(self, ranks: Sequence[int], own: Sequence[float]) -> list[float]:
        """The numbers of all ranks one after the other, this one's filled in."""
        if len(ranks) > MOST_RANKS:
            return []
        index = ranks.index(self._place.rank) * len(own)
        found = [0.0] * (len(ranks) * len(own))
        found[index : index + len(own)] = own
        return found

    def _rank_sums(self, ranks: Sequence[int], blocks: Sequence[float]) -> tuple[RankSums, ...]:
        size = len(blocks) // len(ranks)
        return tuple(
            self._sums_of(rank, blocks[i * size : (i + 1) * size])
            for i, rank in enumerate(ranks)
            if size
        )

    def _sums_of(self, rank: int, numbers: Sequence[float]) -> RankSums:
        place = self._topology.places[rank]
        wall_s, num_microbatches, cpu_s, run_delay_s, node, *told = numbers[:_NUM_SUMS]
        sent = Sent(self._name(int(node)), *told)
        return RankSums(
            rank=rank,
            node=place.node,
            node_name=self._name(place.node),
            local_rank=place.local_rank,
            bundle=place.bundle,
            stage=place.stage,
            replica=place.replica,
            wall_s=wall_s,
            seconds=dict(zip(PHASES, numbers[_NUM_SUMS:], strict=True)),
            num_microbatches=int(num_microbatches),
            cpu_s=cpu_s,
            run_delay_s=run_delay_s,
            sent=sent if sent.wire_s else None,
        )

    def _name(self, node: int) -> str:
        return self._nodes[node].name if node < len(self._nodes) else str(node)

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
