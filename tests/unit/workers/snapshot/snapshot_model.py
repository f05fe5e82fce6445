"""A cluster whose ranks take snapshots and restore them, one small action at a time, as plain data.

What is chosen and who sends what is the real `workers.snapshot.restore_plan`; the order in which a
rank copies, seals, agrees, sends its last bucket and finishes is that of
`workers.snapshot.snapshots`; which nodes keep copies of others' pieces is `layout.survival`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.survival.buddies import BuddyCopy, buddy_copies
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.snapshot.piece import Label, SnapshotId, Spec, split_by_bytes
from bundlerun.workers.snapshot.restore_plan import (
    Inventory,
    Piece,
    RestorePlan,
    newest_state,
    plan_restore,
)

NAMES = [f"model.{number}" for number in range(6)]
SPEC = Spec("float32", (2,))
Content = SnapshotId
"""What a tensor's bytes are: those of a step as a round computed it."""


@dataclass(slots=True)
class File:
    """A slot: `piece` is None while it is not sealed."""

    piece: Piece | None
    content: dict[str, Content]


@dataclass(slots=True)
class Machine:
    """A node, by name; its memory outlives its ranks, not itself."""

    files: dict[str, File] = field(default_factory=dict)


@dataclass(slots=True)
class Rank:
    """One rank of the round that runs."""

    step: int
    num_saved: int = 0
    begun: int = -1
    """The newest step whose copy has begun, then that which is sealed."""
    sealed: int = -1
    copied: int = -1
    """The newest step that the nodes have which are to keep this rank's pieces, too."""
    sent: int = -1
    """The newest step whose last bucket has left."""
    changed: int = -1
    """The newest step whose first sums have changed a part of the state."""
    is_alive: bool = True


def names_of(num_stages: int, stage: int) -> list[str]:
    """The names of a stage, cut evenly."""
    return NAMES[stage * 6 // num_stages : (stage + 1) * 6 // num_stages]


class Cluster:
    """Nodes, the round that runs on some of them, and what is known to have been finished."""

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}
        self.members: list[str] = []
        self.topology: Topology | None = None
        self.ranks: list[Rank] = []
        self.num_rounds = 0
        self.token = ""
        self.first_step = 0
        self.restored: Content | None = None
        self.floor = 0
        """A step that must not be lost while `last_holders` leave one node of each stage."""
        self.last_holders: list[set[str]] = []
        self.all_holders: list[set[str]] = []
        """With those that keep copies of others, from the first snapshot of the round on."""
        self.copies: tuple[BuddyCopy, ...] = ()

    def copies_of(self, topology: Topology) -> tuple[BuddyCopy, ...]:
        """What goes to other nodes."""
        return buddy_copies(topology, 2)

    # --- what a mutation changes

    def may_send_last(self, rank: int) -> bool:
        """I8: all of the bundle have sealed the step that this rank has finished."""
        assert self.topology is not None
        bundle = self.topology.bundles[self.topology.places[rank].bundle]
        step = self.ranks[rank].step
        return step == self.first_step or all(
            self.ranks[r].sealed >= step and self.is_copied(r, step) for r in bundle
        )

    def may_change(self, rank: int) -> bool:
        """Whether sums of the next step that are back may change the state, others still to come.

        With --overlap-forward they do, while the rank computes its next forward.
        """
        return self.ranks[rank].sent == self.ranks[rank].step + 1

    def is_copied(self, rank: int, step: int) -> bool:
        """Whether all that are to keep this rank's piece have sealed it."""
        return not self.targets(rank) or self.ranks[rank].copied >= step

    def targets(self, rank: int) -> list[int]:
        """Ranks whose nodes keep this rank's pieces."""
        return [one.target for one in self.copies if one.source == rank]

    def slot_of(self, num_saved: int) -> str:
        """I7: into the older one."""
        return "ab"[num_saved % 2]

    def inventory(self, members: Sequence[str]) -> Inventory:
        """What each node says that it has."""
        return [
            [file.piece for file in self.machines[name].files.values() if file.piece is not None]
            for name in members
        ]

    # --- a step, in parts

    def act(self, rank: int) -> bool:
        """The next thing that this rank can do; False where it has to wait for others."""
        assert self.topology is not None
        me = self.ranks[rank]
        if not me.is_alive:
            return False
        if me.step > self.first_step and me.begun < me.step:
            self._begin_copy(rank)
        elif me.step > self.first_step and me.sealed < me.step:
            self._seal(rank)
        elif me.step > self.first_step and not self.is_copied(rank, me.step):
            return self._pass_on(rank)
        elif me.sent <= me.step and self.may_send_last(rank):
            me.sent = me.step + 1
        elif me.changed <= me.step and self.may_change(rank):
            me.changed = me.step + 1
        elif me.sent == me.step + 1 and self._sums_are_back(rank):
            self._finish(me)
        else:
            return False
        return True

    def act_early(self, rank: int) -> bool:
        """The same, but what the main thread does goes before what the copying thread does."""
        me = self.ranks[rank]
        if me.is_alive and me.sent <= me.step and self.may_send_last(rank):
            me.sent = me.step + 1
            return True
        if me.is_alive and me.changed <= me.step and self.may_change(rank):
            me.changed = me.step + 1
            return True
        if me.is_alive and me.sent == me.step + 1 and self._sums_are_back(rank):
            self._finish(me)
            return True
        return self.act(rank)

    def _finish(self, me: Rank) -> None:
        me.step += 1
        # It knows that all have the step before, copies included.
        if me.step - 1 > self.first_step:
            self.last_holders = self.all_holders
        self.floor = max(self.floor, me.step - 1)

    def _sums_are_back(self, rank: int) -> bool:
        assert self.topology is not None
        stage = self.topology.places[rank].stage
        return all(
            self.ranks[place.rank].sent > self.ranks[rank].step
            for place in self.topology.places
            if not place.is_spare and place.stage == stage
        )

    def _begin_copy(self, rank: int) -> None:
        assert self.topology is not None
        me, place = self.ranks[rank], self.topology.places[rank]
        me.begun = me.step
        me.num_saved += 1
        if place.local_rank == 0:
            self._forget(self.members[place.node], me.num_saved)
        mine = self._share(rank)
        file = self._files(rank).setdefault(self._path(rank), File(None, {}))
        file.piece = None
        for name in mine[: len(mine) // 2]:  # the rest still has the bytes of before
            file.content[name] = SnapshotId(me.step, self.token)

    def _seal(self, rank: int) -> None:
        me = self.ranks[rank]
        me.sealed = me.begun
        mine = self._share(rank)
        file = self._files(rank)[self._path(rank)]
        file.content = dict.fromkeys(mine, SnapshotId(me.begun, self.token))
        for name in mine[: len(mine) // 2]:  # what the copy has read, if it came that late
            file.content[name] = SnapshotId(max(me.begun, me.changed), self.token)
        file.piece = Piece(self._label(rank), dict.fromkeys(mine, SPEC))

    def _pass_on(self, rank: int) -> bool:
        """Sends the piece on, once all of the bundle have theirs; a dead rank takes nothing."""
        assert self.topology is not None
        me = self.ranks[rank]
        bundle = self.topology.bundles[self.topology.places[rank].bundle]
        targets = self.targets(rank)
        if not all(self.ranks[r].sealed >= me.step for r in bundle):
            return False
        if not all(self.ranks[r].is_alive and self.ranks[r].step >= me.step for r in targets):
            return False
        own = self._files(rank)[self._path(rank)]
        # In two parts, as it takes long: first the slots of the others are open, then sealed.
        is_open = all(self._taken(rank, t).piece is None for t in targets)
        for target in targets:
            taken = self._taken(rank, target)
            if is_open:
                taken.piece, taken.content = own.piece, dict(own.content)
            else:
                taken.piece = None
        if is_open:
            me.copied = me.step
        return True

    def _taken(self, rank: int, target: int) -> File:
        path = f"{self.token}.buddy-of-{rank}-{self.slot_of(self.ranks[rank].num_saved)}"
        return self._files(target).setdefault(path, File(None, {}))

    def _forget(self, name: str, num_saved: int) -> None:
        if num_saved > 2:
            return
        files = self.machines[name].files
        for path, file in list(files.items()):
            if path.startswith(f"{self.token}."):
                continue
            label = None if file.piece is None else file.piece.label
            if num_saved == 1 and label and label.id == self.restored:
                continue
            del files[path]

    def _files(self, rank: int) -> dict[str, File]:
        assert self.topology is not None
        return self.machines[self.members[self.topology.places[rank].node]].files

    def _path(self, rank: int) -> str:
        return f"{self.token}.{rank}-{self.slot_of(self.ranks[rank].num_saved)}"

    def _share(self, rank: int) -> list[str]:
        assert self.topology is not None
        place = self.topology.places[rank]
        mates = self.topology.collect_ranks(place.stage, place.node)
        names = names_of(self.topology.num_stages, place.stage)
        return split_by_bytes(dict.fromkeys(names, 8), len(mates))[mates.index(rank)]

    def _label(self, rank: int) -> Label:
        assert self.topology is not None
        step, stage = self.ranks[rank].begun, self.topology.places[rank].stage
        return Label(
            step=step,
            token=self.token,
            stage=stage,
            num_stages=self.topology.num_stages,
            num_names=len(names_of(self.topology.num_stages, stage)),
            progress=Progress(step=step, epoch=0, step_in_epoch=step, samples_seen=step),
        )

    # --- failures

    def kill_rank(self, rank: int) -> None:
        """Its memory stays."""
        self.ranks[rank].is_alive = False

    def lose(self, name: str) -> None:
        """A node with all its memory, and its ranks."""
        del self.machines[name]
        for rank, me in enumerate(self.ranks):
            assert self.topology is not None
            if self.members[self.topology.places[rank].node] == name:
                me.is_alive = False

    # --- the next round

    def restart(
        self, members: Sequence[str], shape: tuple[int, ...], killed_at: int, devices: int = 4
    ) -> bool:
        """Restores on other nodes and in another shape; False where it was killed meanwhile.

        Args:
            killed_at: number of the transfer in which all ranks are killed.
            devices: of each node; with one, a bundle spans nodes, where they are enough for it.
        """
        self.ranks, self.topology = [], None
        self.num_rounds += 1
        token = f"round{self.num_rounds}"
        devices = devices if devices * len(members) >= sum(shape) else 4
        topology = Topology(Shape(shape), (devices,) * len(members))
        needs = [names_of(len(shape), stage) for stage in range(len(shape))]
        inventory = self.inventory(members)
        plan = plan_restore(inventory, -1, topology, needs)
        state = newest_state(inventory)
        must_have = bool(self.last_holders) and all(
            held & set(members) for held in self.last_holders
        )
        if must_have and self.floor > 0:
            assert state is not None, f"step {self.floor} is lost"
            assert state.id.step >= self.floor, f"step {self.floor} is lost"
        if plan is not None and not self._transfer(plan, members, token, killed_at):
            return False
        self._begin(plan, members, topology, token)
        return True

    def _transfer(
        self, plan: RestorePlan, members: Sequence[str], token: str, killed_at: int
    ) -> bool:
        wanted = plan.state.id
        for number, transfer in enumerate(plan.transfers):
            files = self.machines[members[transfer.target]].files
            file = File(None, {})
            files[f"{plan.state.id.token}.received{number}-{token}"] = file
            if number == killed_at:
                return False
            held = self._held(members[transfer.source], wanted)
            file.content = {name: held[name] for name in transfer.names}
            label = plan.state.labels[transfer.stage]
            file.piece = Piece(label, dict.fromkeys(transfer.names, SPEC))
        return True

    def _held(self, name: str, wanted: Content) -> dict[str, Content]:
        """What a node has under the label of a state."""
        held: dict[str, Content] = {}
        for file in self.machines[name].files.values():
            label = None if file.piece is None else file.piece.label
            if label is not None and label.id == wanted:
                held |= file.content
        return held

    def _begin(
        self, plan: RestorePlan | None, members: Sequence[str], topology: Topology, token: str
    ) -> None:
        self.restored = None if plan is None else plan.state.id
        self.first_step = 0 if plan is None else plan.state.id.step
        loaded: set[Content] = set()
        holders: list[set[str]] = [set() for _ in range(topology.num_stages)]
        for place in topology.places:
            if place.is_spare:
                continue
            holders[place.stage].add(members[place.node])
            if self.restored is not None:
                held = self._held(members[place.node], self.restored)
                loaded |= {held[name] for name in names_of(topology.num_stages, place.stage)}
        assert len(loaded) == (self.restored is not None), "a mixed state"
        assert {content.step for content in loaded} <= {self.first_step}, "a mixed state"
        self.members, self.topology, self.token = list(members), topology, token
        self.ranks = [Rank(self.first_step) for _ in topology.places]
        self.copies = self.copies_of(topology)
        # The first snapshot of the round brings copies to other nodes; a loss before that is one
        # of all there was.
        self.all_holders = [set(held) for held in holders]
        for one in self.copies:
            held = self.all_holders[topology.places[one.source].stage]
            held.add(members[topology.places[one.target].node])
        self.last_holders, self.floor = holders, self.first_step
