"""The table of ways to sum over all that hold a parameter, and which of them a run may use.

local-master   collect to one rank of the node, exchange, distribute
sharded        the same with several leaders per node, each for a shard of every bucket
flat           one all-reduce over all replicas
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from bundlerun.launcher.choices import SchemeChoice, SchemeName
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.exchange_form import EXACT, ExchangeForm
from bundlerun.launcher.layout.holders import Holders
from bundlerun.launcher.layout.topology import Place, Topology
from bundlerun.workers.rank.arrival.session import Arrival
from bundlerun.workers.rank.groups import Legs, Members
from bundlerun.workers.sync.calibrate import Choice
from bundlerun.workers.sync.flat import Flat, replicas
from bundlerun.workers.sync.leaders import LocalMaster, Sharded
from bundlerun.workers.sync.scheme import MakeScheme, Scheme, of_several

SCHEMES: Mapping[SchemeName, MakeScheme] = {
    "local-master": LocalMaster,
    "sharded": Sharded,
    "flat": Flat,
}
"""Among equally fast ones the earlier is preferred."""


@dataclass(frozen=True, slots=True)
class Ways:
    """How one rank may sum with the other holders of its parameters; pure.

    Args:
        candidates: one if it is settled; else the fastest is found by measuring.
        replicas: who measures together.
        is_serial: see `MakeScheme`.
    """

    candidates: tuple[Scheme, ...]
    replicas: Members
    is_serial: bool = False

    @classmethod
    def of(
        cls,
        sync: SchemeChoice,
        topology: Topology,
        place: Place,
        *,
        is_serial: bool = False,
        stages: Collection[int] | None = None,
        form: ExchangeForm = EXACT,
    ) -> Ways:
        """The ways of the rank at `place`; the same names on all that sum together.

        Args:
            sync: as configured.
            topology: of the round.
            place: of the rank.
            is_serial: see `MakeScheme`.
            stages: whose ranks sum together; None: the replicas of the rank's own stage.
            form: of what travels between nodes.
        """
        holders = Holders.of(topology, [place.stage] if stages is None else stages)
        if sync != "auto":
            made = SCHEMES[sync](holders, place, is_serial=is_serial, form=form)
            found: tuple[Scheme, ...] = (made,)
        else:
            every = [make(holders, place, form=form) for make in SCHEMES.values()]
            found = tuple(scheme for scheme in every if scheme.is_candidate)
        return cls(found, replicas(holders), is_serial)

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to measure."""
        return len(self.candidates) == 1

    @property
    def num_parts(self) -> int:
        """Equal parts that buckets are cut into, as NCCL wants them; 1 where they may differ."""
        return self.candidates[0].num_shards if self.is_serial else 1

    @property
    def members(self) -> frozenset[Members]:
        """The groups that this rank needs, whatever will be chosen."""
        # A measurement needs a group of all replicas, which not every scheme has.
        measuring = () if self.is_settled else of_several(self.replicas)
        return frozenset([m for scheme in self.candidates for m in scheme.members] + [*measuring])

    def chosen(self, choice: Choice | None) -> Scheme:
        """The one that was measured to be the fastest; without a choice the first."""
        if choice is None:
            return self.candidates[0]
        return next(scheme for scheme in self.candidates if scheme.name == choice.scheme)

    def node(self, groups: Legs) -> Members | None:
        """The ranks that may share memory for the buckets."""
        found = (scheme.node for scheme in self.candidates if scheme.node in groups)
        return next(found, None)


def ways_of(config: TrainConfig, arrival: Arrival, stages: Collection[int] | None = None) -> Ways:
    """The ways of a rank that has arrived, and is not spare; `stages`: see `Ways.of`."""
    form = config.exchange_form
    backend = arrival.network.backend
    sync = settled_sync(config.sync, backend, form)
    # A measurement comes out as it happens, and stages would have to agree on what it says.
    if sync == "auto" and (config.deterministic or stages is not None):
        sync = "local-master"
    is_serial = backend == "nccl"
    return Ways.of(
        sync, arrival.topology, arrival.place, is_serial=is_serial, stages=stages, form=form
    )


def settled_sync(sync: SchemeChoice, backend: str, form: ExchangeForm) -> SchemeChoice:
    """What `--sync` means on this network; "auto" stays where it is to be measured.

    NCCL has its own way inside a node and between nodes, which one all-reduce leaves to it.

    Args:
        sync: as configured.
        backend: what carries the gradients.
        form: of what travels between nodes; a shorter one is nothing for a single all-reduce, and
            matrices of a lower rank for no shard of a bucket.
    """
    if sync == "auto" and form.rank:
        return "local-master"
    if sync != "auto" or backend != "nccl":
        return sync
    return "flat" if form.is_exact else "local-master"
