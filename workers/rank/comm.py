"""A communicator of a few named ranks, made directly from torch's backends.

`torch.distributed.new_group` wants every rank of the job to call it in the same order, sorts the
ranks, and up to torch 2.14 names groups made with `use_local_synchronization` by a local count
that differs between ranks. Here the topology gives each group its name, and only its members
take part, so the cost of a group does not grow with the job.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllreduceOptions,
    BroadcastOptions,
    PrefixStore,
    ProcessGroupGloo,
    ReduceOptions,
    ReduceScatterOptions,
    Store,
    Work,
)

from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.meeting.addresses import source_address
from bundlerun.launcher.why.sheet import Sheet, Talk
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.rank.env import RankEnv

_CPU = torch.device("cpu")
_SAFE_CHUNK_BYTES = 4 << 20
"""A peer that is killed in a longer gloo message can leave the other side waiting (measured)."""
_LINK_CTAS = 4
"""Processors of a GPU that a link may use; NCCL would take 32 of an H100's 132."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What this rank needs to reach others.

    Args:
        store: where the members of a group find each other.
        rank: this rank.
        backend: "gloo" or "nccl", for what carries tensors of the model.
        timeout_s: longest wait inside one collective or transfer, seconds.
        address: this node's own address; empty: torch chooses (GLOO_SOCKET_IFNAME counts).
        device: where this rank's tensors are.
        tries_ipc: whether messages inside a node are to go from GPU to GPU, where that works.
    """

    store: Store
    rank: int
    backend: str
    timeout_s: float
    address: str = ""
    device: torch.device = _CPU
    tries_ipc: bool = False
    sheet: Sheet = field(default_factory=Sheet.private)
    """Where this rank says what it does right now."""


class _Backend(Protocol):
    """What torch's stubs leave out of its backends."""

    def send(self, tensors: list[Tensor], to: int, tag: int) -> Work: ...
    def recv(self, tensors: list[Tensor], source: int, tag: int) -> Work: ...
    def reduce(self, tensors: list[Tensor], options: ReduceOptions) -> Work: ...
    def allreduce(self, tensors: list[Tensor], options: AllreduceOptions) -> Work: ...
    def broadcast(self, tensors: list[Tensor], options: BroadcastOptions) -> Work: ...
    def allgather(
        self, out: list[list[Tensor]], tensors: list[Tensor], options: AllgatherOptions
    ) -> Work: ...
    def _reduce_scatter_base(
        self, out: Tensor, tensor: Tensor, options: ReduceScatterOptions
    ) -> Work: ...
    def _allgather_base(self, out: Tensor, tensor: Tensor, options: AllgatherOptions) -> Work: ...
    def shutdown(self) -> None: ...


class Group:
    """Some ranks that talk to each other; positions in `ranks` are the addresses.

    Every operation returns at once with a handle. With gloo, its `wait()` waits for the operation
    and raises RuntimeError after the network's timeout. With NCCL it makes the current CUDA stream
    wait; after the timeout torch ends the process (`nccl_settings`). Collectives take a tensor of
    any shape, the same on all members.

    Args:
        network: how to reach the others.
        name: the same on all members, and no other group's in this round.
        ranks: of the members; their order gives the addresses.
        backend: "gloo" or "nccl".
        is_one_node: whether all members are on one node.
        is_link: whether it is for messages between two ranks.
    """

    def __init__(
        self,
        network: Network,
        name: str,
        ranks: Sequence[int],
        backend: str,
        *,
        is_one_node: bool = False,
        is_link: bool = False,
    ) -> None:
        """Collective: every rank of `ranks`, each making its groups in one global order."""
        self.ranks = tuple(ranks)
        self.index = self.ranks.index(network.rank)
        self.name = name
        self.backend = backend
        self.is_one_node = is_one_node
        """Whether all members are on one node, so that they may share memory."""
        self.tries_ipc = network.tries_ipc and is_one_node
        self.timeout_s = network.timeout_s
        self.device = network.device if backend == "nccl" else _CPU
        """Where tensors must be: NCCL takes none of the CPU's, gloo none of a GPU's."""
        self._sheet = network.sheet
        self._at_close: list[Callable[[], None]] = []
        # The name keeps what the members of two groups write in one store apart.
        store = PrefixStore(f"group/{name}", network.store)
        timeout = timedelta(seconds=network.timeout_s)
        place = (store, self.index, len(self.ranks), timeout)
        if backend == "nccl":
            self._pg = make_nccl(
                *place, tune=partial(tune_nccl, name=name, ranks=ranks, is_link=is_link)
            )
        else:
            self._pg = _make_gloo(*place, network.address)

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.ranks)

    def send(self, tensor: Tensor, to: int) -> list[Work]:
        """Sends a contiguous tensor; it must not change before the handles were waited for."""
        return [self._pg.send([chunk], to, 0) for chunk in _chunks(tensor)]

    def receive(self, tensor: Tensor, source: int) -> list[Work]:
        """Fills a contiguous tensor of the sender's size and dtype."""
        return [self._pg.recv([chunk], source, 0) for chunk in _chunks(tensor)]

    def reduce(self, tensor: Tensor, root: int = 0) -> Work:
        """Sums into the root's `tensor`; what is in the others' afterwards is undefined."""
        options = ReduceOptions()
        options.rootRank = root
        return self._pg.reduce([tensor], options)

    def all_reduce(self, tensor: Tensor) -> Work:
        """Sums in place; the result is bit-equal on all members."""
        return self._pg.allreduce([tensor], AllreduceOptions())

    def broadcast(self, tensor: Tensor, root: int = 0) -> Work:
        """Copies the root's tensor into everyone's."""
        options = BroadcastOptions()
        options.rootRank = root
        return self._pg.broadcast([tensor], options)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all members, in order of `ranks`; same shape and dtype everywhere."""
        found = [torch.empty_like(tensor) for _ in self.ranks]
        with self.talking():
            self._pg.allgather([found], [tensor], AllgatherOptions()).wait()
        return found

    @contextmanager
    def talking(self) -> Iterator[None]:
        """Says, for who looks on, that inside this rank waits for the others."""
        before = self._sheet.talk
        self._sheet.talks(Talk.BUNDLE)
        yield
        # Not where it fails: that is where it stands, for who asks why.
        self._sheet.talks(before)

    def reduce_scatter(self, flat: Tensor) -> Work:
        """Sums into this member's part of a flat tensor; what the others then are is undefined.

        Args:
            flat: as many equal parts as there are members, in their order.
        """
        own = flat.chunk(self.size)[self.index]
        # Where they are: NCCL takes the sum's place being in what is summed.
        return self._pg._reduce_scatter_base(own, flat, ReduceScatterOptions())

    def gather_parts(self, flat: Tensor) -> Work:
        """Gives this member's part of a flat tensor to all; see `reduce_scatter`."""
        own = flat.chunk(self.size)[self.index]
        return self._pg._allgather_base(flat, own, AllgatherOptions())

    def at_close(self, act: Callable[[], None]) -> None:
        """Has something done first when the communicator is ended at a good end."""
        self._at_close.append(act)

    def close(self) -> None:
        """Ends the communicator; call it when all that was begun is done.

        Collective: every member, each closing its groups in one global order. NCCL asks for that
        at a good end, else its threads warn; gloo does not.
        """
        for act in self._at_close:
            act()
        if self.backend == "nccl":
            self._pg.shutdown()

    def all_gather_json(self, value: object) -> list[Any]:
        """The JSON values of all members, in order of `ranks`."""
        data = json.dumps(value).encode()
        # An all-gather takes tensors of one size, so the lengths of the texts come first.
        sizes = self.all_gather(door.placed(torch.tensor([len(data)]), self.device))
        padded = torch.zeros(max(int(s) for s in sizes), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        found = self.all_gather(door.placed(padded, self.device))
        return [
            json.loads(bytes(part[: int(size)].tolist()))
            for part, size in zip(found, sizes, strict=True)
        ]


def _chunks(tensor: Tensor) -> tuple[Tensor, ...]:
    # Both ends cut alike, since they have tensors of one size.
    # Contiguous is also what has one element and any stride, which is no bytes in a row for `view`.
    flat = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    return (flat,) if door.is_on_gpu(flat) else flat.split(_SAFE_CHUNK_BYTES)


def _make_gloo(store: Store, index: int, size: int, timeout: timedelta, address: str) -> _Backend:
    gloo: Any = ProcessGroupGloo
    # torch gives the options this underscore at run time only.
    options = getattr(gloo, "_Options", gloo.Options)()
    options._devices = [
        gloo.create_device(hostname=address) if address else gloo.create_default_device()
    ]
    options._timeout = timeout
    options._threads = 1
    made: _Backend = gloo(store, index, size, options)
    return made


def make_nccl(
    store: Store, index: int, size: int, timeout: timedelta, *, tune: Callable[[Any], None]
) -> _Backend:
    """A communicator of NCCL, which builds of torch for the CPU do not have.

    Args:
        tune: sets the other options.
    """
    from torch._C._distributed_c10d import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    tune(options)
    made: Any = ProcessGroupNCCL(store, index, size, options)
    backend: _Backend = made
    return backend


def tune_nccl(
    options: Any,  # noqa: ANN401
    *,
    name: str,
    ranks: Sequence[int],
    is_link: bool,
) -> None:
    """Sets the options that leave most of a GPU to computing, as far as this torch has them.

    Streams of high priority come from a pool of their own, so that none of NCCL's is one of ours.
    A receive spins until its message is there, on every processor that it may use.

    Args:
        name: of the group, which the flight recorder tells.
        ranks: of its members, likewise.
        is_link: whether it is for messages between two ranks.
    """
    options.is_high_priority_stream = True
    options.group_name = name
    options.global_ranks_in_group = list(ranks)
    if is_link and hasattr(options, "config"):
        options.config.max_ctas = _LINK_CTAS


def own_address(env: RankEnv) -> str:
    """The address of this node, as told, or on the way to the master; empty: only torch can tell.

    A node may resolve its own name to a loopback address that others cannot reach, so the kernel
    is asked which address it would send from.

    Raises:
        NodeError: the master's address cannot be resolved.
    """
    if env.local_addr or not env.is_launched:
        return env.local_addr
    # One node: whatever its name resolves to, its ranks reach each other here.
    if env.local_world_size == env.world_size:
        return "127.0.0.1"
    try:
        return source_address(env.master_addr, env.master_port)
    except socket.gaierror as exc:
        raise NodeError(
            f"MASTER_ADDR {env.master_addr!r} cannot be resolved ({exc.strerror}); "
            "give a routable address with --local-addr on the first node"
        ) from exc
    except OSError:
        return ""
