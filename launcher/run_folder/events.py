"""What happened at a node, one JSON object a line: who was lost, when, and what followed."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from bundlerun.launcher.process import boot_id
from bundlerun.launcher.run_folder.history import Row, read_last_rows, read_rows

log = logging.getLogger(__name__)

EventName: TypeAlias = Literal[
    # of a rank, in the order of its life
    "starts",
    "met",
    "restored",
    "copies short",
    "spare",
    "first step",
    "shares",
    "slow rank",
    "no slow rank",
    "bad link",
    "no bad link",
    "stops",
    "done",
    "failed",
    "corruption",
    # of an agent about its ranks
    "rank gone",
    "rank stopped",
    "rank silent",
    "stood",
    "fork server gone",
    "standby ready",
    "standby missing",
    "told to stop",
    # of an agent about its rounds
    "asks for a round",
    "in a round",
    "hands over",
    "cannot hand over",
    "has moved",
    "leaves",
    # of a node's side of the rendezvous
    "round",
    "finished",
    "over",
    "cut off",
    "fenced",
    "closed",
    # of a coordinator
    "coordinator: came",
    "coordinator: refuses a node",
    "coordinator: active",
    "coordinator: steps down",
    "coordinator: round",
    "coordinator: hands over",
    "coordinator: holds back",
    "coordinator: abandoned",
    "coordinator: over",
    "coordinator: lost",
    "coordinator: no fence",
    "coordinator: fenced",
    "coordinator: closed",
    # of a batch job
    "slurm: job starts",
    "slurm: signal",
    "slurm: first node lost",
    "slurm: step ends",
    "slurm: requeues",
]
"""All that an event log tells of; its readers go by these names and never by a text."""

_TAIL_BYTES = 256 << 10


class Events:
    """The event log of one node; its agent and its ranks append to the same file.

    `t_s` is the monotonic clock of the machine, seconds: differences mean something between lines
    of the same `boot`, the start of a machine. `wall` is the wall clock, for a reader.

    Args:
        file: the log; None keeps nothing.
        node: name of this node.
        always: details that every line has.
        clock: monotonic, seconds; all processes of a machine have it in common.
    """

    def __init__(
        self,
        file: Path | None,
        node: str,
        always: Mapping[str, object] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.node = node
        """Name of this node."""
        self._always = dict(always or {})
        self._clock = clock
        self._fd = -1
        if file is None:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            log.warning("no event log: cannot write %r: %s", str(file), exc.strerror)

    def note(self, event: EventName, details: Mapping[str, object] | None = None) -> None:
        """Appends a line, in one write, so that lines of several processes do not mix."""
        if self._fd < 0:
            return
        line = {
            "t_s": round(self._clock(), 4),
            "boot": boot_id(),
            "wall": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "node": self.node,
            "event": event,
            **self._always,
            **(details or {}),
        }
        with suppress(OSError):  # a full disk costs lines, not the run
            os.write(self._fd, (json.dumps(line) + "\n").encode())

    def close(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def name_of(row: Mapping[str, Any]) -> EventName:
    """What a line of an event log tells of; a log of another version may have other names."""
    return cast(EventName, row.get("event"))


def read_events(folder: Path) -> list[Row]:
    """The lines of all nodes by wall clock; one that a crash cut short is left out."""
    return of_events(row for file in sorted(folder.glob("*.jsonl")) for row in read_rows(file))


def of_events(rows: Iterable[Row]) -> list[Row]:
    """Those among the lines of all nodes that tell of an event, by wall clock."""
    return sorted(_events(rows), key=lambda row: str(row.get("wall", "")))


def is_fit(row: Row) -> bool:
    """Whether a line is one of an event log, with both of its times."""
    try:
        datetime.fromisoformat(row["wall"])
    except (KeyError, TypeError, ValueError):
        return False
    return isinstance(row.get("t_s"), (int, float)) and isinstance(row.get("event"), str)


def read_tail(file: Path) -> list[Row]:
    """The last lines of one node; none where the file cannot be read."""
    return _events(read_last_rows(file, _TAIL_BYTES))


def _events(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if "event" in row]
