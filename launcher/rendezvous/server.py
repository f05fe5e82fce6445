"""A candidate's listener: takes nodes in, feeds the coordinator's machine, does what it wishes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from bundlerun.launcher.rendezvous.fence import Fence
from bundlerun.launcher.rendezvous.handshake import Card, Stranger, admit
from bundlerun.launcher.rendezvous.protocol import coordinator, decide
from bundlerun.launcher.rendezvous.protocol.coordinator import TryClaim, Wish
from bundlerun.launcher.rendezvous.protocol.events import (
    Arrived,
    Broken,
    Claimed,
    Event,
    Expired,
    Looked,
    Received,
)
from bundlerun.launcher.rendezvous.protocol.leases import Leases
from bundlerun.launcher.rendezvous.protocol.messages import (
    MAX_LINE_BYTES,
    Accept,
    Beat,
    Close,
    Closed,
    Hosted,
    Leave,
    Message,
    Peek,
    Report,
    Status,
    encode,
)
from bundlerun.launcher.rendezvous.protocol.state import Phase, Rules, State
from bundlerun.launcher.rendezvous.protocol.wire import Book, Wire
from bundlerun.launcher.rendezvous.protocol.wishes import Note, Send
from bundlerun.launcher.rendezvous.tasks import Tasks
from bundlerun.launcher.run_folder.events import EventName

ADMIT_S = 10.0
"""How long a connection may take to say who it is."""

MAX_UNSENT_BYTES = 4 * MAX_LINE_BYTES
"""A node that reads nothing does not fill our memory: its connection is closed."""

BACKLOG = 4096
"""Connections that wait to be taken in: after a failure all nodes come at once."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Link:
    """The connection of a registered node."""

    writer: asyncio.StreamWriter
    wire: Wire


class Server:
    """One candidate; lives in an event loop.

    Args:
        rules: the numbers it goes by.
        token: the secret of the job.
        run_id: the job.
        heartbeat_s: between two signs of life.
        fence: the shared folder; None without one.
        objection_to: why a node with this card cannot take part; empty where it can.
        note: is told what happens, for the event log.
        book: rounds that this process knows.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        token: bytes,
        run_id: str,
        heartbeat_s: float,
        fence: Fence | None,
        objection_to: Callable[[Card], str],
        note: Callable[[EventName, Mapping[str, object]], None],
        book: Book,
    ) -> None:
        self._state = State(rules=rules, since=time.monotonic())
        self._status = self._state.status
        self._book = book
        self._secret = (token, run_id)
        self._heartbeat_s = heartbeat_s
        self._fence = fence
        self._objection_to = objection_to
        self._note = note
        self._links: dict[str, _Link] = {}
        self._tick_s = min(heartbeat_s, rules.lease_s / 6) / 2
        self._leases: Leases[str] = Leases(
            rules.lease_s, look_every_s=self._tick_s, now=time.monotonic()
        )
        self._is_due = False
        self._tasks = Tasks()
        self._listener: asyncio.Server | None = None

    async def listen(self, address: str, port: int) -> int:
        """Begins to take nodes in, at this address only.

        Args:
            port: 0 takes a free one.

        Returns:
            The port.

        Raises:
            OSError: the port is taken.
        """
        self._listener = await asyncio.start_server(
            self._serve, address, port, limit=MAX_LINE_BYTES, backlog=BACKLOG
        )
        self._tasks.spawn(self._tick())
        self._tasks.spawn(self._pulse())
        if self._fence:
            self._tasks.spawn(self._keep_fence(self._fence))
        return int(self._listener.sockets[0].getsockname()[1])

    async def close(self, wait_s: float) -> None:
        """Hands over what is still to be sent, then stops."""
        links = [link.writer for link in self._links.values()]
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(wait_s):
                for writer in links:
                    await writer.drain()
        self._tasks.cancel()
        if self._listener:
            self._listener.close()
        for writer in links:
            writer.close()
        if self._fence and self._state.closed:
            await asyncio.to_thread(self._fence.close, self._state.closed)

    def close_unlike(self, reason: str) -> None:
        """Ends a job that has not begun, as the nodes that came do not fit together."""
        if self._state.phase is not Phase.CLOSED:
            self._state, wishes = coordinator.close(
                self._state, reason, is_success=False, is_difference=True
            )
            self._grant(wishes)
            self._settle()

    # ---------------------------------------------------------------- one connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name, link = "", _Link(writer, Wire(self._book))
        try:
            async with asyncio.timeout(ADMIT_S):
                await admit(reader, writer, *self._secret, self._objection_to)
                first = link.wire.decode(await reader.readline())
                # A node looks first; if this is its candidate, it registers on the same connection.
                while first is None or isinstance(first, Peek):
                    if first is not None:
                        writer.write(encode(self._answer()))
                    first = link.wire.decode(await reader.readline())
            if isinstance(first, Report) and self._let_in(first, link):
                name = first.seat.name
                while line := await reader.readline():
                    message = link.wire.decode(line)
                    self._hear(name, link, message)
        except (Stranger, ValueError, OSError, TimeoutError, asyncio.IncompleteReadError) as exc:
            log.debug("a connection ends: %r", exc)
        except asyncio.CancelledError:
            return
        finally:
            writer.close()
            # Not where a newer connection of this node has taken over.
            if name and self._links.get(name) is link:
                del self._links[name]
                self._leases.forget(name)
                self._take(Broken(name=name))

    def _answer(self) -> Status:
        # As of the last `settle`: worked out anew for each of many nodes that look at once, from
        # what all of them have said, it would be the square of their number.
        return replace(self._status, knows=self._book.keys)

    def _let_in(self, report: Report, link: _Link) -> bool:
        name = report.seat.name
        old = self._state.peers.get(name)
        # Another address while the first is connected: two nodes of one name, not a return.
        if old and name in self._links and old.seat.address != report.seat.address:
            reason = (
                f"node name {name!r} is taken by the node at {old.seat.address}; give each its own "
                "with --rdzv-conf node_name=NAME"
            )
            link.writer.write(encode(Closed(reason=reason, is_success=False)))
            return False
        if name in self._links:
            # It came back before its old connection was seen to break.
            self._links[name].writer.close()
        self._links[name] = link
        self._leases.hear(name, time.monotonic())
        self._take(Arrived(report=report))
        return True

    def _hear(self, name: str, link: _Link, message: Message | None) -> None:
        """What a node says; None: only a round that later messages name."""
        if self._links.get(name) is not link:
            raise OSError("another connection of the node has taken over")
        self._leases.hear(name, time.monotonic())
        if isinstance(message, (Report, Beat, Hosted, Accept, Leave, Close)):
            event = Received(name=name, message=message)
            # One connection, so in its order.
            if coordinator.is_news(self._state, event):
                self._take(event)

    # ---------------------------------------------------------------- the machine

    def _take(self, event: Event) -> None:
        self._state, wishes = coordinator.receive(self._state, event, time.monotonic())
        self._grant(wishes)
        if not self._is_due:  # once for all that came in together
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._settle)

    def _settle(self) -> None:
        self._is_due = False
        self._state, wishes = decide.settle(self._state, time.monotonic())
        self._status = self._state.status
        self._grant(wishes)

    def _grant(self, wishes: list[Wish]) -> None:
        for wish in wishes:
            match wish:
                case Send(to=name, message=message):
                    self._send(name, message)
                case TryClaim():
                    self._tasks.spawn(self._claim(wish))
                case Note(event=event, details=details):
                    self._note(event, details)

    def _send(self, name: str, message: Message) -> None:
        link = self._links.get(name)
        if link is None:
            return
        link.writer.write(link.wire.encode(message))
        if link.writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            link.writer.transport.abort()

    async def _claim(self, wish: TryClaim) -> None:
        if self._fence is None:
            done = Claimed(term=wish.round.term, error="this node has no fence_dir")
        else:
            watch_s = 4 * self._state.rules.lease_s
            # In a thread: a shared folder may hang, but heartbeats must not (I9).
            done = await asyncio.to_thread(self._fence.claim, wish, watch_s=watch_s)
        self._take(done)

    # ---------------------------------------------------------------- time

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            for name in self._leases.look(time.monotonic()):
                self._leases.forget(name)
                self._take(Expired(name=name))
                # Not closed, which would wait for a node that does not answer.
                self._links.pop(name).writer.transport.abort()
            # Time alone makes things due: graces, waits and retries.
            self._settle()

    async def _pulse(self) -> None:
        while True:
            line = encode(self._state.pulse)
            for link in self._links.values():
                link.writer.write(line)
            await asyncio.sleep(self._heartbeat_s)

    async def _keep_fence(self, fence: Fence) -> None:
        """Beats there; a task of its own, as a shared folder may take its time.

        Others may have gone on before it began, and in a pause: first the beat, then a look.
        """
        beaten_at: float | None = None
        while True:
            rounds = (self._state.in_force, self._state.proposal and self._state.proposal.round)
            is_fenced = any(round_ and round_.is_fenced for round_ in rounds)
            if is_fenced and self._state.phase is Phase.ACTIVE:
                with suppress(OSError, ValueError):
                    await asyncio.to_thread(fence.beat)
                    lease_s = self._state.rules.lease_s
                    if beaten_at is None or time.monotonic() - beaten_at > lease_s:
                        claims = await asyncio.to_thread(fence.claims)
                        over = await asyncio.to_thread(fence.over)
                        self._take(Looked(claims=tuple(claims), over=over))
                    beaten_at = time.monotonic()
            else:
                beaten_at = None
            await asyncio.sleep(self._heartbeat_s)
