"""What each way to sum over all ranks that hold a parameter provides.

A new one is a class with these members, and a line in the table of `schemes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bundlerun.launcher.choices import SchemeName
from bundlerun.launcher.layout.exchange_form import EXACT, ExchangeForm
from bundlerun.launcher.layout.holders import Holders
from bundlerun.launcher.layout.topology import Place
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.rank.groups import Legs, Members
from bundlerun.workers.sync.legs import Action
from bundlerun.workers.sync.node_legs import NodeArena


class Scheme(Protocol):
    """One way to sum, for one rank; made for a place among holders, and pure until `actions`."""

    @property
    def name(self) -> SchemeName:
        """What `--sync` calls it."""
        ...

    @property
    def is_candidate(self) -> bool:
        """Whether it is worth measuring: not where it does the same as another."""
        ...

    @property
    def num_shards(self) -> int:
        """Shards of a bucket that are summed by different ranks of a node."""
        ...

    @property
    def members(self) -> Sequence[Members]:
        """The groups that this rank needs, without those of one rank."""
        ...

    @property
    def node(self) -> Members | None:
        """The ranks that may share memory for the buckets; None: it has no use for that."""
        ...

    def from_first(self, groups: Legs) -> list[Group]:
        """The groups to broadcast in, in order, to give all what the first replica has."""
        ...

    def actions(self, groups: Legs, arena: NodeArena | None, form: ExchangeForm) -> list[Action]:
        """What this rank does to each bucket, leg by leg; empty where it is the only replica.

        Args:
            groups: all `members`, made.
            arena: the memory that the ranks of `node` share, if they do.
            form: of what travels between nodes.
        """
        ...


class MakeScheme(Protocol):
    """Gives a scheme for one rank."""

    def __call__(
        self,
        holders: Holders,
        place: Place,
        *,
        is_serial: bool = False,
        form: ExchangeForm = EXACT,
    ) -> Scheme:
        """The scheme of the rank at `place`.

        Args:
            holders: of what is summed.
            place: of the rank, one of them.
            is_serial: whether one thread begins all that is sent, in one order on all ranks, as
                NCCL wants it; then one communicator of the same ranks is enough.
            form: of what travels between nodes.
        """
        ...


def of_several(*members: Members) -> tuple[Members, ...]:
    """`members` without the groups of one rank, in which nothing is sent."""
    return tuple(each for each in members if len(each.ranks) > 1)
