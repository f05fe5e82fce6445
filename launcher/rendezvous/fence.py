"""The fence: a folder that all nodes share, where only one half of a cut network gets a number.

    FENCE_DIR/round-000004.json      who went on as round 4: created once, never changed
    FENCE_DIR/pulse.json             rewritten by who goes on, while it does

A claim is linked into place whole: of two that want the same number one gets it, on NFS too.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from launcher.files import write_text
from launcher.rendezvous.coordinator import Claimed, TryClaim
from launcher.rendezvous.messages import Round, Seat
from launcher.rendezvous.state import Claim

WATCH_POLL_S = 0.1


class Fence:
    """The fence folder of one job."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._beats = 0

    def _file(self, number: int) -> Path:
        return self._folder / f"round-{number:06d}.json"

    @property
    def _pulse(self) -> Path:
        return self._folder / "pulse.json"

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
            while True:
                claims = self.claims()
                others = [c for c in claims if c.id[1] > wish.after and c.id not in wish.void]
                if others and (wish.after or self._has_pulse(watch_s, sleep)):
                    return Claimed(term=term, others=tuple(others))
                number = max([wish.round.number, *(c.id[1] + 1 for c in claims)])
                claimed_at = clock()
                self.beat()  # first: a claim without a pulse looks like one of an earlier job
                if self._create(number, wish.round):
                    return Claimed(term=term, number=number, at=claimed_at)
        except OSError as exc:
            reason = exc.strerror or str(exc)
            return Claimed(term=term, error=f"the fence folder {str(self._folder)!r}: {reason}")

    def claims(self) -> list[Claim]:
        """All claims, by number."""
        found = []
        for file in sorted(self._folder.glob("round-*.json")):
            document = json.loads(file.read_text(encoding="utf-8"))
            seats = tuple(Seat(**seat) for seat in document["seats"])
            found.append(Claim(id=(document["term"], document["number"]), seats=seats))
        return found

    def has(self, round_: Round) -> bool:
        """True where the claim of this very round is in the folder as this node sees it."""
        with suppress(OSError, ValueError, KeyError):
            document = json.loads(self._file(round_.number).read_text(encoding="utf-8"))
            return bool(document["term"] == round_.term)
        return False

    def beat(self) -> None:
        """Shows that somebody goes on; by the coordinator of a fenced round."""
        self._beats += 1
        text = json.dumps({"pid": os.getpid(), "beats": self._beats, "salt": id(self)})
        write_text(self._pulse, text)

    def _has_pulse(self, watch_s: float, sleep: Callable[[float], None]) -> bool:
        before, waited_s = self._read_pulse(), 0.0
        while before and waited_s < watch_s:
            sleep(WATCH_POLL_S)
            waited_s += WATCH_POLL_S
            if self._read_pulse() != before:
                return True
        return False

    def _read_pulse(self) -> str:
        with suppress(OSError):
            return self._pulse.read_text(encoding="utf-8")
        return ""

    def _create(self, number: int, round_: Round) -> bool:
        file = self._file(number)
        beside = file.with_name(f".{file.name}.{os.getpid()}-{round_.term}")
        seats = [asdict(seat) for seat in round_.seats]
        document = {"term": round_.term, "number": number, "seats": seats}
        write_text(beside, json.dumps(document))
        try:
            os.link(beside, file)
            return True
        except FileExistsError:
            return False
        finally:
            beside.unlink(missing_ok=True)

    def remove(self) -> None:
        """Takes the fence down, when the job is over."""
        with suppress(OSError):
            for file in [*self._folder.glob("round-*.json"), self._pulse]:
                file.unlink(missing_ok=True)
            self._folder.rmdir()
