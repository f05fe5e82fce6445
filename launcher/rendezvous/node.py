"""One node's part in the rendezvous, in a thread of its own: its member, perhaps its candidate.

    torch's agent (main thread)            event loop (this thread)
      next_rendezvous --- want ------------->  Client ----- wire -----> the active candidate
        <-- OpenStore, Enter (a queue) ------  Server <---- wire ------ all nodes, if it is us
      num_nodes_waiting: reads `member`, no lock, no wire

A thread and not a process: the agent sleeps nearly always, so that the loop gets the interpreter
when it wants it, and a stopped agent must look dead, which another process would hide.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundlerun.launcher.agreement.agreed import difference
from bundlerun.launcher.console import tell
from bundlerun.launcher.corruption.quarantine import why_left_out
from bundlerun.launcher.options.endpoints import Endpoint
from bundlerun.launcher.rendezvous.client import Client
from bundlerun.launcher.rendezvous.fence import WATCH_POLL_S, Fence
from bundlerun.launcher.rendezvous.handshake import Card
from bundlerun.launcher.rendezvous.protocol import member
from bundlerun.launcher.rendezvous.protocol.member import (
    Enter,
    LookForClaim,
    OpenStore,
    Wish,
)
from bundlerun.launcher.rendezvous.protocol.messages import (
    Close,
    Closed,
    Leave,
    Round,
    Seat,
    ToMember,
)
from bundlerun.launcher.rendezvous.protocol.standing import Member
from bundlerun.launcher.rendezvous.protocol.wire import Book
from bundlerun.launcher.rendezvous.protocol.wishes import Note
from bundlerun.launcher.rendezvous.refusal import RefusalCause
from bundlerun.launcher.rendezvous.server import Server
from bundlerun.launcher.rendezvous.settings import TOKEN_VARIABLE, Conf
from bundlerun.launcher.rendezvous.tasks import Tasks
from bundlerun.launcher.rendezvous.told import Obstacle, event_line, obstacle_of
from bundlerun.launcher.run_folder.events import Events

log = logging.getLogger(__name__)

REFUSED_S = 60.0
"""How long a node that is refused for its token tries: an earlier job may be about to end."""

UNLIKE_S = 1.0
"""How long nodes look whether the job has begun elsewhere, before they end it as they differ."""

Order = OpenStore | Enter
"""What the agent's thread is to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """All that a node needs to take part.

    nodes: fewest and most of a round.
    seat: who this node is; its `candidate` says which of the endpoints it keeps, -1 for none.
    own_endpoints: which of them it may keep, in order.
    terms: what it must have as the others have it; none: nothing is compared.
    """

    seat: Seat
    endpoints: tuple[Endpoint, ...]
    nodes: tuple[int, int]
    conf: Conf
    token: bytes
    run_id: str
    own_endpoints: Sequence[int] = ()
    terms: Mapping[str, str] = field(default_factory=dict)


class Node:
    """The thread."""

    def __init__(self, request: Request, events: Events) -> None:
        self._request = request
        self._events = events
        self.orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._fence = _fence(request)
        self._server: Server | None = None
        self._book = Book()
        self._unlike = ""
        """What was unlike at the last node that this candidate refused."""
        self._left_out: set[str] = set()
        """Nodes that were refused for what they have done."""
        self._client = Client(
            Member(
                seat=request.seat,
                num_candidates=len(request.endpoints),
                lease_s=request.conf.lease,
                guided_at=time.monotonic(),
            ),
            request.endpoints,
            token=request.token,
            run_id=request.run_id,
            heartbeat_s=request.conf.heartbeat,
            card=Card(name=request.seat.name, terms=request.terms),
            act=self._act,
            book=self._book,
            most_nodes=request.nodes[1],
        )
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._failed)
        self._tasks = Tasks()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="bundlerun-rendezvous", daemon=True
        )

    @property
    def member(self) -> Member:
        """What this node knows right now; any thread may look."""
        return self._client.member

    @property
    def is_alone(self) -> bool:
        """Whether the job has no other node."""
        return self._request.nodes[1] == 1

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """The endpoints of the job, in order."""
        return self._request.endpoints

    @property
    def obstacle(self) -> Obstacle:
        """What keeps this node, which waits for a round."""
        in_touch = self._client.is_in_touch
        return obstacle_of(self.member, self.refusals, is_in_touch=in_touch)

    @property
    def refusals(self) -> list[str]:
        """What is wrong with the candidates that could not be reached."""
        endpoints = self._client.endpoints
        refusals = self._client.refusals
        found = [f"{endpoints[index]} {each.text}" for index, each in refusals.items()]
        file = self._request.conf.token_file
        if file and self._client.is_refused_for(RefusalCause.TOKEN):
            found.append(
                f"this node goes by {TOKEN_VARIABLE} or {file!r}: all nodes must see the same file "
                f"(is its folder shared?) or have the same {TOKEN_VARIABLE}"
            )
        return found

    def start(self) -> None:
        """Begins to listen, where this node keeps an endpoint, and to search.

        Raises:
            OSError: the port is taken.
        """
        self._thread.start()
        # Waited for: a port that is taken is an error of the start.
        self._wait(self._listen(), 10.0)
        self._call(lambda: self._tasks.spawn(self._client.run()))
        self._call(lambda: self._tasks.spawn(self._give_up_when_refused()))
        self._call(lambda: self._tasks.spawn(self._give_up_when_unlike()))
        self._call(lambda: self._tasks.spawn(self._client.tick()))
        if self._fence:
            fence = self._fence
            self._call(lambda: self._tasks.spawn(self._look_for_the_end(fence)))

    async def _listen(self) -> None:
        request = self._request
        index = request.seat.candidate
        if index < 0:
            return
        server = Server(
            request.conf.rules(
                index=index, num_candidates=len(request.endpoints), nodes=request.nodes
            ),
            token=request.token,
            run_id=request.run_id,
            heartbeat_s=request.conf.heartbeat,
            fence=self._fence,
            objection_to=self._objection_to,
            note=self._events.note,
            book=self._book,
        )
        endpoint = request.endpoints[index]
        port = await server.listen(endpoint.host, endpoint.port)
        if not endpoint.port:  # a node that is alone
            self._client.endpoints = (Endpoint(host=endpoint.host, port=port),)
        self._server = server

    async def _give_up_when_refused(self) -> None:
        """Ends this node where every candidate that answers has refused it for long enough."""
        refused_at = None
        while refused_at is None or time.monotonic() - refused_at < REFUSED_S:
            await asyncio.sleep(1.0)
            has_other_token = self._client.is_refused_for(RefusalCause.TOKEN)
            # One candidate that takes this node in is enough.
            is_refused = has_other_token and not self._client.is_in_touch
            refused_at = (refused_at or time.monotonic()) if is_refused else None
        reason = f"refused for {REFUSED_S:g} s: {'; '.join(self.refusals)}"
        self._hear(Closed(reason=reason, is_success=False))

    def _objection_to(self, card: Card) -> str:
        """Why a node cannot take part; only this node's part in the rendezvous asks."""
        request = self._request
        left_out = why_left_out(request.conf.left_out_dir, card.name)
        if left_out:
            # Not unlike the others: nobody ends for it, however early in the job.
            if card.name not in self._left_out:
                self._left_out.add(card.name)
                details = {"node": card.name, "why": f"{card.name} is left out: {left_out}"}
                self._events.note("coordinator: refuses a node", details)
            return f"node {card.name} is left out for the rest of the run: {left_out}"
        unlike = difference({request.seat.name: request.terms, card.name: card.terms})
        # A refused node comes again and again; one line in the log is enough.
        if unlike and unlike != self._unlike:
            self._unlike = unlike
            self._events.note("coordinator: refuses a node", {"node": card.name, "why": unlike})
        return unlike

    async def _give_up_when_unlike(self) -> None:
        """Ends this node where it does not fit to the others and the job has not begun without it.

        A candidate that refuses may itself be the one that is unlike. So a node that is, or could
        be, in a round goes on; before the first round nobody can say who is right, and all end.
        """
        unlike_at = None
        while unlike_at is None or time.monotonic() - unlike_at < UNLIKE_S:
            await asyncio.sleep(UNLIKE_S / 5)
            unlike = self._unlike or next(iter(self._client.differences.values()), "")
            is_in = self.member.last is not None or (self.member.pulse and self.member.pulse.number)
            if is_in:
                # The job has begun: who differs is refused alone, and nobody ends with it (I14).
                self._unlike = ""
                self._client.differences.clear()
            unlike_at = (unlike_at or time.monotonic()) if unlike and not is_in else None
        if self._server:
            self._server.close_unlike(unlike)
        self._hear(Closed(reason=unlike, is_success=False, is_difference=True))

    async def _look_for_the_end(self, fence: Fence) -> None:
        """Where the others end the job while this node is cut off, only the folder tells it.

        What the folder says is of this job: its first claim took down what an earlier one had left,
        and this node has seen one.
        """
        while True:
            await asyncio.sleep(self._request.conf.lease)
            if self.member.may_miss_the_end:
                over = await asyncio.to_thread(fence.over)
                if over and self.member.may_miss_the_end:
                    self._hear(over)

    def want(self, num_workers: int) -> None:
        """Asks for the next round; its store to open and its begin come as orders."""
        self._call(lambda: self._client.apply(member.want(self.member, num_workers)))

    def finished(self) -> None:
        """All workers of this node have ended well."""
        self._call(lambda: self._client.apply(member.finished(self.member)))

    def opened(self, round_: Round, port: int) -> None:
        """The store of a round listens."""
        self._call(lambda: self._client.apply(member.opened(self.member, round_, port)))

    def moved(self, round_: Round) -> None:
        """All workers of this node are in the round that they went on in."""
        self._call(lambda: self._client.apply(member.moved(self.member, round_)))

    def paused(self, seconds: float) -> None:
        """The workers of this node do steps again, after so long without one."""
        pause_ms = max(1, round(seconds * 1000))
        self._call(lambda: self._client.apply(member.paused(self.member, pause_ms)))

    def close(self, reason: str, is_success: bool) -> None:
        """Ends the job for all, and waits until the coordinator knows."""
        message = Close(reason=reason, is_success=is_success)
        self._call(lambda: self._client.say(message))
        deadline = time.monotonic() + self._request.conf.lease
        while self.member.closed is None and time.monotonic() < deadline:
            time.sleep(0.01)

    def leave(self, reason: str, is_failure: bool) -> None:
        """Tells the others that this node goes."""
        self._call(lambda: self._client.say(Leave(reason=reason, is_failure=is_failure)))

    def stop(self, wait_s: float = 1.0) -> None:
        """Sends what is still to be sent, and ends the thread."""
        if not self._thread.is_alive():
            return
        with suppress(TimeoutError):
            self._wait(self._end(wait_s), 2 * wait_s + 1)
        self._call(self._loop.stop)
        self._thread.join(wait_s)

    async def _end(self, wait_s: float) -> None:
        await self._client.flush(wait_s)
        await asyncio.sleep(0.05)  # the coordinator may be this process: let it hear the last word
        if self._server:
            await self._server.close(wait_s)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    # ---------------------------------------------------------------- the loop's side

    def _call(self, work: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(work)

    def _hear(self, message: ToMember) -> None:
        """As if the coordinator had said it."""
        self._client.apply(member.receive(self.member, message, time.monotonic()))

    def _wait(self, work: Coroutine[Any, Any, None], wait_s: float) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(wait_s)

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Ends this node's part, with the reason, where the code here failed and not the wire.

        A thread that is half alive would be the worst: its heartbeats say that all is well.
        """
        error = context.get("exception")
        # Outside a task an OSError is the wire's; who uses the connection sees it, too.
        is_own = "task" in context or "handle" in context
        if error is None or (isinstance(error, OSError) and not is_own):
            loop.default_exception_handler(context)
            return
        log.error("the rendezvous failed: %s", context.get("message"), exc_info=error)
        # A task that nobody asked may tell of its failure in whichever thread frees it.
        asyncio.run_coroutine_threadsafe(self._break_off(repr(error)), loop)

    async def _break_off(self, error: str) -> None:
        if self.member.closed is None:
            reason = f"this node's rendezvous failed: {error}"
            self._hear(Closed(reason=reason, is_success=False))
            try:
                await self._end(0.0)
            finally:
                self._loop.stop()

    def _act(self, wish: Wish) -> None:
        match wish:
            case OpenStore() | Enter():
                self.orders.put(wish)
            case LookForClaim(round=round_):
                self._tasks.spawn(self._look(round_))
            case Note(event=event, details=details):
                line = event_line(wish, self.member.seat.name)
                if line and not self.is_alone:
                    tell(line)
                self._events.note(event, details)
                log.info("%s round %s: %s", event, details["round"], details["why"])
                if event == "closed":
                    # Wakes the agent's thread, which may be waiting for an order.
                    self.orders.put(None)

    async def _look(self, round_: Round) -> None:
        """A shared folder may show a new file late; a lease is long enough to wait for it."""
        deadline = time.monotonic() + self._request.conf.lease
        has = False
        while self._fence and not has and time.monotonic() < deadline:
            has = await asyncio.to_thread(self._fence.has, round_)
            if not has:
                await asyncio.sleep(WATCH_POLL_S)
        self._client.apply(member.looked(self.member, round_, has))


def _fence(request: Request) -> Fence | None:
    folder = request.conf.fence_dir
    return Fence(Path(folder) / request.run_id, request.seat.candidate) if folder else None


def unkept(endpoints: Sequence[Endpoint], seats: Sequence[Seat]) -> list[str]:
    """The endpoints that no node of a round keeps; none where there is but one."""
    kept = {seat.candidate for seat in seats}
    found = [str(endpoint) for index, endpoint in enumerate(endpoints) if index not in kept]
    return found if len(endpoints) > 1 else []
