"""Copies of snapshots on other nodes, for stages that too few nodes run (`layout.survival`).

    source    snapshot thread     copy, seal | the bundle has | send ....... kept? | the bundle has
    target    thread of its own                                 take, check, seal |

A target begins to take when it takes its own snapshot of that step, so neither waits for long.
What it has is a piece like any other: a restore finds it without being told of buddies.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future

import torch

from bundlerun.launcher.layout.survival.buddies import BuddyCopy, nodes_with
from bundlerun.launcher.layout.survival.machines import on_one_machine, one_machine_text
from bundlerun.workers.pipeline.helper import Helper
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.snapshot.link_share import LinkShare
from bundlerun.workers.snapshot.passing import receive_piece, send_piece
from bundlerun.workers.snapshot.piece import Label, Layout
from bundlerun.workers.snapshot.room import SnapshotRoom
from bundlerun.workers.snapshot.slot import Slot
from bundlerun.workers.snapshot.turns import Turns

log = logging.getLogger(__name__)

_CPU = torch.device("cpu")
_MOST_TRIES = 3
"""Pieces for which a node looks for room: until a round has two snapshots of its own, it keeps what
the one before has left."""

Tell = Callable[[str], None]
"""Says what is not kept as was asked, in a line, where `bundlerun status` finds it."""


def tell_nobody(text: str) -> None:
    """For who has no event log."""


def has_buddies(session: Session) -> bool:
    """Whether some rank of this bundle sends copies: then all of the bundle wait for that."""
    ranks = session.topology.bundles[session.place.bundle]
    return any(one.source in ranks for one in session.groups.copies)


class Buddies:
    """What one rank sends to other nodes, and takes for its own.

    Args:
        session: this rank's place in the round.
        room: where pieces of others go.
        share: of a link that a copy takes at most.
        tell: what is not kept.
        is_first_start: of the run: then a reader does not know yet where its nodes are.
    """

    def __init__(
        self,
        session: Session,
        room: SnapshotRoom,
        *,
        share: float = 1.0,
        tell: Tell = tell_nobody,
        is_first_start: bool = True,
    ) -> None:
        groups, rank = session.groups.buddies, session.place.rank
        self._session = session
        self._tell = tell
        self._is_first_start = is_first_start
        self._links = {one: LinkShare(share) for one in groups}
        self._targets = {one: group for one, group in groups.items() if one.source == rank}
        self._takers = [
            _Taker(session, room, one, group) for one, group in groups.items() if one.target == rank
        ]
        self._helper = Helper("buddies", _CPU)
        self._taking: list[Future[None]] = []
        self._num_refused: Counter[BuddyCopy] = Counter()
        self._has_told_machines = not session.is_reporter

    def expect(self) -> None:
        """Takes what others send of the step that this rank takes its own snapshot of."""
        self._taking = [answer for answer in self._taking if not answer.done()]
        self._taking += [self._helper.add(taker.take) for taker in self._takers]

    def send(self, slot: Slot | None) -> float:
        """Returns once all who are to have this piece have it; in the snapshot thread.

        Args:
            slot: with the piece, sealed; None: there is none.

        Returns:
            Seconds of that in which nothing was sent, as the share of a link was used up.
        """
        paused_s = 0.0
        for one, group in self._targets.items():
            link = self._links[one]
            before_s = link.paused_s
            is_kept = send_piece(group, 1, slot, link)
            paused_s += link.paused_s - before_s
            if slot is not None and not is_kept:
                self._refused(one)
        return paused_s

    def _refused(self, one: BuddyCopy) -> None:
        self._num_refused[one] += 1
        # Not sooner: the room of the round before may still be given back.
        if self._num_refused[one] == _MOST_TRIES:
            places = self._session.topology.places
            target, source = places[one.target], places[one.source]
            text = (
                f"node {self._name(target.node)} has no room for a copy of stage {source.stage}: "
                f"if node {self._name(source.node)} is lost, a restart continues from the newest "
                "checkpoint"
            )
            log.warning(text)
            self._tell(text)

    def tell_machines(self) -> None:
        """Says, once and by one rank, which stages are lost with one machine.

        Not before all have begun: what was told of the round before counts no more then.
        """
        if self._has_told_machines:
            return
        self._has_told_machines = True
        nodes, copies = self._session.nodes, self._session.groups.copies
        found = on_one_machine(
            nodes_with(self._session.topology, copies), [node.machine for node in nodes]
        )
        if found:
            text = one_machine_text(found, [node.name for node in nodes])
            self._tell(text)
            if self._is_first_start:
                log.info(text)

    @property
    def under_way(self) -> list[Future[None]]:
        """What others have begun to send."""
        return self._taking

    def _name(self, node: int) -> str:
        nodes = self._session.nodes
        return nodes[node].name if nodes else str(node)


class _Taker:
    """Takes the pieces of one other rank, as long as there is room for them."""

    def __init__(self, session: Session, room: SnapshotRoom, one: BuddyCopy, group: Group) -> None:
        own, its = session.place, session.topology.places[one.source]
        role = f"node{own.node}-buddy-of-rank{one.source}-stage{its.stage}"
        self._turns: Turns | None = Turns(room, session.token, role, _CPU)
        self._group = group
        self._num_tries = 0

    def take(self) -> None:
        kept = receive_piece(self._group, 0, self._place)
        if kept is not None and self._turns is not None:
            self._turns.written()

    def _place(self, label: Label, layout: Layout) -> Slot | None:
        if self._turns is None:
            return None
        try:
            return self._turns.older(layout.specs)
        except OSError as exc:
            self._num_tries += 1
            if self._num_tries == _MOST_TRIES:
                log.warning(
                    "no room for the copy of stage %d of another node: %s",
                    label.stage,
                    exc.strerror,
                )
                # Not tried again: a copy that comes and goes is none that anybody may count on.
                self._turns = None
            return None
