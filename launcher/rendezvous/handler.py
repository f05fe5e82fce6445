"""The door into torch: `torchrun --rdzv-backend=bundle`."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import queue
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousTimeoutError,
)

from bundlerun.launcher.console import open_console, tell
from bundlerun.launcher.corruption.quarantine import why_left_out
from bundlerun.launcher.errors import EXIT_RESUMABLE
from bundlerun.launcher.meeting.addresses import LOOPBACK, own_place, resolve
from bundlerun.launcher.meeting.node_name import claimed_name
from bundlerun.launcher.options.backend import BUNDLE
from bundlerun.launcher.options.endpoints import parse_endpoints
from bundlerun.launcher.ranks.node_ranks import Ranks
from bundlerun.launcher.rendezvous.node import Node, Request, unkept
from bundlerun.launcher.rendezvous.probe import is_rendezvous
from bundlerun.launcher.rendezvous.protocol.member import Enter, OpenStore
from bundlerun.launcher.rendezvous.protocol.messages import Round, Seat
from bundlerun.launcher.rendezvous.rounds import Rounds
from bundlerun.launcher.rendezvous.settings import (
    NAME_VARIABLE,
    Conf,
    read_token,
)
from bundlerun.launcher.rendezvous.told import WaitLines, joined_line
from bundlerun.launcher.run_folder.events import Events


class NodeLeftOut(RendezvousClosedError):
    """Its replica was wrong: the others go on without it."""


class NodesDiffer(RendezvousClosedError):
    """The nodes of the job have other options, files, data or versions."""


POLL_S = 0.5
STOP_WAIT_S = 10.0
"""How long a node that is told to stop waits for the round in which it can do so in good order."""

log = logging.getLogger(__name__)


class BundleRendezvousHandler(RendezvousHandler):
    """One node's handler.

    Args:
        node: its thread, which has started.
        run_id: the job.
        conf: what the user has set.
        events: this node's event log.
        resources: end with the handler.
        ranks: what is known of this node's workers.
    """

    def __init__(
        self,
        node: Node,
        *,
        run_id: str,
        conf: Conf,
        events: Events,
        resources: ExitStack,
        ranks: Ranks,
    ) -> None:
        self._node = node
        self._ranks = ranks
        self._run_id = run_id
        self._conf = conf
        self._events = events
        self._resources = resources
        self._rounds = Rounds(node, ranks, events, lease_s=conf.lease, learn=self._learn)
        self._num_workers = conf.num_workers
        self._unkept: list[str] = []
        self._is_down = False

    def get_backend(self) -> str:
        """The name of the backend."""
        return BUNDLE.name

    @property
    def use_agent_store(self) -> bool:
        """Always true: the workers use the store of the round, which an agent keeps."""
        return True

    def get_run_id(self) -> str:
        """The job."""
        return self._run_id

    def next_rendezvous(self) -> RendezvousInfo:
        """Waits for the next round that this node is in.

        Raises:
            RendezvousClosedError: the job has failed, or its only endpoint is lost.
            NodeLeftOut: this node takes no part any more.
            RendezvousTimeoutError: too few nodes came.
            SystemExit: the job has ended well, and this node was spare; or this node was told to
                stop while it had no round, or has stopped, save for ranks that died in doing so.
                torch has no other way out: its RendezvousGracefulExitError ends in an
                AttributeError of the launcher.
        """
        begin = time.monotonic()
        self._settle_attempt()
        self._events.note("asks for a round")
        self._node.want(self._num_workers)
        deadline = begin + self._conf.join_timeout
        waiting = WaitLines(self._node.member.seat.name, begin)
        stop_by = math.inf
        while True:
            self._check_open()
            if self._node.member.is_spare:
                # A spare node waits without a limit, to take the place of another.
                deadline = time.monotonic() + self._conf.join_timeout
            if self._ranks.is_told_to_stop:
                # After a failure the next round comes soon, and its ranks stop all together.
                waits = self._ranks.has_run and not self._node.member.is_spare
                stop_by = min(stop_by, time.monotonic() + (STOP_WAIT_S if waits else 0.0))
            if time.monotonic() > stop_by:
                if self._ranks.has_run:
                    self._ranks.pass_on_stop()
                raise SystemExit(EXIT_RESUMABLE)
            if time.monotonic() > deadline:
                raise RendezvousTimeoutError(self._why_none())
            self._tell_waiting(waiting, deadline)
            try:
                order = self._node.orders.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if isinstance(order, OpenStore):
                self._rounds.open(order.round)
            elif isinstance(order, Enter):
                info = self._rounds.enter(order.round)
                if info is not None:
                    self._begin(order.round, waited_s=time.monotonic() - begin)
                    return info
                # The round was over, or its store gone, before this node was in it.
                self._node.want(self._num_workers)

    def _begin(self, entered: Round, *, waited_s: float) -> None:
        """The ranks of this node are about to start in a round."""
        self._ranks.begin(joins=entered.number if entered.before else 0)
        details = {"round": entered.number, "waited_s": round(waited_s, 4)}
        self._events.note("in a round", details)
        if not self._node.is_alone:
            tell(joined_line(entered, self._node.member.seat.name))
            self._tell_unkept(entered)

    def _settle_attempt(self) -> None:
        """Ends the job where what became of the last attempt says that another is in vain."""
        if why := why_left_out(self._conf.left_out_dir, self._node.member.seat.name):
            raise NodeLeftOut(why)
        over = self._node.member.over
        why = self._ranks.settle(over=over.cause if over else None)
        if self._node.member.closed is not None:
            return
        if not why:
            story = self._ranks.story(self._node.member.seat.name)
            if story:
                tell(story)
            return
        is_stopped = self._ranks.have_stopped
        self.set_closed(why, is_success=is_stopped)
        if is_stopped:  # one died on the way out; the other nodes are on theirs
            raise SystemExit(EXIT_RESUMABLE)
        raise RendezvousClosedError(why)

    def _tell_waiting(self, waiting: WaitLines, deadline: float) -> None:
        line = waiting.line(self._node.obstacle, time.monotonic(), deadline)
        if line and not self._node.is_alone:
            tell(line)

    def _tell_unkept(self, round_: Round) -> None:
        """A stand-by that nobody is was meant to be one; once each time that changes."""
        before, self._unkept = self._unkept, unkept(self._node.endpoints, round_.seats)
        if self._unkept and self._unkept != before:
            tell(
                f"node {self._node.member.seat.name}: no node keeps {', '.join(self._unkept)}: "
                "nobody would take over there (each agent keeps one endpoint of its own address)"
            )

    def _check_open(self) -> None:
        closed = self._node.member.closed
        if closed is None:
            return
        if closed.is_success:
            raise SystemExit(EXIT_RESUMABLE if self._ranks.is_told_to_stop else 0)
        raise (NodesDiffer if closed.is_difference else RendezvousClosedError)(closed.reason)

    def _why_none(self) -> str:
        """What a node says that waited in vain."""
        member, waited = self._node.member, f"no round in {self._conf.join_timeout:g} s"
        if member.pulse and member.pulse.waits_for:
            return f"{waited}: {member.pulse.waits_for}"
        return f"{waited}: {'; '.join(self._node.refusals) or 'no coordinator became active'}"

    def _learn(self, num_workers: int) -> None:
        self._num_workers = num_workers

    def is_closed(self) -> bool:
        """Whether the job is over."""
        return self._node.member.closed is not None

    def set_closed(self, reason: str = "closed by a node", *, is_success: bool = False) -> None:
        """Ends the job for all nodes, which report the reason."""
        self._node.close(reason, is_success)

    def num_nodes_waiting(self) -> int:
        """1 where the workers are to stop and this node is to come for another round, else 0."""
        # While the workers run nobody else looks at the orders.
        must_leave = self._rounds.begin_anew() or self._node.member.must_leave
        if must_leave:
            self._ranks.end_start()  # torch's agent sends them SIGTERM now
        elif pause_s := self._ranks.pause_s():
            self._node.paused(pause_s)
        return int(must_leave)

    def shutdown(self) -> bool:
        """Leaves; after success, closes for all.

        torch calls this from a `finally`, so that the exception on its way says what happened.
        """
        if self._is_down:
            return True
        self._is_down = True
        exc = sys.exc_info()[1]
        member = self._node.member
        # Workers that have ended well end the job for all; otherwise this node leaves alone.
        if member.closed is None and exc is None and member.at is not None and not member.over:
            end = "have stopped, and can go on" if self._ranks.have_stopped else "have finished"
            self.set_closed(f"the workers {end}", is_success=True)
        elif member.closed is None:
            is_failure = isinstance(exc, ChildFailedError)
            story = str(exc).strip().splitlines()
            reason = (
                "its workers failed and it has no attempt left"
                if is_failure
                else (story[0] if story else "it was told to")
            )
            self._node.leave(reason, is_failure)
        self._events.note("leaves", {"why": type(exc).__name__ if exc else "done"})
        self._node.stop()
        # Read again: closing has brought the end, and another node may have given another reason.
        closed = self._node.member.closed
        if closed is not None and not closed.is_success:
            self._ranks.failed(closed.reason)
        elif closed is not None and not self._node.is_alone:
            tell(f"node {self._node.member.seat.name}: the run is over: {closed.reason}")
        self._resources.close()
        return True


def create_handler(params: RendezvousParameters) -> RendezvousHandler:
    """The handler of this node.

    Raises:
        ConfigError: an endpoint or a setting is wrong.
        RendezvousConnectionError: this node's endpoint cannot be kept.
    """
    open_console()
    conf = Conf.from_mapping(params.config)
    resources = ExitStack()
    wanted = conf.node_name or os.environ.get(NAME_VARIABLE, "")
    name = wanted or resources.enter_context(claimed_name(f"rendezvous {params.run_id}"))
    request = request_of(params, conf, name)
    events = Events(Path(conf.events_dir) / f"{name}.jsonl" if conf.events_dir else None, name)
    node = started(request, events)
    ranks = resources.enter_context(
        Ranks.of_agent(
            os.environ, events, lease_s=conf.lease, give_up_after=int(conf.give_up_after)
        )
    )
    return BundleRendezvousHandler(
        node, run_id=params.run_id, conf=conf, events=events, resources=resources, ranks=ranks
    )


def request_of(params: RendezvousParameters, conf: Conf, name: str) -> Request:
    """Who this node is, from what torchrun was given.

    Raises:
        ConfigError: an endpoint or the token is wrong.
    """
    endpoints = tuple(
        replace(endpoint, host=resolve(endpoint.host))
        for endpoint in parse_endpoints(params.endpoint or LOOPBACK, may_be_free=True)
    )
    place = own_place(endpoints, params.local_addr or "")
    seat = Seat(
        name=name,
        incarnation=os.urandom(8).hex(),
        address=place.address,
        num_workers=conf.num_workers,
        candidate=-1,
    )
    return Request(
        seat=seat,
        endpoints=endpoints,
        own_endpoints=place.kept,
        nodes=(params.min_nodes, params.max_nodes),
        conf=conf,
        token=read_token(conf, os.environ, params.run_id),
        run_id=params.run_id,
        terms=json.loads(conf.terms) if conf.terms else {},
    )


def started(request: Request, events: Events) -> Node:
    """The node's thread, which keeps the first of its endpoints that no other agent keeps.

    Raises:
        RendezvousConnectionError: this node cannot listen at its endpoint.
    """
    for candidate in request.own_endpoints:
        node = Node(replace(request, seat=replace(request.seat, candidate=candidate)), events)
        try:
            node.start()
            return node
        except OSError as exc:
            endpoint = request.endpoints[candidate]
            node.stop()
            is_ours = exc.errno == errno.EADDRINUSE and is_rendezvous(endpoint.host, endpoint.port)
            if not is_ours:
                reason = (exc.strerror or str(exc)).lower()
                raise RendezvousConnectionError(f"cannot listen at {endpoint}: {reason}") from exc
            # Another agent of this machine was quicker.
    node = Node(request, events)
    node.start()
    return node
