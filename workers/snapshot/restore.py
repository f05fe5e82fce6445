"""Brings the newest state from the memory of the nodes to where it is needed, all ranks together.

    each node's first rank     looks through its pieces             node/N, specs/DIGEST
    reporter                   finds the newest whole state         found, names
    first replica of a stage   says what its stage needs            needs/STAGE
    reporter                   plans who sends what                 plan, transfer/I
    first ranks, in pairs      send and receive into memory         ready/N
    all                        load from the memory of their node

The store sees a few keys per node and stage. Transfers have one order, that of the plan; each rank
does its own in that order, one at a time. So none waits for another in a circle: of those that are
not done, the first has both its ranks free.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.corruption.marks import is_trusted, read_marks
from bundlerun.launcher.errors import CheckpointError, NodeError
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.arrival.session import Arrival
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.rank.groups import make_transfer
from bundlerun.workers.snapshot.checksum import copy_with_checksum
from bundlerun.workers.snapshot.own_plan import Own, OwnPlan, plan_own
from bundlerun.workers.snapshot.passing import (
    label_of,
    send_data,
    specs_of,
    take_data,
    wait_all,
)
from bundlerun.workers.snapshot.piece import Label, Layout, SnapshotId, Spec
from bundlerun.workers.snapshot.restore_plan import (
    Inventory,
    Piece,
    RestorePlan,
    newest_state,
    plan_restore,
)
from bundlerun.workers.snapshot.room import SnapshotRoom
from bundlerun.workers.snapshot.slot import read_label, read_piece

log = logging.getLogger(__name__)

Pick = Callable[[Iterable[str]], Iterable[str]]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a round continues from."""

    id: SnapshotId
    progress: Progress
    brought: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """Stages of the round that took it, of which something had to travel; and the nodes it was
    on."""
    others: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What this node takes up of situations that nobody is in any more: the names."""


class Restore:
    """One rank's part in finding and fetching a snapshot.

    Args:
        config: of the run.
        arrival: this rank, spare or not.
        is_reporter: whether it decides for all; one rank does, and is not spare.
    """

    def __init__(self, config: TrainConfig, arrival: Arrival, *, is_reporter: bool) -> None:
        self._arrival = arrival
        self._store = PrefixStore("restore", arrival.store)
        self._is_reporter = is_reporter
        self._node = arrival.place.node
        self._inventory: Inventory = ()
        self._paths = RunPaths(Path(config.run_dir))
        # One rank reads the folder, so that all have the same id although it may be new.
        if is_reporter:
            self._store.set("run", _run_id(self._paths))
        self._run_id = self._store.get("run").decode()
        # A copy of a run folder has the same id.
        run = f"{self._run_id} {Path(config.run_dir).resolve()}"
        self.room = SnapshotRoom.of(run, arrival.node_name, config.snapshot_dir)
        # One rank per node: the pieces of a node are announced once, and swept once.
        if arrival.is_speaker:
            self.room.sweep()
            self._announce()

    def tell_run(self, store: Store) -> None:
        """Lets who joins in another round find its snapshots, as the reporter of one does here.

        Args:
            store: of that round.
        """
        PrefixStore("restore", store).set("run", self._run_id)

    def keep_run_id(self) -> None:
        """Lets the next start find the snapshots of this one, where the run folder was lost."""
        try:
            write_text(self._paths.run_id, f"{self._run_id}\n")
        except OSError as exc:
            log.error("cannot write %s: %s", self._paths.run_id, exc.strerror)

    def newest_step(self) -> int:
        """The step of the newest state that is whole; -1 where there is none.

        Collective: every active rank.
        """
        if self._is_reporter:
            self._inventory = self._trusted(self._collected())
            # `get` waits for the key, so what is set last says that the names are there.
            state = newest_state(self._inventory)
            self._store.set("names", json.dumps([] if state is None else list(state.specs)))
            self._store.set("found", str(-1 if state is None else state.id.step))
        return int(self._store.get("found"))

    def decline(self) -> None:
        """Says that no snapshot is wanted; by the reporter."""
        if self._is_reporter:
            self._store.set("plan", json.dumps({}))

    def fetch(
        self,
        checkpoint_step: int,
        stage_names: Callable[[Iterable[str]], list[str]] | None,
        own: Own,
    ) -> Restored:
        """Brings what this node needs of the state that `newest_step` found to its memory.

        Collective: every active rank; one that is spare calls `lend`.

        Args:
            checkpoint_step: of the newest checkpoint, older than the state.
            stage_names: picks the names of this rank's stage; None: another rank does.
            own: what this rank keeps for itself.

        Raises:
            CheckpointError: the state is of another model.
        """
        self._store.set(f"situation/{self._arrival.place.rank}", own.situation)
        if stage_names is not None:
            self._tell_needs(stage_names)
        if self._is_reporter:
            self._tell_plan(checkpoint_step, own)
        # The reporter follows its own plan too: there is one way for all ranks.
        restored = self._follow_plan()
        assert restored is not None
        return restored

    def lend(self) -> None:
        """Sends what others need of what this node has; by each spare rank."""
        if self._arrival.is_speaker:
            self._follow_plan()

    def load(self, restored: Restored, pick: Pick, situation: str = "") -> dict[str, Tensor]:
        """Tensors of the state from the memory of this node, checked; views of it.

        Args:
            restored: the state.
            pick: those wanted of the names that there are.
            situation: of a rank that kept them for itself; empty: the run's state.

        Raises:
            RuntimeError: a tensor was damaged after it was announced.
        """
        pieces = list(self._pieces(restored, situation))
        wanted = set(pick([name for _, layout in pieces for name in layout.specs]))
        loaded: dict[str, Tensor] = {}
        for path, layout in pieces:
            names = (wanted & layout.specs.keys()) - loaded.keys()
            # Checked again: between the announcement and now, memory may have been taken away.
            piece = read_piece(path) if names else None
            if piece is not None:
                loaded |= {name: piece.tensor(name) for name in names}
        if wanted - loaded.keys():
            raise RuntimeError(f"the snapshot was damaged: {min(wanted - loaded.keys())!r} is gone")
        return loaded

    def load_others(self, restored: Restored) -> Iterator[dict[str, Tensor]]:
        """What ranks have kept for themselves and this node takes up; views, checked."""
        for situation, names in restored.others.items():
            yield self.load(restored, partial(_these, names), situation)

    # --- what is where

    def _announce(self) -> None:
        entries: list[object] = []
        own: list[object] = []
        for path in self.room.pieces():
            piece = read_piece(path)
            if piece is None:  # damaged
                continue
            text = json.dumps(piece.layout.specs)
            # Nodes with one stage have the same names and shapes: these travel once, by digest.
            digest = hashlib.sha256(text.encode()).hexdigest()
            self._store.set(f"specs/{digest}", text)
            (own if piece.label.situation else entries).append([asdict(piece.label), digest])
        self._store.set(f"node/{self._node}", json.dumps(entries))
        self._store.set(f"own/{self._node}", json.dumps(own))

    def _collected(self, kind: str = "node") -> Inventory:
        known: dict[str, dict[str, Spec]] = {}

        def by_digest(digest: str) -> dict[str, Spec]:
            if digest not in known:
                known[digest] = specs_of(json.loads(self._store.get(f"specs/{digest}")))
            return known[digest]

        return [
            [Piece(label_of(label), by_digest(digest)) for label, digest in json.loads(entries)]
            for entries in (
                self._store.get(f"{kind}/{n}") for n in range(self._arrival.topology.num_nodes)
            )
        ]

    def _trusted(self, inventory: Inventory) -> Inventory:
        """Without what was found to be corrupted, or may be."""
        marks = read_marks(self._paths)
        return [
            [piece for piece in here if is_trusted(piece.label.step, piece.label.era, marks)]
            for here in inventory
        ]

    def _pieces(self, restored: Restored, situation: str) -> Iterator[tuple[Path, Layout]]:
        """The files of a state here, by what they say."""
        for path in self.room.pieces():
            label, layout = read_label(path) or (None, None)
            if label is None or layout is None or label.situation != situation:
                continue
            if label.id == restored.id:
                yield path, layout

    # --- who needs what

    def _tell_needs(self, stage_names: Callable[[Iterable[str]], list[str]]) -> None:
        names = json.loads(self._store.get("names"))
        try:
            told: object = stage_names(names)
        except CheckpointError as exc:
            # Told to the reporter, so that all ranks raise it and none waits for a plan.
            told = str(exc)
        self._store.set(f"needs/{self._arrival.place.stage}", json.dumps(told))

    def _tell_plan(self, checkpoint_step: int, own: Own) -> None:
        topology = self._arrival.topology
        needs = [json.loads(self._store.get(f"needs/{s}")) for s in range(topology.num_stages)]
        mismatches = [told for told in needs if isinstance(told, str)]
        if mismatches:
            self._store.set("plan", json.dumps({"error": mismatches[0]}))
            return
        plan = plan_restore(self._inventory, checkpoint_step, topology, needs)
        assert plan is not None
        # Before the plan: who has read the plan finds all its transfers.
        for number, transfer in enumerate(plan.transfers):
            label = plan.state.labels[transfer.stage]
            specs = {name: plan.state.specs[name] for name in transfer.names}
            self._store.set(f"transfer/{number}", json.dumps([asdict(label), specs]))
        moved = self._plan_own(plan.state.id, own, needs, len(plan.transfers))
        self._store.set("plan", _plan_text(plan, moved))

    def _plan_own(
        self, which: SnapshotId, own: Own, needs: Sequence[Collection[str]], before: int
    ) -> OwnPlan:
        """The plan for what ranks have for themselves, with its transfers in the store."""
        topology = self._arrival.topology
        nodes = [
            sorted({group.node for group in topology.sync_groups if group.stage == stage})
            for stage in range(topology.num_stages)
        ]
        stages = {name: stage for stage, names in enumerate(needs) for name in names}
        active = [place for place in topology.places if place.bundle >= 0]
        now = {self._store.get(f"situation/{place.rank}").decode(): place.node for place in active}

        def nodes_of(name: str) -> Collection[int]:
            of = own.belongs_to(name)
            return nodes[stages[of]] if of in stages else ()

        plan = plan_own(self._collected("own"), which, now, nodes_of)
        for number, one in enumerate(plan.transfers, before):
            told = [asdict(one.label), one.specs]
            self._store.set(f"transfer/{number}", json.dumps(told))
        return plan

    # --- transfers

    def _follow_plan(self) -> Restored | None:
        plan = json.loads(self._store.get("plan"))
        if not plan:
            return None
        if "error" in plan:
            raise CheckpointError(plan["error"])
        restored = Restored(
            id=SnapshotId(plan["step"], plan["token"]),
            progress=Progress(**plan["progress"]),
            brought=self._brought(plan["brought"]),
            others=plan["others"].get(str(self._node), {}),
        )
        pairs: list[tuple[int, int]] = plan["transfers"]
        if self._arrival.is_speaker:
            self._do_transfers(restored, pairs)
        # The other ranks of a node wait until its first rank has received what they will load.
        if self._node in {target for _, target in pairs}:
            if self._arrival.is_speaker:
                self._store.set(f"ready/{self._node}", "")
            self._store.get(f"ready/{self._node}")
        return restored

    def _brought(self, told: Mapping[str, Sequence[int]]) -> dict[int, list[str]]:
        nodes = self._arrival.nodes
        return {int(stage): [nodes[n].name for n in sources] for stage, sources in told.items()}

    def _do_transfers(self, restored: Restored, pairs: Sequence[tuple[int, int]]) -> None:
        first_ranks = self._arrival.topology.first_ranks
        # In one order on all nodes, so that no two of them wait for each other.
        for number, (source, target) in enumerate(pairs):
            if self._node not in (source, target):
                continue
            ends = first_ranks[source], first_ranks[target]
            group = make_transfer(self._arrival.network, number, *ends)
            told, specs = json.loads(self._store.get(f"transfer/{number}"))
            label, layout = label_of(told), Layout.of(specs_of(specs))
            if self._node == source:
                these = partial(_these, list(layout.specs))
                self._send(group, layout, self.load(restored, these, label.situation))
            else:
                self._receive(group, layout, label, number)

    def _send(self, group: Group, layout: Layout, held: Mapping[str, Tensor]) -> None:
        data = torch.zeros(layout.num_bytes, dtype=torch.uint8)
        places = ((layout.begins[name], held[name]) for name in layout.specs)
        data_sum = copy_with_checksum(data.numpy(), places)
        send_data(group, 1, data, data_sum)
        # Until the other has it all, nobody here closes the connection.
        wait_all(group.receive(torch.zeros(1, dtype=torch.uint8), 1))

    def _receive(self, group: Group, layout: Layout, label: Label, number: int) -> None:
        role = f"node{self._node}-received{number}-{self._arrival.token}"
        try:
            slot = self.room.make_slot(label.token, role, layout)
        except OSError as exc:
            raise NodeError(
                f"this node cannot take its part of the snapshot of step {label.step}: "
                f"{exc.strerror}; give another --snapshot-dir, or --snapshot off"
            ) from exc
        take_data(group, 0, slot, label)
        wait_all(group.send(torch.zeros(1, dtype=torch.uint8), 0))


def _run_id(paths: RunPaths) -> str:
    """The run's id; made where there is none, so that a folder made again is a new run.

    Raises:
        NodeError: the run folder cannot be made or written: nothing of the run could be kept.
    """
    try:
        text = paths.run_id.read_text(encoding="ascii").strip()
        if text:
            return text
    except (OSError, ValueError):
        pass
    made = os.urandom(8).hex()
    try:
        write_text(paths.run_id, f"{made}\n")
    except OSError as exc:
        remedy = "make room" if exc.errno in _FULL else "give a folder that you may write"
        raise NodeError(
            f"cannot write --run-dir {str(paths.root)!r}: {exc.strerror}; {remedy}"
        ) from exc
    return made


def _plan_text(plan: RestorePlan, own: OwnPlan) -> str:
    return json.dumps(
        {
            **asdict(plan.state.id),
            "progress": asdict(plan.state.progress),
            "transfers": [
                *([t.source, t.target] for t in plan.transfers),
                *([t.source, t.target] for t in own.transfers),
            ],
            "others": own.taken,
            "brought": {
                stage: sorted({t.source for t in plan.transfers if t.stage == stage})
                for stage in sorted({t.stage for t in plan.transfers})
            },
        }
    )


def _these(names: Sequence[str], _: Iterable[str]) -> Sequence[str]:
    return names
