"""Snapshots and restores of a small cluster through any failures, in any order: nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bundlerun.workers.snapshot.piece import SnapshotId
from bundlerun.workers.snapshot.restore_plan import Inventory, Piece
from tests.unit.workers.snapshot.snapshot_model import Cluster, Machine

SHAPES = [(1,), (1, 1), (2, 1), (1, 1, 1)]
SETTINGS = settings(
    max_examples=100,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class Run(RuleBasedStateMachine):
    """Steps, deaths, joins, restores that fail; checks of what is restored are in the model."""

    kind: type[Cluster] = Cluster

    def __init__(self) -> None:
        super().__init__()
        self.cluster = self.kind()
        self.num_joined = 0
        for _ in range(2):
            self.join()
        self.cluster.restart(sorted(self.cluster.machines), (1, 1), killed_at=-1)

    @rule()
    def join(self) -> None:
        if len(self.cluster.machines) < 4:
            self.num_joined += 1
            self.cluster.machines[f"n{self.num_joined}"] = Machine()

    @precondition(lambda self: self.cluster.ranks)
    @rule(
        order=st.lists(st.tuples(st.integers(0, 15), st.booleans(), st.integers(1, 9)), max_size=12)
    )
    def work(self, order: list[tuple[int, bool, int]]) -> None:
        """Some ranks get on, a few actions each, with one thread ahead of the other or not."""
        active = self._active()
        for number, is_early, times in order:
            rank = active[number % len(active)]
            for _ in range(times):
                (self.cluster.act_early if is_early else self.cluster.act)(rank)

    @precondition(lambda self: self.cluster.ranks)
    @rule(number=st.integers(0, 15))
    def kill_rank(self, number: int) -> None:
        self.cluster.kill_rank(self._active()[number % len(self._active())])

    @precondition(lambda self: len(self.cluster.machines) > 1)
    @rule(number=st.integers(0, 3))
    def lose_node(self, number: int) -> None:
        names = sorted(self.cluster.machines)
        self.cluster.lose(names[number % len(names)])

    @rule(
        shape=st.sampled_from(SHAPES),
        left_out=st.sets(st.integers(0, 3), max_size=2),
        killed_at=st.integers(-1, 3),
        devices=st.sampled_from([1, 4]),
    )
    def restart(
        self, shape: tuple[int, ...], left_out: set[int], killed_at: int, devices: int
    ) -> None:
        """A node that is left out keeps its memory, and may be back in a later round."""
        names = sorted(self.cluster.machines)
        members = [name for i, name in enumerate(names) if i not in left_out] or names
        self.cluster.restart(members, shape, killed_at, devices)

    def teardown(self) -> None:
        """Once faults stop, the run gets on."""
        cluster = self.cluster
        assert cluster.restart(sorted(cluster.machines), (1, 1), killed_at=-1)
        active = self._active()
        for _ in range(3 * 5):
            for rank in active:
                cluster.act(rank)
        assert all(cluster.ranks[rank].step >= cluster.first_step + 2 for rank in active)

    def _active(self) -> Sequence[int]:
        assert self.cluster.topology is not None
        return [place.rank for place in self.cluster.topology.places if not place.is_spare]


def test_no_finished_step_is_lost_and_none_is_mixed() -> None:
    run_state_machine_as_test(Run, settings=SETTINGS)


# --- would it notice? ---------------------------------------------------------------------------


class WaitsForItselfOnly(Cluster):
    """A rank lets its last bucket go when its own copy is sealed."""

    def may_send_last(self, rank: int) -> bool:
        me = self.ranks[rank]
        return me.step == self.first_step or me.sealed >= me.step


class DoesNotWait(Cluster):
    """A rank lets its last bucket go before its copy is sealed."""

    def may_send_last(self, rank: int) -> bool:
        return True


class ChangesWhatIsCopied(Cluster):
    """The first sums of a step change the state before the copy of the last one is known sealed."""

    def may_change(self, rank: int) -> bool:
        return True


class OverwritesTheNewer(Cluster):
    """There is one slot only."""

    def slot_of(self, num_saved: int) -> str:
        return "a"


class MixesRounds(Cluster):
    """Pieces do not say which round they are of."""

    def inventory(self, members: Sequence[str]) -> Inventory:
        self.floor = 0  # such a state may miss names as well; here the mixture has to be seen
        found = super().inventory(members)
        # Of one number of stages: else names of the state are missing, which is another mistake.
        return [
            [Piece(replace(p.label, token=f"of {p.label.num_stages}"), p.specs) for p in node]
            for node in found
        ]

    def _held(self, name: str, wanted: SnapshotId) -> dict[str, SnapshotId]:
        held: dict[str, SnapshotId] = {}
        for file in self.machines[name].files.values():
            label = None if file.piece is None else file.piece.label
            if label and (label.step, f"of {label.num_stages}") == (wanted.step, wanted.token):
                held |= file.content
        return held

    def _forget(self, name: str, num_saved: int) -> None:
        pass


class ForgetsTooSoon(Cluster):
    """What a round began with goes when its first snapshot begins."""

    def _forget(self, name: str, num_saved: int) -> None:
        super()._forget(name, 2)


class CountsABuddyTooSoon(Cluster):
    """A piece counts as copied when it is under way."""

    def is_copied(self, rank: int, step: int) -> bool:
        return True


class KeepsNoCopies(Cluster):
    """It is taken for granted that another node has what nobody has sent."""

    def targets(self, rank: int) -> list[int]:
        return []


class KeepsItsOwnCopy(Cluster):
    """The buddy of a node is the node itself."""

    def targets(self, rank: int) -> list[int]:
        return [rank] * len(super().targets(rank))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (WaitsForItselfOnly, "is lost"),
        (DoesNotWait, "is lost"),
        (ChangesWhatIsCopied, "a mixed state"),
        (OverwritesTheNewer, "is lost"),
        (MixesRounds, "a mixed state"),
        (ForgetsTooSoon, "is lost"),
        (CountsABuddyTooSoon, "is lost"),
        (KeepsNoCopies, "is lost"),
        (KeepsItsOwnCopy, "is lost"),
    ],
)
def test_a_mistake_would_be_noticed(kind: type[Cluster], says: str) -> None:
    machine = type("Broken", (Run,), {"kind": kind})
    with pytest.raises(AssertionError, match=says):
        run_state_machine_as_test(
            machine, settings=settings(SETTINGS, max_examples=1000, phases=[Phase.generate])
        )
