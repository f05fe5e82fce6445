"""Joins a rendezvous round: who is here, what this rank is, and how it reaches the others."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch._C._distributed_c10d import PrefixStore, Store

from bundlerun.launcher.agreement.agreed import difference, terms_of
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.loaders import NodeCores
from bundlerun.launcher.layout.prospects import NO_CUT, Cut, Prospects
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.survival.buddies import BuddyCopy, buddy_copies
from bundlerun.launcher.layout.topology import Place, Topology, best_shape
from bundlerun.launcher.process import boot_id
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.why.sheet import Sheet
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device.start import DeviceStart
from bundlerun.workers.device.switches import set_switches
from bundlerun.workers.rank.arrival.hello import Hello, choose_backend, for_all
from bundlerun.workers.rank.arrival.seat import take_seat
from bundlerun.workers.rank.comm import Network, own_address
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.groups import Groups, Members, make_groups
from bundlerun.workers.rank.nccl_settings import prepare_nccl
from bundlerun.workers.rank.settled import settled_samples

log = logging.getLogger(__name__)

_END = "end"
End = Literal["lost", "safe", "stopped", "unsaved", "failed"]
"""How the run ended, for spare ranks: nothing heard of it ("lost"); the last state is on disk
("safe"), or is with steps left to do ("stopped"); it is in memory only ("unsaved"), or nowhere
("failed")."""
_LONGEST_WAIT = timedelta(days=20)
"""About as many milliseconds as the store can count."""


class Node(NamedTuple):
    """A node of the round; the address is empty where only torch knows it. See `Hello`."""

    name: str
    address: str
    site: str = ""
    machine: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One rank's view of one round, spare ranks included, before it has groups."""

    topology: Topology
    place: Place
    network: Network
    device: torch.device
    store: Store
    node_name: str
    token: str
    """Text that all ranks of this round share, and no other round has."""
    cores: NodeCores = NodeCores()  # noqa: RUF009 (frozen)
    """Of its node."""
    samples_per_microbatch: int
    """As configured, or as the first rank has settled it for the whole run."""
    has_gpus: bool = False
    """Whether all nodes have GPUs."""
    shares_gpu: bool = False
    """Whether several ranks use one GPU on this node."""
    note: str = ""
    """What the user should know of how the ranks talk."""
    nodes: tuple[Node, ...] = ()
    """Of the round, in order."""
    cut: Cut = NO_CUT
    """Of the model in this round, where the planner says."""

    @property
    def is_speaker(self) -> bool:
        """Whether this rank speaks for its node, spare or not."""
        return self.place.local_rank == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One rank's part in one round; not a spare one's."""

    arrival: Arrival
    groups: Groups

    @property
    def topology(self) -> Topology:
        """The layout of the round."""
        return self.arrival.topology

    @property
    def place(self) -> Place:
        """Where this rank is in the layout."""
        return self.arrival.place

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Of the round, in order."""
        return self.arrival.nodes

    @property
    def device(self) -> torch.device:
        """Where its stage lives."""
        return self.arrival.device

    @property
    def store(self) -> Store:
        """Where the ranks of the round leave messages for each other."""
        return self.arrival.store

    @property
    def token(self) -> str:
        """See `Arrival`."""
        return self.arrival.token

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank's stage computes the loss."""
        return self.place.stage == self.topology.num_stages - 1

    @property
    def is_reporter(self) -> bool:
        """Whether this rank reports for the run: it has the loss, and exists in every topology."""
        return self.is_last_stage and (self.place.bundle, self.place.replica) == (0, 0)

    @property
    def is_speaker(self) -> bool:
        """Whether this rank prints its node's progress; on the reporter's node that one does."""
        place, places = self.place, self.topology.places
        here = [each for each in places if each.node == place.node and not each.is_spare]
        last = self.topology.num_stages - 1
        has_reporter = any((p.bundle, p.stage, p.replica) == (0, last, 0) for p in here)
        return here[0].rank == place.rank and not has_reporter

    @property
    def has_first_microbatch(self) -> bool:
        """Whether this rank reads the first micro-batch of each step."""
        return (self.place.bundle, self.place.stage, self.place.replica) == (0, 0, 0)

    @property
    def is_writer(self) -> bool:
        """Whether this rank writes its stage into checkpoints."""
        return self.place.bundle == 0 and self.place.replica == 0

    def close(self) -> None:
        """Ends the communicators; only at a good end, as after a bad one others may be gone.

        Collective: every rank that is not spare.
        """
        door.drain(self.device)
        self.groups.close()

    def gather_bundle(self, value: object) -> list[Any]:
        """JSON values of all ranks of this bundle, in order of stage, then replica.

        Collective: the bundle.
        """
        group = self.groups.bundle
        return [value] if group is None else group.all_gather_json(value)


def arrive(
    config: TrainConfig,
    env: RankEnv,
    store: Store,
    start: DeviceStart | None = None,
    sheet: Sheet | None = None,
) -> Arrival:
    """Starts this rank's device, and says what it is in the round, which may be spare.

    Collective: every rank. The store sees a few keys per node.

    Args:
        config: of the run.
        env: what the agent told this rank.
        store: where the ranks of the round meet.
        start: of this rank's device; None: it is started here.
        sheet: of this rank, for who looks on; None: nobody does.

    Raises:
        ConfigError: see `meet`; or this rank's device does not do what the options ask.
        NodeError: see `meet`; or the device cannot be started.
    """
    device = (start or DeviceStart(env.local_rank)).take()
    set_switches(config, device, speaks=env.local_rank == 0)
    return meet(config, env, store, device, sheet)


def meet(
    config: TrainConfig,
    env: RankEnv,
    store: Store,
    device: torch.device,
    sheet: Sheet | None = None,
    *,
    enters: bool = True,
) -> Arrival:
    """What this rank is in the round, which may be spare.

    Collective: every rank. The store sees a few keys per node.

    Args:
        config: of the run.
        env: what the agent told this rank.
        store: where the ranks of the round meet.
        device: of this rank, started.
        sheet: see `arrive`.
        enters: whether it takes its seat there now, for who looks on; else `take_seat` follows.

    Raises:
        ConfigError: nodes have other options, files, data or versions, or the devices of all
            together do not hold one bundle.
        NodeError: the transport asked for does not work here.
    """
    gpu = door.name_of(device)
    if gpu:
        store.set(f"gpu/{env.rank}", gpu)
    address = own_address(env)
    hello = Hello(
        name=env.node_name,
        address=address,
        num_ranks=env.local_world_size,
        site=config.rack or env.site,
        machine=boot_id(),
        has_nccl=door.has_nccl(device),
        gpus=_gpus_of_node(env, store) if gpu else (),
        terms=_terms(config, env),
    )
    met = _meet(config, env, store, hello)
    nodes, token = met.nodes, met.token
    has_gpus = all(node.has_gpus for node in nodes)
    counts = tuple(node.num_ranks for node in nodes)
    chunks = config.chunks if met.shape.num_stages > 1 else 1
    topology = Topology(met.shape, counts, chunks)
    backend, note = choose_backend(
        config.transport, nodes, num_stages=topology.num_stages, has_gpus=door.is_gpu(device)
    )
    if backend == "nccl":
        prepare_nccl(RunPaths(Path(config.run_dir)), env.node_name)
    place = topology.places[env.rank]
    sheet = sheet or Sheet.private()
    if enters:
        take_seat(
            sheet, place, world_size=topology.world_size, limit_s=config.timeout_s, token=token
        )
    network = Network(
        store=PrefixStore("groups", store),
        rank=env.rank,
        backend=backend,
        timeout_s=config.timeout_s,
        address=address,
        device=device,
        tries_ipc=config.transport == "ipc",
        sheet=sheet,
    )
    return Arrival(
        topology=topology,
        place=place,
        network=network,
        device=device,
        store=store,
        node_name=env.node_name,
        token=token,
        cores=env.cores,
        has_gpus=has_gpus,
        shares_gpu=nodes[place.node].is_shared,
        cut=met.cut,
        nodes=tuple(Node(node.name, node.address, node.site, node.machine) for node in nodes),
        note=note,
        samples_per_microbatch=settled_samples(
            config, env, store, topology.num_bundles, has_gpus=has_gpus
        ),
    )


def join(config: TrainConfig, arrival: Arrival, legs: Iterable[Members]) -> Session:
    """Joins the round with this rank, which is not spare.

    Collective: every rank that is not.

    Args:
        config: of the run.
        arrival: what this rank found.
        legs: the groups that its sync needs.
    """
    groups = make_groups(
        arrival.topology,
        arrival.place,
        arrival.network,
        legs,
        keeps_snapshots=config.snapshot == "on",
        copies=_copies(config, arrival),
    )
    session = Session(arrival=arrival, groups=groups)
    if arrival.note and session.is_reporter:
        log.info(arrival.note)
    return session


def _copies(config: TrainConfig, arrival: Arrival) -> tuple[BuddyCopy, ...]:
    """Of snapshots to other nodes."""
    sites = [node.site for node in arrival.nodes]
    machines = [node.machine for node in arrival.nodes]
    return buddy_copies(arrival.topology, config.num_copies, sites, machines)


def wait_for_end(store: Store) -> End:
    """Returns when the run is over; for spare ranks.

    A spare rank stays: its process may hold the store, and an agent whose ranks have all ended
    leaves after a while, with the rendezvous that it may hold.
    """
    # A closed connection is the end, too: the rank that hosts the store was not a spare.
    with suppress(RuntimeError):
        store.wait([_END], _LONGEST_WAIT)
        return cast(End, store.get(_END).decode())
    return "lost"


def tell_end(store: Store, end: End) -> None:
    """Lets the spare ranks end; one rank calls it."""
    with suppress(RuntimeError):
        store.set(_END, end)


class _Met(NamedTuple):
    """What all ranks of a round know alike: nodes without their terms, and what is decided."""

    nodes: list[Hello]
    token: str
    shape: Shape
    cut: Cut


def _meet(config: TrainConfig, env: RankEnv, store: Store, hello: Hello) -> _Met:
    """What every node has told, and what the first rank makes of that; one key per node.

    Raises:
        ConfigError: on all ranks, where the nodes do not fit together.
    """
    if _speaks_for_node(env):
        store.set(f"node/{env.node}", json.dumps(asdict(hello)))
    if env.rank == 0:
        # One rank reads and compares for all, which keeps the requests to the store few.
        nodes = list(_hellos(env, store))
        counts = Counter(node.name for node in nodes)
        # Two nodes of one name would hide each other in what is compared.
        by_node = {
            node.name if counts[node.name] == 1 else f"{node.name} (node {i})": node.terms
            for i, node in enumerate(nodes)
        }
        plain = [asdict(node) for node in for_all(nodes)]
        shape, cut = _decided(config, env, [node.num_ranks for node in nodes])
        decided = [list(shape.widths), list(cut.names), cut.cutter]
        answer = [difference(by_node), plain, os.urandom(4).hex(), *decided]
        store.set("nodes", json.dumps(answer))
    # Every rank ends with the same message, whichever node differs (I14).
    unlike, found, token, widths, names, cutter = json.loads(store.get("nodes"))
    if unlike:
        raise ConfigError(unlike)
    return _Met(
        nodes=[Hello(**node) for node in found],
        token=str(token),
        shape=Shape(tuple(widths)),
        cut=Cut(tuple(names), cutter),
    )


def _decided(config: TrainConfig, env: RankEnv, counts: Sequence[int]) -> tuple[Shape, Cut]:
    """The shape of the round, of those that will do, and how the model is cut for it."""
    if not config.shape.others:
        return config.shape, NO_CUT
    prospects = Prospects.parse(env.prospects)
    shape = best_shape(config.shape, counts, prospects)
    known = prospects.best([shape], counts)
    return shape, known.cut if known else NO_CUT


def _gpus_of_node(env: RankEnv, store: Store) -> tuple[str, ...]:
    """The GPU of each rank of this node: a rank sees its own only, and one tells of all."""
    if not _speaks_for_node(env):
        return ()
    first = env.rank - env.local_rank
    keys = [f"gpu/{rank}" for rank in range(first, first + env.local_world_size)]
    return tuple(found.decode() for found in store.multi_get(keys))


def _speaks_for_node(env: RankEnv) -> bool:
    """Whether it is its node's last rank; the first one cannot notice --virtual-local-rank."""
    return env.local_rank == env.local_world_size - 1


def _terms(config: TrainConfig, env: RankEnv) -> Mapping[str, str]:
    """The terms of this node, if there are others to compare with and this rank speaks for it."""
    if not _speaks_for_node(env) or env.local_world_size == env.world_size:
        return {}
    terms: dict[str, str] = json.loads(env.terms) if env.terms else terms_of(config)
    return terms


def _hellos(env: RankEnv, store: Store) -> Iterator[Hello]:
    """What all nodes tell; ranks are counted, as not every launcher gives the number of nodes."""
    node = num_ranks = 0
    while num_ranks < env.world_size:
        hello = Hello(**json.loads(store.get(f"node/{node}")))
        yield hello
        node, num_ranks = node + 1, num_ranks + hello.num_ranks
