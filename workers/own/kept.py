"""The state of a user's loop as what is saved and resumed sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.own.each_rank import EachRank
from bundlerun.workers.own.objects import Objects
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.run.keeper import Share
from bundlerun.workers.snapshot.own_plan import Own

log = logging.getLogger(__name__)


class OwnState:
    """What all ranks have alike, and what this one has for itself; see `run.keeper.Kept`.

    Args:
        session: this rank's place.
        objects: what all have alike.
        each_rank: what this rank has.
    """

    def __init__(self, session: Session, objects: Objects, each_rank: EachRank) -> None:
        self.session = session
        self._objects = objects
        self._each_rank = each_rank
        place, num_ranks = session.place, session.topology.world_size
        self.situation = f"rank {place.rank} of {num_ranks}"
        self._prefix = f"ranks/{place.rank}-of-{num_ranks}/"

    def taken(self) -> dict[str, Tensor]:
        """The state of now, for a snapshot; what this rank has for itself is copied with it."""
        found = self._objects.state()
        self._each_rank.take(found)
        return found

    def names(self, available: Iterable[str]) -> list[str]:
        """All, but for what other ranks have for themselves."""
        return [n for n in available if not n.startswith("ranks/") or n.startswith(self._prefix)]

    def load(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Into the user's objects."""
        own = {n[len(self._prefix) :]: t for n, t in tensors.items() if n.startswith(self._prefix)}
        self._objects.load({n: t for n, t in tensors.items() if not n.startswith("ranks/")})
        # From a checkpoint; a snapshot has it apart.
        if own:
            self._each_rank.load(own)

    @property
    def own(self) -> Own:
        """Of no use to another rank."""
        return Own()

    def load_own(
        self,
        find: Callable[[str], Mapping[str, Tensor]],
        others: Iterable[Mapping[str, Tensor]],
    ) -> None:
        """What this rank has kept for itself on this node."""
        found = find(self.situation)
        if found:
            self._each_rank.load(found)
        else:
            log.warning(
                "%s finds no random numbers of its own here: they go on as the script has begun "
                "them", self.situation,
            )  # fmt: skip

    def collect(self) -> None:
        """All is here."""

    def share(self) -> Share:
        """What this rank has for itself; the first one writes what all have alike, too."""
        found = self._objects.state()
        self._each_rank.take(found)
        own = {self._prefix + name: t for name, t in self._each_rank.taken().items()}
        common = found if self.session.is_writer else {}
        return Share(f"rank-{self.session.place.rank}", {**common, **own})

    def check_finite(self) -> None:
        """What the user trains is the user's to judge."""

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks; collective."""
        found = torch.tensor(list(values), dtype=torch.float64)
        group = self.session.groups.bundle
        if group is not None:
            group.all_reduce(found).wait()
        return [float(value) for value in found]
