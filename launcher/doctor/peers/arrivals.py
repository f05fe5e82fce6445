"""Which nodes come to be examined: by themselves, or because the first node finds them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol

from bundlerun.launcher.doctor.findings import Finding, error
from bundlerun.launcher.doctor.peers.member import Member
from bundlerun.launcher.doctor.peers.wire import Link, Reach, Unreached, Words, connect
from bundlerun.launcher.options.endpoints import Endpoint, text_of_endpoints

ORDER_S = 10.0
_POLL_S = 0.2


class Peer(Protocol):
    """A node that answers orders. hello: what it said first."""

    hello: Words

    def ask(self, order: Words, limit_s: float) -> dict[str, Any]:
        """Raises Unreached where it is gone."""


class Remote:
    """Another node."""

    def __init__(self, link: Link, hello: Words) -> None:
        self._link = link
        self.hello: Words = hello

    def ask(self, order: Words, limit_s: float) -> dict[str, Any]:
        """See `Peer`."""
        self._link.send(order)
        return self._link.read(limit_s)


class Here:
    """The lead itself, as one of the nodes."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self.hello: Words = member.hello

    def ask(self, order: Words, limit_s: float) -> dict[str, Any]:
        """See `Peer`."""
        del limit_s
        return self._member.answer(order)


class Arrivals:
    """The nodes that are there, by their place in the list.

    Args:
        member: the first node's own part; its door is open.
        wait_s: how long the others may take to come, seconds.
    """

    def __init__(self, member: Member, wait_s: float) -> None:
        self._member, self._wait_s = member, wait_s
        self._peers: dict[int, Peer] = {}
        self._lock = threading.Lock()
        self.is_over = threading.Event()
        self._last: dict[int, Reach] = {}
        self._odd: list[str] = []

    @property
    def there(self) -> dict[int, Peer]:
        """Those that have come, in order."""
        with self._lock:
            return dict(sorted(self._peers.items()))

    def take(self, link: Link, hello: Words) -> None:
        """A node that has come by itself; returns when all is over."""
        if self._let_in(link, hello):
            self.is_over.wait()

    def _let_in(self, link: Link, hello: Words) -> bool:
        index = hello.get("index")
        if not isinstance(index, int) or not 0 < index < len(self._member.peers):
            return False
        if hello.get("count") != len(self._member.peers):
            self._odd.append(f"node {index + 1} of the list has a list of {hello.get('count')}")
            return False
        with self._lock:
            is_new = index not in self._peers
            if is_new:
                self._peers[index] = remote = Remote(link, hello)
        if is_new:
            # So that it knows: it has been found, and waits for the others, too.
            with suppress(Unreached):
                remote.ask({"order": "welcome"}, ORDER_S)
        return is_new

    def _fetch(self, index: int, peer: Endpoint) -> None:
        """Goes to a node, as packets may pass in one direction only."""
        while not self.is_over.is_set() and index not in self._peers:
            try:
                link = connect(peer.host, peer.port, self._member.secret, limit_s=2.0)
                link.send({"hello": "lead"})
                if not self._let_in(link, link.read(ORDER_S)):
                    link.close()
                return
            except Unreached as exc:
                self._last[index] = exc.reach
            if self._member.door is not None:
                self._member.door.call(0, peer.host, peer.port)
            self.is_over.wait(_POLL_S)

    def meet(self) -> None:
        """Waits until all are there, or for as long as they may take."""
        self._peers[0] = Here(self._member)
        deadline = time.monotonic() + self._wait_s
        for index, peer in enumerate(self._member.peers):
            if index and peer is not None:
                threading.Thread(target=self._fetch, args=(index, peer), daemon=True).start()
        while len(self._peers) < len(self._member.peers) and time.monotonic() < deadline:
            time.sleep(_POLL_S / 4)

    # ------------------------------------------------------------------ who is not

    def missing(self, there: Iterable[int]) -> Iterable[Finding]:
        """An error for each node that is not there, with why."""
        heard = self._member.door.heard if self._member.door is not None else frozenset()
        for index, peer in enumerate(self._member.peers):
            if index in there:
                continue
            subject = f"node {index + 1}"
            if peer is None:
                yield error(subject, "its name stands for no address here", "give its address")
            elif index in heard:
                text = f"{peer} did not come: its packets arrive here, and ours do not arrive there"
                yield error(subject, text, "let packets of this node in at its firewall")
            else:
                why = self._last.get(index, Reach.DROPPED)
                text = f"{peer} did not come within {self._wait_s:g} s ({why})"
                mend = "start bundlerun doctor there with the same --peers; open its port"
                yield error(subject, text, mend)

    def gone(self, index: int) -> Finding:
        """What is said of a node that came and answers no more."""
        text = f"{self._member.peers[index]} came, and went away while it was examined"
        return error(f"node {index + 1}", text, "see what it says there, and its memory")

    def unlike_lists(self) -> Iterable[Finding]:
        """An error for each node whose list is another one."""
        for text in sorted(set(self._odd)):
            wanted = text_of_endpoints(p for p in self._member.peers if p is not None)
            yield error("--peers", text, f"give all nodes the same: {wanted}")
