"""Pure: which rank is slower than its peers for a while, as the run goes.

What counts as slow is what `bundlerun why` says (`launcher.why.pace`), of a stretch of steps
that is long enough to say anything. Two stretches in a row have to say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.why.pace import Slow, is_telling, slowest
from bundlerun.launcher.why.sums import RankSums
from bundlerun.workers.shares.spent import Spent


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What has changed.

    Args:
        slow: a rank that is slow from now on; None: the one that was is so no more.
        ranks: what all did in the last stretch.
        first_step, end_step: finished steps at its begin and at its end.
    """

    slow: Slow | None
    ranks: tuple[RankSums, ...]
    first_step: int
    end_step: int


class Slowness:
    """Looks at what all ranks have spent, after each step.

    Args:
        topology: of the round.
        nodes: their names, in order.
    """

    def __init__(self, topology: Topology, nodes: Sequence[str]) -> None:
        self._topology = topology
        self._nodes = nodes
        self._begin: tuple[int, Mapping[int, Spent]] | None = None
        self._before: Slow | None = None
        """What the last stretch has said."""
        self._told: int | None = None
        """The rank that is told to be slow."""

    def see(self, step: int, spent: Mapping[int, Spent]) -> Found | None:
        """What has changed.

        Args:
            step: finished steps, one more than `spent` is of.
        """
        if self._begin is None:
            self._begin = step, spent
            return None
        first, before = self._begin
        ranks = [self._sums(rank, spent[rank].since(before[rank])) for rank in spent]
        telling = [each for each in ranks if is_telling(each)]
        # All that have anything to do.
        if not telling or len(telling) < sum(each.num_microbatches > 0 for each in ranks):
            return None
        self._begin = step, spent
        found, last = slowest(telling), self._before
        self._before = found
        rank = None if found is None else found.rank
        if rank != (None if last is None else last.rank) or rank == self._told:
            return None
        self._told = rank
        return Found(slow=found, ranks=tuple(ranks), first_step=first - 1, end_step=step - 1)

    def _sums(self, rank: int, added: Spent) -> RankSums:
        place = self._topology.places[rank]
        return RankSums(
            rank=rank,
            node=place.node,
            node_name=self._nodes[place.node] if place.node < len(self._nodes) else str(place.node),
            local_rank=place.local_rank,
            bundle=place.bundle,
            stage=place.stage,
            replica=place.replica,
            wall_s=added.wall_s,
            # Which of both is not told, and nobody asks.
            seconds={"forward": added.compute_s},
            num_microbatches=int(added.num_microbatches),
            run_delay_s=added.run_delay_s,
        )
