"""The state of the last step, from ranks that go on in another round to those that join them.

    who goes on     its piece of step s is sealed, beside its first step there | sends it
    who joins       takes the pieces of its stage, seals them                  | loads
    others of that node and stage      wait for the first, and load from the node's memory

Who joins has nothing to compute in that step (`Feed.rest`), so it has as long as the others do. It
comes to their sums once it has the state of step s in memory, as everybody (I8).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.layout.topology import Topology
from bundlerun.workers.pipeline.helper import Helper
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.rank.groups import make_transfer
from bundlerun.workers.snapshot.passing import label_of, receive_piece, send_piece
from bundlerun.workers.snapshot.piece import Label, Layout
from bundlerun.workers.snapshot.restore import Restored
from bundlerun.workers.snapshot.room import SnapshotRoom
from bundlerun.workers.snapshot.slot import Slot
from bundlerun.workers.snapshot.snapshots import Snapshots


class Passing(NamedTuple):
    """A piece that goes from one rank to another."""

    source: int
    target: int


def passings(topology: Topology, num_before: int) -> list[Passing]:
    """Pure: who passes its piece to whom; the first ranks go on, the others' nodes join.

    A node's share of a stage is in one piece for each of its replicas there, so all of these send;
    of the nodes that have a stage each joining one gets it from another.

    Args:
        topology: of the round that begins.
        num_before: ranks of the round before.
    """
    found = []
    held = [(group.node, group.stage) for group in topology.sync_groups]
    for node, stage in held:
        target = topology.collect_ranks(stage, node)[0]
        if target < num_before:
            continue
        sources = [n for n, s in held if s == stage and topology.first_ranks[n] < num_before]
        chosen = sources[node % len(sources)]
        found += [Passing(rank, target) for rank in topology.collect_ranks(stage, chosen)]
    return found


class Passer:
    """One rank's part in it.

    Collective: all ranks of the round make one, after their groups.

    Args:
        session: its place in the round that begins.
        num_before: ranks of the round before.
    """

    def __init__(self, session: Session, num_before: int) -> None:
        self._session = session
        own, network = session.place.rank, session.arrival.network
        self._links: list[tuple[Passing, Group]] = [
            (each, make_transfer(network, number, *each))
            for number, each in enumerate(passings(session.topology, num_before))
            if own in each
        ]
        self.num_bundles = num_before // session.topology.shape.size
        """Those that go on; the others rest in the first step."""

    def give(self, piece: Callable[[], Slot | None]) -> Future[None]:
        """Begins to send, in a thread, what `piece` gives there once it is sealed."""
        return Helper("pass on", self._session.device).add(partial(self._give, piece))

    def _give(self, piece: Callable[[], Slot | None]) -> None:
        for each, group in self._links:
            slot = piece()
            if not send_piece(group, 1, slot):
                why = "it has no room" if slot else "there is no snapshot of it"
                raise RuntimeError(f"rank {each.target} did not get the state: {why}")

    def take(self, room: SnapshotRoom) -> Restored:
        """The state, once what this rank loads of it is in the memory of its node.

        Raises:
            NodeError: there is no room for it.
            RuntimeError: who was to send it did not.
        """
        place, store = self._session.place, self._session.store
        key = f"passed/{place.node}/{place.stage}"
        if self._links:
            labels = [self._taken(room, number) for number in range(len(self._links))]
            if len({label.id for label in labels}) > 1:
                raise RuntimeError(f"pieces of several states came: {labels}")
            store.set(key, json.dumps(asdict(labels[0])))
        # All of the stage on this node; its first rank has just said it.
        label = label_of(json.loads(store.get(key)))
        return Restored(
            id=label.id, progress=label.progress, brought={label.stage: self._sources()}
        )

    def _taken(self, room: SnapshotRoom, number: int) -> Label:
        session = self._session

        def slot(label: Label, layout: Layout) -> Slot:
            role = f"node{session.place.node}-passed{place.rank}-{number}-{session.token}"
            try:
                return room.make_slot(label.token, role, layout)
            except OSError as exc:
                raise NodeError(
                    f"this node cannot take its part of the snapshot of step {label.step}: "
                    f"{exc.strerror}; give another --snapshot-dir, or --snapshot off"
                ) from exc

        place = session.place
        label = receive_piece(self._links[number][1], 0, slot)
        if label is None:
            raise RuntimeError(f"rank {self._links[number][0].source} has no snapshot to pass on")
        return label

    def _sources(self) -> Sequence[str]:
        topology, nodes = self._session.topology, self._session.nodes
        return sorted({nodes[topology.places[each.source].node].name for each, _ in self._links})


class FirstGate:
    """What the first step in another round waits for, besides its own snapshots (I8).

    Args:
        before: of the round before; its last copy may be under way.
        given: what this rank passes on.
        own: of this round.
    """

    def __init__(self, before: Snapshots, given: Future[None], own: Snapshots) -> None:
        self._before: Snapshots | None = before
        self._given = given
        self._own = own

    def before_first(self) -> None:
        """See `Gate`."""
        if self._before is not None:
            self._before.before_first()
        self._own.before_first()

    def before_last(self) -> None:
        """See `Gate`."""
        if self._before is not None:
            self._before.settle()
            self._given.result()
            # What it holds of the node's memory goes, too.
            self._before.close()
            self._before = None
        self._own.before_last()

    def finish_copy(self, limit_s: float) -> None:
        """See `Snapshots`."""
        if self._before is not None:
            self._before.finish_copy(limit_s)
        self._own.finish_copy(limit_s)
