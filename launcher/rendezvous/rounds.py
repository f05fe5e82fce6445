"""The rounds that a node comes into: their stores, and what its agent and its ranks are told.

torch's agent asks (`enter`)        the ranks have ended: new ones begin in the round
orders while they run (`follow`)    a node joins: they go on in the next round, in their processes,
and torch's agent, which need not know, keeps its store object
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from datetime import timedelta
from typing import cast

from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousStoreInfo

from bundlerun.launcher.console import tell
from bundlerun.launcher.ranks.board import NextRound
from bundlerun.launcher.ranks.node_ranks import Ranks
from bundlerun.launcher.rendezvous.node import Node
from bundlerun.launcher.rendezvous.protocol.member import Enter, OpenStore
from bundlerun.launcher.rendezvous.protocol.messages import Round, RoundId
from bundlerun.launcher.rendezvous.round_store import (
    NUMBER_KEY,
    RoundStore,
    open_store,
    ranks_of,
    reach_store,
)
from bundlerun.launcher.rendezvous.told import joined_line
from bundlerun.launcher.run_folder.events import Events

STORE_TIMEOUT = timedelta(minutes=5)

log = logging.getLogger(__name__)


class Rounds:
    """Those of one node; the agent's thread calls all of it.

    Args:
        node: its part in the rendezvous.
        ranks: what is known of its workers.
        events: its event log.
        lease_s: twice that is how long a store may take to answer.
        learn: is told how many workers it has.
    """

    def __init__(
        self,
        node: Node,
        ranks: Ranks,
        events: Events,
        *,
        lease_s: float,
        learn: Callable[[int], None],
    ) -> None:
        self._node = node
        self._ranks = ranks
        self._events = events
        self._reach_s = 2 * lease_s
        self._learn = learn
        self._stores: dict[RoundId, TCPStore] = {}
        """Kept here."""
        self._entered: Round | None = None
        """The last one that this node was in, or is."""
        self._shared: RoundStore | None = None
        """What torch's agent has of its store."""
        self._is_moving = False
        """The workers are on their way into it."""
        self._cannot = False
        """They cannot go on in it in their processes."""

    def open(self, round_: Round) -> None:
        """Opens the store of a round."""
        store = open_store(round_.seats[0].address, STORE_TIMEOUT)
        store.set(NUMBER_KEY, str(round_.number))
        self._stores[round_.id] = store
        self._node.opened(round_, store.port)

    def enter(self, round_: Round) -> RendezvousInfo | None:
        """The round in torch's words; None where it is over before it began."""
        # Workers that have left the round before cannot go on in this one.
        has_left = self._entered is not None and round_.before == self._entered.id
        if has_left or self._is_over(round_):
            return None
        self._forget_others(round_)
        store = self._reached(round_)
        if store is None:
            return None
        index = self._index_in(round_)
        self._entered = round_
        self._is_moving, self._cannot = bool(round_.before), False
        self._shared = RoundStore(
            store,
            round_,
            index,
            learn=self._learn,
            is_over=self._is_left,
            finish=self._node.finished,
            is_ended=lambda: self._node.member.closed is not None or self._is_left(),
        )
        # torch's agent calls it, it does not look what it is.
        return RendezvousInfo(
            cast(Store, self._shared),
            index,
            len(round_.seats),
            RendezvousStoreInfo(round_.seats[0].address, round_.store_port),
        )

    def begin_anew(self) -> bool:
        """Follows the orders that come while the workers run; whether these have to begin anew."""
        while True:
            try:
                order = self._node.orders.get_nowait()
            except queue.Empty:
                break
            if isinstance(order, OpenStore):
                self.open(order.round)
            elif isinstance(order, Enter):
                self._go_on_in(order.round)
        if self._is_moving and self._entered is not None:
            self._look(self._entered)
        return self._cannot

    def _look(self, round_: Round) -> None:
        """How far the workers are on their way into a round."""
        self._cannot = self._cannot or self._ranks.cannot_go_on
        count = round_.seats[self._index_in(round_)].num_workers
        if self._ranks.are_in(round_.number, count):
            self._is_moving = False
            self._forget_others(round_)
            self._events.note("has moved", {"round": round_.number})
            self._node.moved(round_)

    def _go_on_in(self, round_: Round) -> None:
        """The workers of this node are to go on in a round, in their processes."""
        if self._shared is None or self._is_over(round_):
            return
        self._entered, self._is_moving = round_, True
        index, store = self._index_in(round_), self._reached(round_)
        first_rank, world_size, *_ = ranks_of(round_, index)
        told = NextRound(
            number=round_.number,
            host=round_.seats[0].address,
            port=round_.store_port,
            first_rank=first_rank,
            world_size=world_size,
            node=index,
            num_nodes=len(round_.seats),
        )
        if store is None or not self._ranks.go_on_in(told):
            self._cannot = True
            return
        self._shared.move(store, round_, index)
        self._events.note("hands over", {"round": round_.number})
        line = joined_line(round_, self._node.member.seat.name)
        tell(f"{line}; in the processes of before")

    def _reached(self, round_: Round) -> TCPStore | None:
        """The store of a round; None where it is gone."""
        try:
            # Left to the client's own time-out, an agent would end with the store's node.
            store = self._stores.get(round_.id) or reach_store(
                round_, timedelta(seconds=self._reach_s)
            )
        except RuntimeError as exc:
            log.warning("the store of round %s is gone: %s", round_.number, exc)
            return None
        store.set_timeout(STORE_TIMEOUT)
        return store

    def _forget_others(self, round_: Round) -> None:
        """Stores of earlier rounds and of abandoned proposals go."""
        self._stores = {id_: kept for id_, kept in self._stores.items() if id_ == round_.id}

    def _index_in(self, round_: Round) -> int:
        me = self._node.member.seat.name
        return next(i for i, seat in enumerate(round_.seats) if seat.name == me)

    def _is_left(self) -> bool:
        return self._entered is None or self._is_over(self._entered)

    def _is_over(self, round_: Round) -> bool:
        member = self._node.member
        return member.must_leave or member.at is None or member.at.id != round_.id
