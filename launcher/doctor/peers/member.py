"""One node's part: it answers what the lead asks, one order after the other.

findings   what it found about itself        clock   its time of day
measure    one direction, to another node    see, write, first    the shared folder
done       the verdict
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bundlerun.launcher.doctor.findings import Finding
from bundlerun.launcher.doctor.peers.door import Door
from bundlerun.launcher.doctor.peers.measure import measure
from bundlerun.launcher.doctor.peers.wire import Link, Reach, Secret, Unreached, Words, connect
from bundlerun.launcher.doctor.read.folder import nearest_folder
from bundlerun.launcher.options.endpoints import Endpoint
from bundlerun.launcher.run_folder.files import create_text, write_text
from bundlerun.launcher.run_folder.paths import trial_folder

FINDINGS_S = 300.0
"""How long a node may take to examine itself."""
SEE_S = 5.0
"""How long what one node wrote may take to be seen by another."""
CONNECT_S = 1.5
"""Long enough for a second packet, should the first one be lost."""
_POLL_S = 0.02


class Member:
    """What a node knows and does while it is examined with others.

    Args:
        index: its place in the list.
        peers: where all are, with addresses; None for a name that is unknown here.
        secret: see `Secret`.
        run_dir: the run folder; None: none is shared.
    """

    def __init__(
        self,
        index: int,
        peers: Sequence[Endpoint | None],
        secret: Secret,
        run_dir: Path | None,
    ) -> None:
        self.index, self.peers, self.secret = index, peers, secret
        self._run_dir = run_dir
        self._report: dict[str, Any] = {}
        self._has_report = threading.Event()
        self._is_met = threading.Event()
        self._is_done = threading.Event()
        self.verdict: dict[str, Any] = {}
        self.door: Door | None = None

    # ------------------------------------------------------------------ of this node

    def report(
        self,
        name: str,
        findings: Sequence[Finding],
        terms: Mapping[str, str],
        facts: Mapping[str, Any],
    ) -> None:
        """Keeps what this node found about itself, for the lead."""
        plain = [each.to_plain() for each in findings]
        self._report = {
            "name": name, "findings": plain, "terms": dict(terms), "facts": dict(facts),
        }  # fmt: skip
        self._has_report.set()

    @property
    def hello(self) -> dict[str, Any]:
        """What this node says first."""
        assert self.door is not None
        free_port = self.door.free_port
        return {
            "hello": "node", "index": self.index, "count": len(self.peers), "free_port": free_port,
        }  # fmt: skip

    def is_met(self, wait_s: float) -> bool:
        """Whether the lead and this node have found each other, within so many seconds."""
        return self._is_met.wait(wait_s)

    def is_done(self, wait_s: float) -> bool:
        """Whether the lead has told its verdict, within so many seconds; or is gone."""
        return self._is_done.wait(wait_s)

    def obey(self, link: Link, limit_s: float) -> None:
        """Answers orders until the lead is done, or gone.

        Args:
            limit_s: the longest time between two orders, seconds.
        """
        is_ours = False
        try:
            while not self._is_done.is_set():
                order = link.read(limit_s)
                is_ours = True
                self._is_met.set()
                link.send(self.answer(order))
        except Unreached:
            if is_ours:  # else the lead has taken another connection to this node
                self._is_done.set()

    # ------------------------------------------------------------------ orders

    def answer(self, order: Words) -> dict[str, Any]:
        """Does what the lead asks; an order that is not known does nothing."""
        match order.get("order"):
            case "findings":
                self._has_report.wait(FINDINGS_S)
                return self._report
            case "clock":
                return {"time": time.time()}
            case "measure":
                return self._measure(order)
            case "call":
                return self._call(int(order["to"]))
            case "heard":
                return {"heard": sorted(self.door.heard if self.door else ())}
            case "see" | "write" | "first":
                return self._in_folder(order)
            case "done":
                self.verdict = dict(order)
                self._is_done.set()
        return {}

    def _measure(self, order: Words) -> dict[str, Any]:
        """One direction, at the known port and at a free one; only towards nodes of the list."""
        peer = self.peers[int(order["to"])]
        if peer is None:
            return {"port": str(Reach.NO_ROUTE), "free": str(Reach.NO_ROUTE)}
        answer: dict[str, Any] = {}
        for key, port in (("port", peer.port), ("free", int(order["free_port"]))):
            seconds = float(order["seconds"]) if key == "free" else 0.0
            answer[key] = str(self._reach(peer.host, port, seconds, answer))
            if key == "port" and answer[key] != Reach.OK:
                answer["free"] = answer[key]
                break
        return answer

    def _reach(self, host: str, port: int, seconds: float, answer: dict[str, Any]) -> Reach:
        try:
            with connect(host, port, self.secret, limit_s=CONNECT_S) as link:
                if seconds:
                    stream = measure(link, seconds)
                    answer |= {"rtt_s": stream.rtt_s, "bytes_per_s": stream.bytes_per_s}
                return Reach.OK
        except Unreached as exc:
            return exc.reach

    def _call(self, to: int) -> dict[str, Any]:
        peer = self.peers[to]
        for _ in range(3):  # one may be lost on a good link, too
            if peer is not None and self.door is not None:
                self.door.call(self.index, peer.host, peer.port)
                time.sleep(_POLL_S)
        return {}

    def _in_folder(self, order: Words) -> dict[str, Any]:
        if self._run_dir is None or not re.fullmatch("[0-9a-f]{16}", str(order.get("nonce"))):
            return {}
        folder = trial_folder(nearest_folder(self._run_dir), str(order["nonce"]))
        name = f"node-{int(order.get('of', self.index))}"
        with suppress(OSError):
            if order["order"] == "see":
                return {"seen_s": _seen(folder / name, SEE_S)}
            if order["order"] == "write":
                write_text_in(folder, name)
                return {"is_written": True}
            return {"is_first": folder.is_dir() and create_text(folder / "first", name)}
        return {}


def write_text_in(folder: Path, name: str) -> None:
    """Writes a file into a folder that is there; makes none.

    Raises:
        OSError: it is not, or cannot be written.
    """
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    write_text(folder / name, name)


def _seen(path: Path, wait_s: float) -> float | None:
    """Seconds until a file is seen whole; None where it is not within `wait_s`."""
    start = time.monotonic()
    while (spent_s := time.monotonic() - start) < wait_s:
        with suppress(OSError):
            # Listing the folder has a network file system ask its server again.
            list(path.parent.iterdir())
            if path.read_text(encoding="utf-8") == path.name:
                return spent_s
        time.sleep(_POLL_S)
    return None
