"""The communicators of one rank: every one is made here, by the name that all its members know.

legs               what the sync asks for (`workers.sync.schemes`)
buddies            two ranks, of which one has its snapshots copied by the other for its node
bundle             all ranks of a bundle
snapshot, stop     the same ranks, for what happens meanwhile: a group does one thing at a time
links              one for each directed edge of the bundle
transfers          two ranks that bring a snapshot to where it is needed; spare ones, too
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bundlerun.launcher.layout.survival.buddies import BuddyCopy
from bundlerun.launcher.layout.topology import Link, Place, Topology
from bundlerun.workers.rank.comm import Group, Network


@dataclass(frozen=True, slots=True)
class Members:
    """Who is in a group; pure, so that who needs a group can say so before there is one.

    Args:
        name: the same on all of them, and no other group's.
        ranks: in the order of their addresses.
    """

    name: str
    ranks: tuple[int, ...]


Legs = Mapping[Members, Group]
"""The groups that a rank's sync has asked for, without those of one rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The communicators this rank belongs to; a group of one is None, nothing is sent in it.

    Those of the bundle talk through CPU memory; the legs of the sync and the links may use NCCL.
    """

    legs: Legs
    bundle: Group | None
    snapshot: Group | None
    """Tells that all of the bundle have a snapshot; None, too, if there are no snapshots."""
    copies: tuple[BuddyCopy, ...] = ()
    """All of the round, of snapshots to other nodes."""
    buddies: Mapping[BuddyCopy, Group] = field(default_factory=dict)
    """For those of them that this rank has a part in."""
    stop: Group | None
    """Tells whether somebody of the bundle has heard that the run is to stop."""
    links: dict[Link, Group]
    added: dict[Members, Group] = field(default_factory=dict)
    """Legs that were asked for later, see `add_legs`."""

    def add_legs(self, network: Network, legs: Iterable[Members]) -> Legs:
        """Makes more groups for the sums of this rank, as the model asks for them.

        Collective: every active rank, also one that asks for none, at one point of its start.
        """
        made = make_legs(network, legs)
        self.added.update(made)
        return made

    def close(self) -> None:
        """Ends all of them, in the order in which they were made."""
        of_bundle = (self.bundle, self.snapshot, self.stop)
        legs, links = self.legs.values(), self.links.values()
        buddies, added = self.buddies.values(), self.added.values()
        for group in (*legs, *buddies, *of_bundle, *links, *added):
            if group is not None:
                group.close()


def make_groups(
    topology: Topology,
    place: Place,
    network: Network,
    legs: Iterable[Members] = (),
    *,
    keeps_snapshots: bool = False,
    copies: Sequence[BuddyCopy] = (),
) -> Groups:
    """Makes the groups of `place`, and only those.

    Collective: every active rank. All ranks make theirs in one global order (legs by name, copies
    to other nodes, then bundles and their links), so that no two of them can wait for each other.

    Args:
        topology: the layout of this round.
        place: this rank; not a spare.
        network: how to reach the others.
        legs: what the sync of this rank needs.
        keeps_snapshots: whether the ranks of a bundle have snapshots to tell each other of.
        copies: of snapshots to other nodes, in one order on all ranks.
    """

    def of_bundle(prefix: str) -> Group | None:
        members = Members(f"{prefix}bundle{place.bundle}", topology.bundles[place.bundle])
        return _made(network, members, "gloo") if len(members.ranks) > 1 else None

    return Groups(
        legs=make_legs(network, legs),
        copies=tuple(copies),
        buddies=_buddies(place, network, copies),
        bundle=of_bundle(""),
        snapshot=of_bundle("snapshot/") if keeps_snapshots else None,
        stop=of_bundle("stop/"),
        # Last, in the one order of the bundle's links, in which both ends make theirs (I5).
        links=make_links(topology, place, network),
    )


def _buddies(place: Place, network: Network, copies: Iterable[BuddyCopy]) -> dict[BuddyCopy, Group]:
    made = {}
    for one in copies:
        ends = one.source, one.target
        if place.rank in ends:
            made[one] = _made(network, Members(f"buddy/{one.source}-{one.target}", ends), "gloo")
    return made


def make_legs(network: Network, legs: Iterable[Members]) -> dict[Members, Group]:
    """Makes the groups of a sum, without those of one rank.

    Collective: every active rank, at the same point among the groups that it makes.
    """
    # A set has another order in each process; two ranks that begin with different groups deadlock.
    in_order = sorted(legs, key=lambda members: members.name)
    several = [members for members in in_order if len(members.ranks) > 1]
    return {members: _made(network, members, network.backend) for members in several}


def make_links(topology: Topology, place: Place, network: Network) -> dict[Link, Group]:
    """Makes the groups of the links that begin or end at `place`.

    Collective: the bundle, at the same point among the groups that it makes.
    """
    # `bundle_links` gives one order to all ranks of the bundle; each makes its own of them.
    return {
        link: Group(
            network,
            f"bundle{place.bundle}/{link.kind.value}{link.chunk}/{link.src}-{link.dst}",
            (link.src, link.dst),
            network.backend,
            is_one_node=topology.places[link.src].node == topology.places[link.dst].node,
            is_link=True,
        )
        for link in topology.bundle_links(place.bundle)
        if place.rank in (link.src, link.dst)
    }


def make_transfer(network: Network, number: int, source: int, target: int) -> Group:
    """The group for one transfer of a restore, which may have a spare rank in it.

    Collective: both ranks, each making its transfers in the order of their numbers.
    """
    return _made(network, Members(f"restore/{number}", (source, target)), "gloo")


def _made(network: Network, members: Members, backend: str) -> Group:
    return Group(network, members.name, members.ranks, backend)
