"""The fence: a folder that all nodes share, where only one half of a cut network gets a number.

    FENCE_DIR/round-000004.json      who went on as round 4: created once, never changed
    FENCE_DIR/pulse-1.json           rewritten by candidate 1, while a round of its is in force
    FENCE_DIR/over.json              the job is over, and why; until another one begins

A claim is linked into place whole: of two that want the same number one gets it, on NFS too.

A first round passes over the claims of an earlier job, which nobody keeps a pulse for. Its
coordinator may have been asleep, though, and wake in this very moment. So who wakes beats first and
then looks at the claims, and who begins claims first and then looks at the pulses: one of the two
sees the other.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from bundlerun.launcher.rendezvous.protocol.coordinator import TryClaim
from bundlerun.launcher.rendezvous.protocol.events import Claimed
from bundlerun.launcher.rendezvous.protocol.messages import Closed, Round, Seat
from bundlerun.launcher.run_folder.files import create_text, write_text

WATCH_POLL_S = 0.1


class Fence:
    """The fence folder of one job.

    Args:
        folder: shared by all nodes; it need not exist yet.
        index: of the candidate that uses it.
    """

    def __init__(self, folder: Path, index: int = 0) -> None:
        self._folder = folder
        self._over_file = folder / "over.json"
        self._index = index
        self._beats = 0
        self._beating = threading.Lock()

    def _file(self, number: int) -> Path:
        return self._folder / f"round-{number:06d}.json"

    def claim(
        self,
        wish: TryClaim,
        *,
        watch_s: float,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> Claimed:
        """Claims the next free number, unless the claim of another stands in the way.

        Args:
            watch_s: how long the pulse must have stopped before claims of an earlier job count as
                such; for a first round.
        """
        term = wish.round.term
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            pulses = self._pulses()
            while True:
                # [1] What stands in the way of any claim.
                claims = self.claims()
                others = [c for c in claims if c.number > wish.after and c.id not in wish.void]
                refused = self._refusal(wish, claims, others)
                if refused is not None:
                    return refused
                # [2] Others in the way of a first round: of an earlier job, unless a pulse goes on.
                if others and self._has_pulse(pulses, watch_s, sleep):
                    return Claimed(term=term, others=tuple(others))
                # [3] The claim itself; of two that want one number the other looks again.
                number = max([wish.round.number, *(c.number + 1 for c in claims)])
                claimed_at = clock()
                self.beat()  # first: a claim without a pulse looks like one of an earlier job
                if not self._create(number, wish.round):
                    continue
                # [4] One of an earlier job may have been asleep, and have beaten meanwhile.
                if others and wish.is_first and self._pulses() != pulses:
                    self._file(number).unlink(missing_ok=True)
                    return Claimed(term=term, others=tuple(others))
                # Only a first round passes an end that is there: it is an earlier job's.
                self._over_file.unlink(missing_ok=True)
                return Claimed(term=term, number=number, at=claimed_at)
        except OSError as exc:
            reason = exc.strerror or str(exc)
            return Claimed(term=term, error=f"the fence folder {str(self._folder)!r}: {reason}")

    def _refusal(
        self, wish: TryClaim, claims: Sequence[Round], others: Sequence[Round]
    ) -> Claimed | None:
        """Why no claim of `wish` is made, whether or not others are still there; None: it may be.

        Args:
            wish: what is to be claimed.
            claims: all there are.
            others: those of them that stand in its way, if it is not the first of its job.
        """
        term = wish.round.term
        over = self.over()  # after the claims, which go once it is there
        if over and not wish.is_first:
            # The job has ended without these nodes, which were cut off.
            return Claimed(term=term, over=over)
        if others and not wish.is_first:
            return Claimed(term=term, others=tuple(others))
        # A folder without a round that these nodes know of is not the one that others share.
        if wish.seen and not any(c.number >= wish.seen for c in claims):
            error = f"the fence folder {str(self._folder)!r} lacks round {wish.seen}"
            return Claimed(term=term, error=error)
        # Terms and numbers grow together: below a higher term the claim needs another election.
        highest = max((c.term for c in claims), default=-1)
        return Claimed(term=term, highest_term=highest) if highest > term else None

    def claims(self) -> list[Round]:
        """All claims, by number."""
        found = []
        for file in sorted(self._folder.glob("round-*.json")):
            document = json.loads(file.read_text(encoding="utf-8"))
            seats = tuple(Seat(**seat) for seat in document["seats"])
            found.append(
                Round(
                    term=document["term"],
                    number=document["number"],
                    seats=seats,
                    is_fenced=document.get("is_fenced", False),
                )
            )
        return found

    def has(self, round_: Round) -> bool:
        """Whether the claim of this very round is in the folder as this node sees it."""
        with suppress(OSError, ValueError, KeyError):
            document = json.loads(self._file(round_.number).read_text(encoding="utf-8"))
            return bool(document["term"] == round_.term)
        return False

    def beat(self) -> None:
        """Shows that somebody goes on; by the coordinator of a fenced round."""
        with self._beating:  # a claim beats, too, from another thread
            self._beats += 1
            text = json.dumps({"pid": os.getpid(), "beats": self._beats, "salt": id(self)})
            write_text(self._folder / f"pulse-{self._index}.json", text)

    def _has_pulse(
        self, before: dict[str, str], watch_s: float, sleep: Callable[[float], None]
    ) -> bool:
        waited_s = 0.0
        # Without any pulse there is nothing to wait for.
        while before and waited_s < watch_s:
            sleep(WATCH_POLL_S)
            waited_s += WATCH_POLL_S
            if self._pulses() != before:
                return True
        return False

    def _pulses(self) -> dict[str, str]:
        """Those of the other candidates; of this one a start before it may have left some."""
        found = {}
        for file in self._folder.glob("pulse-*.json"):
            if file.name != f"pulse-{self._index}.json":
                with suppress(OSError):
                    found[file.name] = file.read_text(encoding="utf-8")
        return found

    def _create(self, number: int, round_: Round) -> bool:
        seats = [asdict(seat) for seat in round_.seats]
        document = {
            "term": round_.term,
            "number": number,
            "seats": seats,
            "is_fenced": round_.is_fenced,
        }
        return create_text(self._file(number), json.dumps(document), may_be_met_empty=False)

    def over(self) -> Closed | None:
        """How the job ended, or None; a node that was cut off then must not go on alone."""
        with suppress(OSError, ValueError, TypeError):
            return Closed(**json.loads(self._over_file.read_text(encoding="utf-8")))
        return None

    def close(self, closed: Closed) -> None:
        """Takes the claims down, when the job is over."""
        with suppress(OSError):
            # The end before the claims go: who finds no claims must find the end.
            write_text(self._over_file, json.dumps(asdict(closed)))
            for pattern in ("round-*.json", "pulse-*.json"):
                for file in self._folder.glob(pattern):
                    file.unlink(missing_ok=True)
