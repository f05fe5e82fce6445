"""Examines this node as one of several: it opens its door, finds the first node, or is that."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bundlerun.launcher.agreement.agreed import terms_of_node
from bundlerun.launcher.doctor.findings import Finding, Level, warning
from bundlerun.launcher.doctor.local import Wanted, examine
from bundlerun.launcher.doctor.peers.door import Door
from bundlerun.launcher.doctor.peers.lead import Lead, Together, lead_gone, no_lead
from bundlerun.launcher.doctor.peers.member import Member
from bundlerun.launcher.doctor.peers.places import Places
from bundlerun.launcher.doctor.peers.wire import Link, Reach, Secret, Unreached, Words, connect
from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.options.endpoints import Endpoint

SEEK_S = 0.2
ORDERS_S = 600.0
"""The longest time between two orders of the first node, seconds."""
DOOR_S = 2.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Who is examined together.

    places: where all are. secret: what they know.
    wait_s: how long a node may take to come. shared: the run folder; None: none is.
    name: of this node. facts: what else the first node is to know of it, as JSON says it.
    command: what is started on each node.
    """

    places: Places
    secret: Secret
    wait_s: float
    shared: Path | None
    name: str
    facts: Mapping[str, object] = field(default_factory=dict)
    command: str = "bundlerun doctor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it for this node.

    together: all that was found, on the first node; else None.
    own: what this node found about itself, with why it was left alone, if it was.
    verdict: how many errors and warnings the first node counts; empty where it told none.
    """

    together: Together | None
    own: tuple[Finding, ...]
    verdict: Mapping[str, object]


def examine_together(group: Group, wanted: Wanted, environ: Mapping[str, str], say: Say) -> Outcome:
    """Examines this node and, with the others, all links between them.

    Raises:
        NodeError: nothing can be listened at, at this node's place.
    """
    peers = group.places.endpoints
    for index in group.places.kept:
        own = peers[index]
        assert own is not None
        member = Member(index, peers, group.secret, group.shared)
        lead = Lead(member, group.wait_s, group.shared) if index == 0 else None
        try:
            door = Door(own.host, own.port, group.secret, _serve(member, lead))
        except OSError as exc:
            # Nodes that share this machine take one place after the other.
            if exc.errno == errno.EADDRINUSE and index != group.places.kept[-1]:
                continue
            reason = (exc.strerror or str(exc)).lower()
            raise NodeError(
                f"cannot listen at {own}: {reason}; give this node another port in --peers"
            ) from exc
        member.door = door
        with door:
            here = replace(wanted, address=own.host)
            if lead is not None:
                return _as_lead(group, lead, member, here, environ, say)
            return _as_member(group, member, here, environ, say)
    raise AssertionError("a node has a place in the list")


def _serve(member: Member, lead: Lead | None) -> Callable[[Link, Words], None]:
    def serve(link: Link, hello: Words) -> None:
        match hello.get("hello"):
            case "node" if lead is not None:
                lead.arrivals.take(link, hello)
            case "lead" if lead is None:
                link.send(member.hello)
                member.obey(link, ORDERS_S)

    return serve


def _own_findings(
    group: Group, member: Member, wanted: Wanted, environ: Mapping[str, str]
) -> tuple[Finding, ...]:
    found = examine(wanted, environ)
    if group.places.note:
        mend = "name it by that address in --rdzv-endpoint, or mend /etc/hosts"
        found.append(warning("own name", group.places.note, mend))
    member.report(group.name, found, terms_of_node(wanted.data), group.facts)
    return tuple(found)


def _as_lead(
    group: Group, lead: Lead, member: Member, wanted: Wanted, environ: Mapping[str, str], say: Say
) -> Outcome:
    num = len(member.peers) - 1
    say(f"waiting up to {group.wait_s:g} s for {num} more: {group.command} --peers ... on each")
    meeting = threading.Thread(target=lead.arrivals.meet, daemon=True)
    meeting.start()
    own = _own_findings(group, member, wanted, environ)
    meeting.join()
    together = lead.examine()
    found = together.findings
    levels = [each.level for each in found]
    verdict = {"errors": levels.count(Level.ERROR), "warnings": levels.count(Level.WARNING)}
    lead.end(verdict)
    return Outcome(together=together, own=own, verdict=verdict)


def _as_member(
    group: Group, member: Member, wanted: Wanted, environ: Mapping[str, str], say: Say
) -> Outcome:
    lead = member.peers[0]
    say(f"looking for the first node, {lead}, for up to {group.wait_s:g} s")
    seeker = _Seeker(member, lead)
    seeker.start()
    own = _own_findings(group, member, wanted, environ)
    left = _why_alone(group, member, lead, seeker)
    return Outcome(together=None, own=(*own, *left), verdict=member.verdict)


def _why_alone(
    group: Group, member: Member, lead: Endpoint | None, seeker: _Seeker
) -> Iterator[Finding]:
    where = lead or Endpoint(host="the first of --peers", port=0)
    if not member.is_met(group.wait_s):
        seeker.is_over.set()
        assert member.door is not None
        yield no_lead(where, group.wait_s, seeker.last, is_heard=0 in member.door.heard)
    # The others may take as long to come, and all links are measured.
    elif not member.is_done(group.wait_s + ORDERS_S) or not member.verdict:
        yield lead_gone(where)


class _Seeker(threading.Thread):
    """Goes to the first node until it is found, or comes by itself."""

    def __init__(self, member: Member, lead: Endpoint | None) -> None:
        super().__init__(daemon=True)
        self._member, self._lead = member, lead
        self.is_over = threading.Event()
        self.last = Reach.NO_ROUTE

    def run(self) -> None:
        """Tries again and again."""
        member, lead = self._member, self._lead
        while lead is not None and not member.is_met(0) and not self.is_over.is_set():
            try:
                link = connect(lead.host, lead.port, member.secret, limit_s=DOOR_S)
                link.send(member.hello)
                member.obey(link, ORDERS_S)
                link.close()
            except Unreached as exc:
                self.last = exc.reach
            if member.door is not None:
                member.door.call(member.index, lead.host, lead.port)
            self.is_over.wait(SEEK_S)
