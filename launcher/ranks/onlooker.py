"""A thread of the agent that writes down what its ranks do, and where one stands that cannot tell.

Not the thread that watches them: a folder that answers late must not keep that one from its looks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from bundlerun.launcher.ranks.board import Board, Row
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.why.hang import hang_of, is_hang
from bundlerun.launcher.why.hang_words import hang_text
from bundlerun.launcher.why.now import now_of, write_now
from bundlerun.launcher.why.sheet import Sheet
from bundlerun.launcher.why.stands import (
    Stand,
    margin_s,
    read_stands,
    stand_file,
    stand_of,
    write_stand,
)

log = logging.getLogger(__name__)

LOOK_S = 0.5
NOW_S = 2.0
"""How often it is written what ranks do, seconds; of many ranks, less often."""
_NOW_PER_RANK_S = 0.01
_GRACE_S = 1.0
"""How long after its time a rank may tell itself where it stands."""
SILENT_S = 30.0
"""A rank without a beat for so long cannot tell; `watch` ends it after twice that."""

Ranks = Sequence[tuple[int, int, Sheet]]
"""Local rank, process and sheet."""


class Onlooker:
    """The thread.

    Args:
        board: where the ranks have their sheets.
        node_name: of this node.
        clock: seconds; that of the sheets.
    """

    def __init__(
        self,
        board: Board,
        node_name: str,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._board = board
        self._node_name = node_name
        self._clock = clock
        self._told: set[tuple[int, int]] = set()
        self._now_due = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bundlerun-onlooker", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Has the thread end; does not wait for a folder that does not answer."""
        self._end.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._end.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        """Writes down what is due."""
        paths, ranks = self._paths, self._ranks()
        if paths is None or not ranks:
            return
        now_s = self._clock()
        for local_rank, pid, sheet in ranks:
            self._take_back(paths, local_rank, sheet)
            if self._cannot_tell(paths, local_rank, sheet, now_s):
                self._told.add((local_rank, sheet.seat.token))
                stand = stand_of(
                    sheet,
                    sheet.standing(now_s),
                    node_name=self._node_name,
                    local_rank=local_rank,
                    pid=pid,
                    by="agent",
                )
                write_stand(paths, stand)
        if now_s >= self._now_due:
            self._now_due = now_s + max(NOW_S, _NOW_PER_RANK_S * ranks[0][2].seat.world_size)
            now = now_of(ranks, self._node_name, now_s=now_s, wall_s=time.time())
            write_now(paths, self._node_name, now)

    def _take_back(self, paths: RunPaths, local_rank: int, sheet: Sheet) -> None:
        """A rank for which this agent has told beats again: from here on it tells itself."""
        key, row = (local_rank, sheet.seat.token), self._board.row(local_rank)
        if key not in self._told or row is None or self._silent_s(row) > LOOK_S:
            return
        self._told.discard(key)
        file = stand_file(paths, self._node_name, sheet.seat.token, local_rank)
        if any(stand.by == "agent" for stand in read_stands([file])):
            with suppress(OSError):
                file.unlink(missing_ok=True)

    @staticmethod
    def _silent_s(row: Row) -> float:
        return (time.monotonic_ns() - row.beat_ns) / 1e9

    def _cannot_tell(self, paths: RunPaths, local_rank: int, sheet: Sheet, now_s: float) -> bool:
        """Whether a rank stands and has not said so, which this agent has not, either."""
        seat = sheet.seat
        row = self._board.row(local_rank)
        if row is None or seat.bundle < 0 or (local_rank, seat.token) in self._told:
            return False
        silent_s = self._silent_s(row)
        limit_s = seat.limit_s - margin_s(seat.limit_s) + _GRACE_S
        if silent_s < min(SILENT_S, limit_s):  # it is alive: it tells itself, or takes it back
            return False
        file = stand_file(paths, self._node_name, seat.token, local_rank)
        return sheet.age_s(now_s) >= min(SILENT_S, limit_s) and not file.exists()

    @property
    def _paths(self) -> RunPaths | None:
        return RunPaths(Path(self._board.run_dir)) if self._board.run_dir else None

    def _ranks(self) -> Ranks:
        found = []
        for local_rank, row in self._board.rows():
            sheet = self._board.sheet(local_rank)
            if sheet is not None and sheet.is_filled:
                found.append((local_rank, row.pid, sheet))
        return found

    def verdict(self) -> tuple[str, list[Stand]]:
        """Why the round stood that has just ended, as this node tells it for all; "" if it did not.

        Only the first node of the round tells, so that it is told once.
        """
        paths, ranks = self._paths, self._ranks()
        if paths is None or not ranks or ranks[0][2].seat.node != 0:
            return "", []
        stands = read_stands(paths.all_stands(), ranks[0][2].seat.token)
        hang = hang_of(stands) if is_hang(stands) else None
        return (hang_text(hang, stands) if hang is not None else ""), stands
