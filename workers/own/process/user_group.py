"""What this process is by the process group that a user's program has made before it came to us.

    mp.spawn, multiprocessing      no launcher, and no variables: the group alone knows
    mpirun with tcp:// or file://  a launcher that says where this process is, not where all meet
    mp.spawn on each node          a launcher's RANK is that of the node

Ranks of one machine are told by the machine, through the store of the group.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import distributed_c10d

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.meeting.launchers import rank_variables
from bundlerun.launcher.run_folder.holder import this_machine

_NEEDED = {"LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_PORT"}
_AGENT_RUN_ID = "TORCHELASTIC_RUN_ID"


def group_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The names of torchrun for this process in the default group; none where they are known.

    Collective where there are any: all ranks of the group.

    Raises:
        ConfigError: an agent of torch says something else; or ranks do not follow each other node
            by node.
    """
    if not dist.is_initialized():
        return {}
    rank, size = dist.get_rank(), dist.get_world_size()
    told = environ.get("RANK"), environ.get("WORLD_SIZE")
    if told == (str(rank), str(size)) and rank_variables(environ).keys() >= _NEEDED:
        return {}
    if environ.get(_AGENT_RUN_ID) and told != (str(rank), str(size)):
        raise ConfigError(
            f"torchrun says that this is rank {told[0]} of {told[1]}, and the process group that "
            f"this program has made that it is rank {rank} of {size}; call "
            "init_process_group() without rank and world_size"
        )
    if size == 1:  # a program by itself may have a group, too
        return {}
    store = distributed_c10d._get_default_store()
    return _variables(rank, _machines(store, rank, size), _place_of(store))


def _machines(store: Store, rank: int, size: int) -> list[str]:
    """The machine of each rank."""
    part = PrefixStore("bundlerun/machines", store)
    part.set(str(rank), f"{socket.gethostname()} {this_machine()}")
    return [found.decode() for found in part.multi_get([str(each) for each in range(size)])]


def _variables(rank: int, machines: Sequence[str], place: tuple[str, str]) -> dict[str, str]:
    own = machines[rank]
    nodes = list(dict.fromkeys(machines))
    if sorted(machines, key=nodes.index) != list(machines):
        told = json.dumps([nodes.index(machine) for machine in machines])
        raise ConfigError(
            f"the ranks of this process group are on the nodes {told}: those of one node must "
            "follow each other; give each node its ranks in order"
        )
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(len(machines)),
        "LOCAL_RANK": str(rank - machines.index(own)),
        "LOCAL_WORLD_SIZE": str(machines.count(own)),
        "GROUP_RANK": str(nodes.index(own)),
        "GROUP_WORLD_SIZE": str(len(nodes)),
        "MASTER_ADDR": place[0],
        "MASTER_PORT": place[1],
    }


def _place_of(store: Store) -> tuple[str, str]:
    """Where the group's store is, which the way to tells this node's own address."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if isinstance(store, TCPStore):
        return store.host, str(store.port)
    address = os.environ.get("MASTER_ADDR", "localhost")  # a store in a file has no address
    return address, os.environ.get("MASTER_PORT") or "0"
