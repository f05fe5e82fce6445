"""One all-reduce over all replicas."""

from __future__ import annotations

from collections.abc import Sequence

from bundlerun.launcher.choices import SchemeName
from bundlerun.launcher.layout.exchange_form import EXACT, ExchangeForm
from bundlerun.launcher.layout.holders import Holders
from bundlerun.launcher.layout.topology import Place
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.rank.groups import Legs, Members
from bundlerun.workers.sync.exchange import AllReduce
from bundlerun.workers.sync.legs import Action
from bundlerun.workers.sync.node_legs import NodeArena
from bundlerun.workers.sync.scheme import of_several
from bundlerun.workers.sync.target import WholeWire


def replicas(holders: Holders) -> Members:
    """All of them in one group; the first is of bundle 0."""
    return Members(f"flat/{holders.name}", holders.ranks)


class Flat:
    """See `Scheme`."""

    name: SchemeName = "flat"
    is_candidate = True
    num_shards = 1
    node: Members | None = None

    def __init__(
        self,
        holders: Holders,
        place: Place,
        *,
        is_serial: bool = False,
        form: ExchangeForm = EXACT,
    ) -> None:
        self.members: Sequence[Members] = of_several(replicas(holders))

    def from_first(self, groups: Legs) -> list[Group]:
        """See `Scheme`."""
        return [groups[each] for each in self.members]

    def actions(self, groups: Legs, arena: NodeArena | None, form: ExchangeForm) -> list[Action]:
        """See `Scheme`; nothing could be shorter between nodes only."""
        return [AllReduce(WholeWire(), [groups[each]], EXACT) for each in self.members]
