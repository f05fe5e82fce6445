"""The first node's part: it has the others measure, and makes the findings of all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundlerun.launcher.agreement.agreed import DATA, differences
from bundlerun.launcher.doctor.findings import Finding, error, warning
from bundlerun.launcher.doctor.folder import SharedFacts, check_shared
from bundlerun.launcher.doctor.peers.arrivals import ORDER_S, Arrivals, Peer
from bundlerun.launcher.doctor.peers.links import (
    Measured,
    Pair,
    check_clocks,
    check_links,
    seconds_each,
    slow_links,
    turns_of,
)
from bundlerun.launcher.doctor.peers.measure import STALL_S
from bundlerun.launcher.doctor.peers.member import FINDINGS_S, SEE_S, Member
from bundlerun.launcher.doctor.peers.wire import Reach, Unreached, Words
from bundlerun.launcher.doctor.read.folder import trial
from bundlerun.launcher.options.endpoints import Endpoint

MEASURE_S = 30.0
_NUM_CLOCKS = 5
_AGAIN = 2
"""Times that a slow link is measured again: the best of all counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What one node found about itself.

    facts: see `together.Group`. index: its place in the list.
    """

    name: str
    endpoint: str
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """What all nodes found, and what was found between them."""

    nodes: tuple[NodeReport, ...]
    between: tuple[Finding, ...]
    links: tuple[Measured, ...]
    names: Mapping[int, str]

    @property
    def findings(self) -> list[Finding]:
        """All of them."""
        return [*(each for node in self.nodes for each in node.findings), *self.between]


class Lead:
    """Leads an examination.

    Args:
        member: this node's own part; its door is open.
        wait_s: how long the others may take to come, seconds.
        run_dir: the run folder; None: none is shared.
    """

    def __init__(self, member: Member, wait_s: float, run_dir: Path | None) -> None:
        self._member, self._run_dir = member, run_dir
        self.arrivals = Arrivals(member, wait_s)

    # ------------------------------------------------------------------ the examination

    def examine(self) -> Together:
        """All that is to be found; the nodes that are there have been met."""
        there = self.arrivals.there
        between = [*self.arrivals.missing(there), *self.arrivals.unlike_lists()]
        reports = self._ask_all(there, {"order": "findings"}, FINDINGS_S)
        between += [self.arrivals.gone(index) for index in there if not reports[index]]
        there = {index: peer for index, peer in there.items() if reports[index]}
        names = _names({index: str(reports[index].get("name", "")) for index in there})
        nodes = [self._node(index, names, reports[index]) for index in there]
        terms = {names[index]: dict(reports[index].get("terms", {})) for index in there}
        between += _unlike(terms)
        measures, heard = self._measure(there)
        if len(there) > 1:
            between.append(check_clocks(names, self._clocks(there)))
            between += check_links(names, measures, heard)
            between += self._shared(there, names)
        return Together(
            nodes=tuple(nodes), between=tuple(between), links=tuple(measures), names=names
        )

    def end(self, verdict: Words) -> None:
        """Tells all nodes, and lets them go."""
        self._ask_all(self.arrivals.there, {"order": "done", **verdict}, ORDER_S)
        self.arrivals.is_over.set()

    def _ask_all(
        self, there: Mapping[int, Peer], order: Words, limit_s: float
    ) -> dict[int, dict[str, Any]]:
        """The answers of all, side by side; a node that is gone gives none."""

        def ask(peer: Peer) -> dict[str, Any]:
            with suppress(Unreached):
                return peer.ask(order, limit_s)
            return {}

        with ThreadPoolExecutor(max_workers=max(1, len(there))) as pool:
            return dict(zip(there, pool.map(ask, there.values()), strict=True))

    def _node(self, index: int, names: Mapping[int, str], report: Words) -> NodeReport:
        found: list[Finding] = []
        with suppress(KeyError, ValueError, TypeError):  # of another version
            found = [Finding.of_plain(each) for each in report["findings"]]
        return NodeReport(
            name=names[index],
            endpoint=str(self._member.peers[index]),
            findings=tuple(found),
            facts=dict(report.get("facts", {})),
            index=index,
        )

    # ------------------------------------------------------------------ links

    def _measure(self, there: Mapping[int, Peer]) -> tuple[list[Measured], dict[Pair, bool]]:
        indices, found = list(there), dict[Pair, Measured]()
        seconds = seconds_each(len(indices))
        for turn in turns_of(len(indices)):
            pairs = [(indices[a], indices[b]) for a, b in turn]
            found |= self._measure_at_once(there, pairs, seconds)
        # Other work on a node may have slowed one down: what is slow again and again is the link.
        for _ in range(_AGAIN):
            for slow in slow_links(list(found.values())):
                again = self._measure_at_once(there, [slow.pair], seconds)[slow.pair]
                if (again.bytes_per_s or 0.0) > (slow.bytes_per_s or 0.0):
                    found[slow.pair] = again
        return list(found.values()), self._heard(there, found)

    def _measure_at_once(
        self, there: Mapping[int, Peer], pairs: list[Pair], seconds: float
    ) -> dict[Pair, Measured]:
        def one(pair: Pair) -> Measured:
            source, target = pair
            hello: Words = there[target].hello
            order = {
                "order": "measure", "to": target, "seconds": seconds,
                "free_port": int(hello.get("free_port", 0)),
            }  # fmt: skip
            try:
                answer = there[source].ask(order, MEASURE_S + seconds + STALL_S)
                return Measured(
                    source=source,
                    target=target,
                    port=Reach(answer["port"]),
                    free=Reach(answer["free"]),
                    rtt_s=answer.get("rtt_s"),
                    bytes_per_s=answer.get("bytes_per_s"),
                )
            except (Unreached, KeyError, ValueError):
                return Measured(source=source, target=target, port=Reach.BROKEN, free=Reach.BROKEN)

        with ThreadPoolExecutor(max_workers=len(pairs)) as pool:
            return dict(zip(pairs, pool.map(one, pairs), strict=True))

    def _heard(self, there: Mapping[int, Peer], found: Mapping[Pair, Measured]) -> dict[Pair, bool]:
        """Whether datagrams arrive where no connection is made in either direction."""
        shut = [
            pair
            for pair, measured in found.items()
            if measured.port is Reach.DROPPED
            and pair[::-1] in found
            and found[pair[::-1]].port is Reach.DROPPED
        ]
        heard = {}
        for source, target in shut:
            with suppress(Unreached):
                there[source].ask({"order": "call", "to": target}, ORDER_S)
                answer = there[target].ask({"order": "heard"}, ORDER_S)
                heard[source, target] = source in answer.get("heard", [])
        return heard

    def _clocks(self, there: Mapping[int, Peer]) -> dict[int, float]:
        """How far each clock is ahead of ours, by the quickest of several answers."""
        ahead = {}
        for index, peer in there.items():
            best = None
            with suppress(Unreached):
                for _ in range(_NUM_CLOCKS if index else 0):
                    before, start = time.time(), time.monotonic()
                    theirs = float(peer.ask({"order": "clock"}, ORDER_S).get("time", before))
                    took_s = time.monotonic() - start
                    if best is None or took_s < best[0]:
                        best = (took_s, theirs - before - took_s / 2)
            if best is not None:
                ahead[index] = best[1]
        return ahead

    # ------------------------------------------------------------------ the folder

    def _shared(self, there: Mapping[int, Peer], names: Mapping[int, str]) -> Iterable[Finding]:
        if self._run_dir is None:
            return []
        nonce = os.urandom(8).hex()
        others = {index: peer for index, peer in there.items() if index}
        try:
            with trial(self._run_dir, nonce):
                common = {"nonce": nonce}
                there[0].ask({"order": "write", **common}, ORDER_S)
                limit_s = SEE_S + ORDER_S
                seen = self._ask_all(others, {"order": "see", "of": 0, **common}, limit_s)
                self._ask_all(others, {"order": "write", **common}, ORDER_S)
                back = {
                    index: there[0].ask({"order": "see", "of": index, **common}, limit_s)
                    for index in others
                    if seen[index].get("seen_s") is not None
                }
                firsts = self._ask_all(there, {"order": "first", **common}, ORDER_S)
        except OSError:
            return []  # said of this node already
        return check_shared(
            SharedFacts(
                path=str(self._run_dir),
                lead=names[0],
                seen_s=tuple((names[i], seen[i].get("seen_s")) for i in others),
                back_s=tuple((names[i], back[i].get("seen_s")) for i in back),
                firsts=tuple(names[i] for i in there if firsts[i].get("is_first")),
                wait_s=SEE_S,
            )
        )


def _names(given: Mapping[int, str]) -> dict[int, str]:
    """A name for each node; those that share one are told apart by their place in the list."""
    shared = {name for name in given.values() if list(given.values()).count(name) > 1}
    return {
        i: f"{name}({i + 1})" if name in shared or not name else name for i, name in given.items()
    }


def _unlike(terms: Mapping[str, Mapping[str, str]]) -> Iterable[Finding]:
    """Versions and data that are not the same on all nodes: such nodes refuse each other."""
    for subject, text in differences(terms).items():
        mend = "give all nodes the same data" if subject == DATA else "install the same everywhere"
        yield error(subject, text, f"{mend}; nodes that differ are refused")


def no_lead(lead: Endpoint, wait_s: float, why: Reach, *, is_heard: bool) -> Finding:
    """What a node says that the lead and it have not found each other."""
    if is_heard:
        text = f"{lead} is there: its packets arrive here, and ours do not arrive there"
        return error("first node", text, "let packets of this node in at its firewall")
    text = f"{lead} did not come within {wait_s:g} s ({why})"
    return error("first node", text, "start bundlerun doctor there with the same --peers")


def lead_gone(lead: Endpoint) -> Finding:
    """What a node says that was left alone."""
    return warning("first node", f"{lead} went away before it was done", "see what it says there")
