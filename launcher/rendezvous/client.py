"""A node's side of the wire: looks for the coordinator, stays with it, looks again."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from bundlerun.launcher.options.endpoints import Endpoint
from bundlerun.launcher.rendezvous.handshake import Card, Stranger, introduce
from bundlerun.launcher.rendezvous.protocol import member
from bundlerun.launcher.rendezvous.protocol.leases import Leases
from bundlerun.launcher.rendezvous.protocol.member import Answer
from bundlerun.launcher.rendezvous.protocol.messages import (
    MAX_LINE_BYTES,
    Beat,
    Message,
    Peek,
    Report,
    Status,
)
from bundlerun.launcher.rendezvous.protocol.standing import Member
from bundlerun.launcher.rendezvous.protocol.votes import best_candidate
from bundlerun.launcher.rendezvous.protocol.wire import Book, Wire
from bundlerun.launcher.rendezvous.protocol.wishes import Send
from bundlerun.launcher.rendezvous.refusal import Refusal, RefusalCause

MOST_PATIENCE_LEASES = 4
"""Leases that a node waits for a candidate at most, if that is busy."""
RETRY_S = 0.1
"""Pause between two searches that found nothing."""


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate that answers."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    wire: Wire
    status: Status


class Client:
    """Keeps one node's member in touch; lives in an event loop.

    Args:
        first: the member as it begins.
        endpoints: where candidates may listen, by index.
        token: the secret of the job.
        run_id: the job.
        heartbeat_s: between two signs of life.
        card: what this node says of itself.
        act: is handed each wish of the member that is not for the wire.
        book: rounds that this process knows.
        most_nodes: of a round.
    """

    def __init__(
        self,
        first: Member,
        endpoints: Sequence[Endpoint],
        *,
        token: bytes,
        run_id: str,
        heartbeat_s: float,
        card: Card,
        act: Callable[[member.Wish], None],
        book: Book,
        most_nodes: int = 1,
    ) -> None:
        self.member = first
        self.endpoints = tuple(endpoints)
        self._secret = (token, run_id)
        self._heartbeat_s = heartbeat_s
        self._card = card
        self._act = act
        self._book = book
        # All nodes may look at a candidate at once, which takes some 1,000 of them in a second.
        self._least_patience_s = max(first.lease_s / 2, most_nodes / 1000)
        self._patience_s: dict[int, float] = {}
        """How long a candidate may take to answer, where that is more: it took longer before."""
        self._writer: asyncio.StreamWriter | None = None
        self._wire = Wire(book)
        self.refusals: dict[int, Refusal] = {}
        self.differences: dict[int, str] = {}
        """What is unlike at the candidates that refuse this node for that."""

    @property
    def where(self) -> str:
        """The endpoints, for messages."""
        return ",".join(map(str, self.endpoints))

    @property
    def is_in_touch(self) -> bool:
        """Whether it is registered with a coordinator."""
        return self._writer is not None

    def is_refused_for(self, cause: RefusalCause) -> bool:
        """Whether a candidate has refused this node for this."""
        return any(refusal.cause is cause for refusal in self.refusals.values())

    def apply(self, answer: Answer) -> None:
        """Takes the member's next state and does what it wishes."""
        self.member, wishes = answer
        for wish in wishes:
            if isinstance(wish, Send):
                self.say(wish.message)
            else:
                self._act(wish)

    def say(self, message: Message) -> None:
        """Sends, while there is a connection; the next report says it again."""
        if self._writer is not None:
            self._writer.write(self._wire.encode(message))

    async def flush(self, wait_s: float) -> None:
        """Waits until what was said has left this process, which says no more."""
        writer, self._writer = self._writer, None  # a beat after the end would fail
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(wait_s):
                if writer is not None:
                    await writer.drain()
                    writer.write_eof()

    async def run(self) -> None:
        """Searches and listens until cancelled, or the job is closed."""
        while not self.member.closed:
            best, found = await self._survey()
            if best is None:
                await asyncio.sleep(RETRY_S)
                continue
            await self._stay(best, found)

    async def tick(self) -> None:
        """Beats, and notices when there is no coordinator; runs next to `run`."""
        while True:
            slept_at = time.monotonic()
            await asyncio.sleep(self._heartbeat_s)
            now = time.monotonic()
            pause_s = now - slept_at - self._heartbeat_s
            # Without a connection nothing is unread that the coordinator may have said.
            if pause_s > self.member.lease_s / 3 and self._writer is not None:
                self.member = member.forgive(self.member, pause_s)
            if self._writer is not None:
                self.apply(member.beat(self.member))
            self.apply(member.tick(self.member, now, where=self.where))

    # ---------------------------------------------------------------- the search

    async def _survey(self) -> tuple[int | None, Found]:
        """Asks all candidates at once; the best of them, with its connection."""
        answers = await asyncio.gather(*(self._ask(i) for i in range(len(self.endpoints))))
        found = {index: answer for index, answer in enumerate(answers) if answer is not None}
        statuses = {index: each.status for index, each in found.items()}
        last_term = self.member.last.term if self.member.last else -1
        # All candidates count, as their last rounds decide where the nodes gather.
        best = best_candidate(statuses, last_term, len(self.endpoints))
        for index, each in found.items():
            if index != best:
                each.writer.close()
        # A refused connection proves that no agent is there; silence may be a cut cable.
        gone = tuple(
            index
            for index, refusal in self.refusals.items()
            if refusal.cause is RefusalCause.NOT_LISTENING
        )
        self.member = replace(self.member, gone=gone)
        return best, found[best] if best is not None else None  # type: ignore[return-value]

    async def _ask(self, index: int) -> Found | None:
        endpoint, wire = self.endpoints[index], Wire(self._book)
        writer = None
        try:
            async with asyncio.timeout(self._patience_s.get(index, self._least_patience_s)):
                reader, writer = await asyncio.open_connection(
                    endpoint.host, endpoint.port, limit=MAX_LINE_BYTES
                )
                await introduce(reader, writer, *self._secret, self._card)
                writer.write(wire.encode(Peek()))
                status = wire.decode(await reader.readline())
            assert isinstance(status, Status)
            wire.expect(status.knows)
            self._remember(index, None)
            self._patience_s.pop(index, None)
            return Found(reader, writer, wire, status)
        except ConnectionRefusedError:
            why = Refusal(RefusalCause.NOT_LISTENING, "refuses connections")
        except Stranger as exc:
            why = Refusal(exc.cause, str(exc))
        except (OSError, TimeoutError, ValueError, AssertionError) as exc:
            number = getattr(exc, "errno", None)
            reason = f"cannot be reached: {os.strerror(number).lower()}" if number else ""
            why = Refusal(RefusalCause.SILENT, reason or "does not answer")
        self._remember(index, why)
        if writer is not None:
            writer.close()
            # It is there and has too much to do. Nodes that all gave up after the same while would
            # keep it busy for ever, and none of them would be taken in.
            longer_s = 2 * self._patience_s.get(index, self._least_patience_s)
            most_s = max(MOST_PATIENCE_LEASES * self.member.lease_s, self._least_patience_s)
            self._patience_s[index] = min(longer_s, most_s)
        return None

    def _remember(self, index: int, why: Refusal | None) -> None:
        """Remembers why a candidate could not be reached; nothing where it could."""
        for kept in (self.refusals, self.differences):
            kept.pop(index, None)
        if why is not None:
            self.refusals[index] = why
            if why.cause is RefusalCause.DIFFERS:
                self.differences[index] = why.text

    # ---------------------------------------------------------------- with a coordinator

    async def _stay(self, index: int, found: Found) -> None:
        """Registers and follows until the connection is lost, or another candidate is better."""
        self._writer, self._wire = found.writer, found.wire
        listening = asyncio.ensure_future(self._listen(found.reader))
        try:
            self.apply(member.report(self.member))
            while not listening.done():
                # At most some 1,000 looks a second at a candidate, however many nodes look.
                every_s = max(self.member.lease_s / 3, self._num_nodes() / 1000)
                await asyncio.wait([listening], timeout=every_s)
                if not listening.done() and self._is_looking():
                    gone = self.member.gone
                    best, other = await self._survey()
                    if best is not None:
                        other.writer.close()
                    if best not in (None, index):
                        # Leaves this one; `run` searches again and registers with the better one.
                        return
                    # The coordinator need not wait for nodes that are known to have ended.
                    if self.member.gone != gone:
                        self.apply(member.report(self.member))
        finally:
            listening.cancel()
            found.writer.close()
            self._writer = None
            self.member = member.lost(self.member)

    def _num_nodes(self) -> int:
        return self.member.pulse.num_nodes if self.member.pulse else 0

    def _is_looking(self) -> bool:
        """Whether this node is in no round and its coordinator has none either."""
        pulse = self.member.pulse
        return len(self.endpoints) > 1 and not (
            pulse and pulse.is_active and (pulse.number or self.member.at)
        )

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        lease_s = self.member.lease_s
        poll_s = lease_s / 6
        # A half-open connection gives no error: a lease of silence is its end (I9).
        leases: Leases[str] = Leases(lease_s, look_every_s=poll_s, now=time.monotonic())
        leases.hear("coordinator", time.monotonic())
        reading = asyncio.ensure_future(reader.readline())
        try:
            while not leases.look(time.monotonic()):
                await asyncio.wait([reading], timeout=poll_s)
                if reading.done():
                    line = reading.result()
                    if not line:
                        return
                    leases.hear("coordinator", time.monotonic())
                    message = self._wire.decode(line)
                    reading = asyncio.ensure_future(reader.readline())
                    if message is not None and not isinstance(message, (Report, Beat)):
                        self.apply(
                            member.receive(self.member, message, time.monotonic())  # type: ignore[arg-type]
                        )
        except (OSError, ValueError):
            return
        finally:
            reading.cancel()
