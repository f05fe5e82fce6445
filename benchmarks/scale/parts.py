"""The two sides of a large rendezvous: the coordinator, and processes full of nodes.

    Coordinator: the Server of `launcher.rendezvous`     Nodes: hundreds of its Clients, one loop
          |  <-------------- TCP, loopback ----------------> |  each with a connection of its own
          +---------------- pipes to the benchmark ----------+

Server, Client, protocol and wire are those of every run; what a node lacks is torch's agent, so its
ranks stop at once, and the store of the round, which is measured by itself.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from bundlerun.launcher.options.endpoints import Endpoint
from bundlerun.launcher.rendezvous.client import Client
from bundlerun.launcher.rendezvous.handshake import Card
from bundlerun.launcher.rendezvous.protocol import member
from bundlerun.launcher.rendezvous.protocol.member import Answer, Enter, OpenStore, Wish
from bundlerun.launcher.rendezvous.protocol.messages import Seat
from bundlerun.launcher.rendezvous.protocol.standing import Member
from bundlerun.launcher.rendezvous.protocol.wire import Book
from bundlerun.launcher.rendezvous.server import Server
from bundlerun.launcher.rendezvous.settings import Conf
from bundlerun.launcher.rendezvous.tasks import Tasks
from bundlerun.launcher.run_folder.events import EventName

TOKEN, RUN_ID = b"a token of the benchmark", "scale"
LOOPBACK = "127.0.0.1"
_TCP_INFO_BYTES = 200
_ACKED, _RECEIVED = 120, 128
"""Offsets of tcpi_bytes_acked and tcpi_bytes_received in the kernel's struct tcp_info."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One setting.

    Args:
        nodes: all of them.
        heartbeat_s: between two signs of life, both ways.
        lease_s: silence after which a node counts as dead.
    """

    nodes: int
    heartbeat_s: float
    lease_s: float

    @property
    def conf(self) -> Conf:
        """The same in the rendezvous' words."""
        return Conf(heartbeat=self.heartbeat_s, lease=self.lease_s)


Command = Callable[..., Awaitable[object]]


async def _serve(pipe: Connection, commands: dict[str, Command]) -> None:
    """Does what comes through the pipe, until its other end is closed."""
    loop = asyncio.get_running_loop()
    came: asyncio.Queue[tuple[Any, ...] | None] = asyncio.Queue()

    def look() -> None:
        try:
            came.put_nowait(pipe.recv())
        except (EOFError, OSError):
            loop.remove_reader(pipe.fileno())
            came.put_nowait(None)

    loop.add_reader(pipe.fileno(), look)
    while (words := await came.get()) is not None:
        pipe.send(await commands[words[0]](*words[1:]))


def _used() -> tuple[float, float]:
    """Seconds of the processor so far, and MiB at most."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


# ------------------------------------------------------------------ the coordinator


def coordinate(pipe: Connection, size: Size) -> None:
    """Body of the process that has the coordinator."""
    asyncio.run(_coordinate(pipe, size))


async def _coordinate(pipe: Connection, size: Size) -> None:
    counts: dict[str, int] = {}

    def note(event: EventName, details: Mapping[str, object]) -> None:
        counts[event] = counts.get(event, 0) + 1

    server = make_server(size, note)
    pipe.send(await server.listen(LOOPBACK, 0))

    async def used() -> object:
        return (*_used(), dict(counts))

    await _serve(pipe, {"used": used})


def make_server(size: Size, note: Callable[[EventName, Mapping[str, object]], None]) -> Server:
    """The coordinator of such a job, which is to listen."""
    return Server(
        size.conf.rules(index=0, num_candidates=1, nodes=(1, size.nodes)),
        token=TOKEN,
        run_id=RUN_ID,
        heartbeat_s=size.heartbeat_s,
        fence=None,
        objection_to=lambda card: "",
        note=note,
        book=Book(),
    )


# ------------------------------------------------------------------ the nodes


class SimulatedNode(Client):
    """A node whose ranks stop at once, and come again at once."""

    def __init__(self, number: int, port: int, size: Size, book: Book) -> None:
        self.entered: tuple[int, float] = (0, 0.0)
        """The last round that its ranks were started in, and when."""
        self._is_due = False
        name = f"node-{number:05d}"
        seat = Seat(
            name=name,
            incarnation=f"{number * 0x9E3779B97F4A7C15 % (1 << 64):016x}",
            address=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
            num_workers=8,
            candidate=0 if number == 0 else -1,
        )
        first = Member(
            seat=seat, num_candidates=1, lease_s=size.lease_s, guided_at=time.monotonic()
        )
        super().__init__(
            first,
            (Endpoint(host=LOOPBACK, port=port),),
            token=TOKEN,
            run_id=RUN_ID,
            heartbeat_s=size.heartbeat_s,
            card=Card(name=name),
            act=self._wish,
            book=book,
            # Hundreds share a loop here, so that each of them is slower than a node would be.
            most_nodes=4 * size.nodes,
        )

    def apply(self, answer: Answer) -> None:
        """As every node does; and where its round is over it comes for the next one at once."""
        super().apply(answer)
        # Once what is done now is done.
        if self.member.over and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._come_again)

    def _come_again(self) -> None:
        self._is_due = False
        if self.member.over:
            self.apply(member.want(self.member))

    def _wish(self, wish: Wish) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(wish, OpenStore):
            round_ = wish.round
            loop.call_soon(lambda: self.apply(member.opened(self.member, round_, 1)))
        elif isinstance(wish, Enter):
            self.entered = (wish.round.number, time.monotonic())

    def break_off(self) -> None:
        """As its connection looks when its machine dies."""
        if self._writer is not None:
            self._writer.transport.abort()

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received by its connection, as the kernel counts them."""
        if self._writer is None:
            return 0, 0
        end: socket.socket = self._writer.get_extra_info("socket")
        info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return (
            struct.unpack_from("Q", info, _ACKED)[0],
            struct.unpack_from("Q", info, _RECEIVED)[0],
        )


def be_nodes(pipe: Connection, port: int, numbers: range, size: Size) -> None:
    """Body of a process that has some of the nodes."""
    asyncio.run(_be_nodes(pipe, port, numbers, size))


async def _be_nodes(pipe: Connection, port: int, numbers: range, size: Size) -> None:
    # One for all here: what each node of a job reads by itself is read once.
    book = Book()
    nodes = {number: SimulatedNode(number, port, size, book) for number in numbers}
    tasks: dict[int, Tasks] = {}

    async def come() -> object:
        for number, node in nodes.items():
            tasks[number] = Tasks()
            tasks[number].spawn(node.run())
            tasks[number].spawn(node.tick())
            node.apply(member.want(node.member))
        return len(nodes)

    async def entered(after: int, limit_s: float) -> object:
        """When the last one was in a later round than `after`: least, most number, and the time."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if all(node.entered[0] > after for node in nodes.values()):
                break
            await asyncio.sleep(0.02)
        numbers_in = [node.entered[0] for node in nodes.values()]
        return min(numbers_in), max(numbers_in), max(node.entered[1] for node in nodes.values())

    async def die(number: int) -> object:
        at = time.monotonic()
        node = nodes.pop(number)
        tasks.pop(number).cancel()
        node.break_off()
        return at

    async def used() -> object:
        traffic = [node.traffic for node in nodes.values()]
        return (*_used(), sum(t[0] for t in traffic), sum(t[1] for t in traffic))

    await _serve(pipe, {"come": come, "entered": entered, "die": die, "used": used})
