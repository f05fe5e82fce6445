"""Where ranks stood when they waited too long: a file each in the run folder, and who reads them.

    rank    at the limit less `margin_s`, or as it ends      logs/NODE/stands/TOKEN-LOCALRANK.json
    agent   for a rank of its node that could not            the same
    rank    that goes on after all                           takes its file away

TOKEN is that of the round, so that the files of an earlier one are no part of the story.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bundlerun.launcher.process import kernel_state
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.why.sheet import Message, Sheet, Standing, Talk
from bundlerun.launcher.why.stacks import (
    Frame,
    Thread,
    ask,
    children_of,
    kernel_place,
    own_threads,
)

_MARGIN = 0.2
_LONGEST_MARGIN_S = 5.0
_MOST_HELPERS = 8


def margin_s(limit_s: float) -> float:
    """How long before a wait runs out ranks tell where they stand, seconds.

    All begin to stand within a step, and all are to have told before the first one ends the others.
    """
    return min(_LONGEST_MARGIN_S, _MARGIN * limit_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Helper:
    """A process that a rank has started, such as one that loads data."""

    pid: int
    state: str
    kernel: str
    threads: tuple[Thread, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Where one rank stood.

    Args:
        age_s: for how long, seconds. limit_s: longest wait for another rank.
        phase, peer, message, microbatch, talk, legs: see `Standing`.
        state: the kernel's letter of its process; kernel: where in the kernel it waited.
        threads: its own first; helpers: processes that load its data.
        by: "rank", or "agent" where the rank could not tell.
    """

    token: int
    rank: int
    world_size: int
    node_name: str
    local_rank: int
    bundle: int
    stage: int
    replica: int
    pid: int
    step: int
    age_s: float
    limit_s: float
    phase: str
    peer: int
    message: Message
    microbatch: int
    talk: Talk
    legs: Mapping[str, float]
    state: str = ""
    kernel: str = ""
    threads: tuple[Thread, ...] = ()
    helpers: tuple[Helper, ...] = ()
    by: str = "rank"
    unsent: Mapping[str, int] = field(default_factory=dict)
    """Bytes that other nodes have not taken in, by their addresses."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Stand:
        """Of what JSON has made of it.

        Raises:
            TypeError, KeyError, ValueError: it is something else.
        """
        helpers = tuple(Helper(**{**h, "threads": _threads(h["threads"])}) for h in row["helpers"])
        return cls(
            **{
                **row,
                "message": Message(row["message"]),
                "talk": Talk(row["talk"]),
                "threads": _threads(row["threads"]),
                "helpers": helpers,
            }
        )


def stand_file(paths: RunPaths, node_name: str, token: int, local_rank: int) -> Path:
    """Where it is written."""
    return paths.stands(node_name) / f"{token:08x}-{local_rank}.json"


def stand_of(
    sheet: Sheet,
    standing: Standing,
    *,
    node_name: str,
    local_rank: int,
    pid: int,
    by: str = "rank",
    unsent: Mapping[str, int] | None = None,
    asks: bool = True,
) -> Stand:
    """Looks at a rank; at the own process without signals, at another one with them.

    Args:
        asks: whether for stacks, too.
    """
    seat = sheet.seat
    fd = sheet.stacks_fd if asks else -1
    answers = Path(f"/proc/{pid}/fd/{fd}")
    is_own = pid == os.getpid()
    # Before the signal, which would wake a process that sleeps in the kernel.
    state, kernel = kernel_state(pid), kernel_place(pid)
    threads = own_threads() if is_own and asks else (ask(pid, answers) if fd >= 0 else [])
    helpers = []
    if standing.phase in ("data", "validate") and fd >= 0:
        for child in children_of(pid)[:_MOST_HELPERS]:
            where = kernel_state(child), kernel_place(child)
            found = ask(child, answers)
            if found:
                helpers.append(
                    Helper(pid=child, state=where[0], kernel=where[1], threads=tuple(found))
                )
    return Stand(
        token=seat.token,
        rank=seat.rank,
        world_size=seat.world_size,
        node_name=node_name,
        local_rank=local_rank,
        bundle=seat.bundle,
        stage=seat.stage,
        replica=seat.replica,
        pid=pid,
        step=sheet.step,
        age_s=round(standing.age_s, 3),
        limit_s=seat.limit_s,
        phase=standing.phase,
        peer=standing.peer,
        message=standing.message,
        microbatch=standing.microbatch,
        talk=standing.talk,
        legs=dict(standing.legs),
        state=state,
        kernel=kernel,
        threads=tuple(threads),
        helpers=tuple(helpers),
        by=by,
        unsent=dict(unsent or {}),
    )


def write_stand(paths: RunPaths, stand: Stand) -> None:
    """Writes it; a folder that cannot be written costs the story, not the run."""
    file = stand_file(paths, stand.node_name, stand.token, stand.local_rank)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(asdict(stand), indent=1) + "\n")


def read_stands(files: Sequence[Path], token: int | None = None) -> list[Stand]:
    """Those of one round, by rank; None: of all rounds. Files that are not whole are left out."""
    found = []
    for file in files:
        if token is not None and not file.name.startswith(f"{token:08x}-"):
            continue
        with suppress(OSError, ValueError, TypeError, KeyError):
            found.append(Stand.from_row(json.loads(file.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda stand: stand.rank)


def _threads(rows: Sequence[Sequence[Any]]) -> tuple[Thread, ...]:
    return tuple(Thread(name, tuple(Frame(*frame) for frame in frames)) for name, frames in rows)
