"""Sums that go through leaders: up to them inside a node, across between nodes, down again.

    ranks       0    1  |  2    3      one leader per node: 0 and 2
    collect     <----+  |  <----+      inside a node
    exchange    <--------->            between the leaders; if sharded, 1 and 3 have one, too
    distribute  +---->  |  +---->      inside a node

Inside a node sums are exact; what crosses may be rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

from bundlerun.launcher.choices import SchemeName
from bundlerun.launcher.layout.exchange_form import EXACT, ExchangeForm
from bundlerun.launcher.layout.holders import Holders
from bundlerun.launcher.layout.topology import Place
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.rank.groups import Legs, Members
from bundlerun.workers.sync.exchange import exchange_actions
from bundlerun.workers.sync.legs import Action
from bundlerun.workers.sync.node_legs import GroupLegs, NodeArena, SharedLegs
from bundlerun.workers.sync.scheme import of_several
from bundlerun.workers.sync.target import WholeWire


class _ThroughLeaders:
    """See `Scheme`.

    Args:
        holders: of what is summed.
        place: this rank, one of them.
        num_leaders: that many ranks of each node, the first, have a shard of every bucket each.
        is_serial: see `MakeScheme`.
        form: see `MakeScheme`.
    """

    def __init__(
        self,
        holders: Holders,
        place: Place,
        num_leaders: int,
        *,
        is_serial: bool,
        form: ExchangeForm,
    ) -> None:
        self._num_leaders = num_leaders
        node, mates = f"node{place.node}", holders.by_node[place.node]
        self._collect = Members(f"collect/{holders.name}/{node}", mates)
        # The same ranks once more, where both legs run at one time.
        again = Members(f"distribute/{holders.name}/{node}", mates)
        self._distribute = self._collect if is_serial else again
        # A rank with no shard is in no exchange: it gets all sums from the leaders of its node.
        shard = mates.index(place.rank)
        leaders = holders.leaders(shard) if shard < num_leaders else ()
        # Two nodes swap in one step; other exchanges have two halves, which run at one time.
        swaps = len(leaders) == 2 and not form.rank
        num_halves = 1 if is_serial or swaps else 2
        names = [f"exchange{half}/{holders.name}/shard{shard}" for half in range(num_halves)]
        self._exchange = of_several(*(Members(name, leaders) for name in names))

    @property
    def num_shards(self) -> int:
        """See `Scheme`."""
        return self._num_leaders

    @property
    def members(self) -> Sequence[Members]:
        """See `Scheme`."""
        inside = dict.fromkeys((self._collect, self._distribute))
        return (*self._exchange, *of_several(*inside))

    @property
    def node(self) -> Members | None:
        """See `Scheme`."""
        return self._collect

    def from_first(self, groups: Legs) -> list[Group]:
        """See `Scheme`."""
        return [groups[m] for m in (*self._exchange[:1], *of_several(self._distribute))]

    def actions(self, groups: Legs, arena: NodeArena | None, form: ExchangeForm) -> list[Action]:
        """See `Scheme`."""
        across = tuple(groups[each] for each in self._exchange)
        # Alone on its node: nothing to collect, the whole bucket is its shard.
        if len(self._collect.ranks) == 1:
            return exchange_actions(WholeWire(), across, form) if across else []
        inside: SharedLegs | GroupLegs = (
            GroupLegs(groups[self._collect], groups[self._distribute], self._num_leaders)
            if arena is None
            else SharedLegs(arena, self._num_leaders)
        )
        exchange = exchange_actions(inside, across, form) if across else []
        return [inside.collect, *exchange, inside.distribute]


class LocalMaster(_ThroughLeaders):
    """One leader per node, the local master."""

    name: SchemeName = "local-master"

    def __init__(
        self,
        holders: Holders,
        place: Place,
        *,
        is_serial: bool = False,
        form: ExchangeForm = EXACT,
    ) -> None:
        super().__init__(holders, place, 1, is_serial=is_serial, form=form)

    @property
    def is_candidate(self) -> bool:
        """See `Scheme`."""
        return True


class Sharded(_ThroughLeaders):
    """As many leaders per node as every node has holders."""

    name: SchemeName = "sharded"

    def __init__(
        self,
        holders: Holders,
        place: Place,
        *,
        is_serial: bool = False,
        form: ExchangeForm = EXACT,
    ) -> None:
        super().__init__(holders, place, holders.num_shards, is_serial=is_serial, form=form)

    @property
    def is_candidate(self) -> bool:
        """See `Scheme`; with one leader it is the local master."""
        return self._num_leaders > 1
