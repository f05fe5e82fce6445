"""Copies of snapshots on other nodes, for stages that too few nodes run (`layout.survival`).

    source    snapshot thread     copy, seal | the bundle has | send ....... kept? | the bundle has
    target    thread of its own                                 take, check, seal |

A target begins to take when it takes its own snapshot of that step, so neither waits for long.
What it has is a piece like any other: a restore finds it without being told of buddies.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future

import torch

from bundlerun.launcher.layout.survival.buddies import BuddyCopy
from bundlerun.workers.pipeline.helper import Helper
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.snapshot.passing import receive_piece, send_piece
from bundlerun.workers.snapshot.piece import Label, Layout
from bundlerun.workers.snapshot.room import SnapshotRoom
from bundlerun.workers.snapshot.slot import Slot
from bundlerun.workers.snapshot.turns import Turns

log = logging.getLogger(__name__)

_CPU = torch.device("cpu")


def has_buddies(session: Session) -> bool:
    """Whether some rank of this bundle sends copies: then all of the bundle wait for that."""
    ranks = session.topology.bundles[session.place.bundle]
    return any(one.source in ranks for one in session.groups.copies)


class Buddies:
    """What one rank sends to other nodes, and takes for its own.

    Args:
        session: this rank's place in the round.
        room: where pieces of others go.
    """

    def __init__(self, session: Session, room: SnapshotRoom) -> None:
        groups, rank = session.groups.buddies, session.place.rank
        self._session = session
        self._targets = {one: group for one, group in groups.items() if one.source == rank}
        self._takers = [
            _Taker(session, room, one, group) for one, group in groups.items() if one.target == rank
        ]
        self._helper = Helper("buddies", _CPU)
        self._taking: list[Future[None]] = []
        self._told: set[BuddyCopy] = set()

    def expect(self) -> None:
        """Takes what others send of the step that this rank takes its own snapshot of."""
        self._taking = [answer for answer in self._taking if not answer.done()]
        self._taking += [self._helper.add(taker.take) for taker in self._takers]

    def send(self, slot: Slot | None) -> None:
        """Returns once all who are to have this piece have it; in the snapshot thread.

        Args:
            slot: with the piece, sealed; None: there is none.
        """
        for one, group in self._targets.items():
            is_kept = send_piece(group, 1, slot)
            if slot is not None and not is_kept and one not in self._told:
                self._told.add(one)
                places = self._session.topology.places
                log.warning(
                    "node %s has no room for a copy of stage %d: if node %s is lost, a restart "
                    "continues from the newest checkpoint",
                    self._name(places[one.target].node),
                    places[one.source].stage,
                    self._name(places[one.source].node),
                )

    @property
    def under_way(self) -> list[Future[None]]:
        """What others have begun to send."""
        return self._taking

    def _name(self, node: int) -> str:
        nodes = self._session.nodes
        return nodes[node].name if nodes else str(node)


class _Taker:
    """Takes the pieces of one other rank."""

    def __init__(self, session: Session, room: SnapshotRoom, one: BuddyCopy, group: Group) -> None:
        own, its = session.place, session.topology.places[one.source]
        role = f"node{own.node}-buddy-of-rank{one.source}-stage{its.stage}"
        self._turns: Turns | None = Turns(room, session.token, role, _CPU)
        self._group = group

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
            log.warning(
                "no room for the copy of stage %d of another node: %s", label.stage, exc.strerror
            )
            # Not tried again: a copy that comes and goes is none that anybody may count on.
            self._turns = None
            return None
