"""What the ranks of one node are doing, as its agent writes it down again and again."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.why.sheet import Sheet
from bundlerun.launcher.why.stands import Stand, stand_of
from bundlerun.launcher.why.sums import RankSums


@dataclass(frozen=True, slots=True, kw_only=True)
class Now:
    """One node at one moment.

    Args:
        wall_s: of the wall clock, seconds since the epoch.
        ranks: what each rank did in the epoch under way.
        stands: where each is, without its stacks.
    """

    wall_s: float
    ranks: tuple[RankSums, ...]
    stands: tuple[Stand, ...]


def now_of(
    sheets: Sequence[tuple[int, int, Sheet]], node_name: str, *, now_s: float, wall_s: float
) -> Now:
    """Reads the sheets of a node.

    Args:
        sheets: local rank, process and sheet of each rank that has filled it.
        now_s: of the clock of the sheets.
        wall_s: of the wall clock.
    """
    active = [each for each in sheets if each[2].seat.bundle >= 0]
    return Now(
        wall_s=wall_s,
        ranks=tuple(sums_of(sheet, node_name, local, now_s) for local, _, sheet in active),
        stands=tuple(
            stand_of(
                sheet,
                sheet.standing(now_s),
                node_name=node_name,
                local_rank=local,
                pid=pid,
                by="now",
                asks=False,
            )
            for local, pid, sheet in active
        ),
    )


def sums_of(sheet: Sheet, node_name: str, local_rank: int, now_s: float) -> RankSums:
    """What a rank did since its epoch began."""
    seat = sheet.seat
    standing = sheet.standing(now_s)
    seconds = sheet.seconds()
    if standing.phase:
        # The one under way would be missing: a wait may last longer than all before it.
        seconds[standing.phase] += standing.age_s
    _, sent = sheet.sent
    return RankSums(
        rank=seat.rank,
        node=seat.node,
        node_name=node_name,
        local_rank=local_rank,
        bundle=seat.bundle,
        stage=seat.stage,
        replica=seat.replica,
        wall_s=max(0.0, now_s - sheet.begun_s),
        seconds=seconds,
        num_microbatches=sheet.num_microbatches,
        cpu_s=sheet.cpu_s,
        run_delay_s=sheet.run_delay_s,
        sent=sent if sent.wire_s else None,
    )


def write_now(paths: RunPaths, node_name: str, now: Now) -> None:
    """Writes it; a folder that cannot be written costs the view, not the run."""
    with suppress(OSError):
        write_text(paths.now(node_name), json.dumps(asdict(now)) + "\n", is_lasting=False)


def read_nows(files: Sequence[Path], *, newest_s: float = 60.0) -> list[Now]:
    """Those of all nodes that belong together: of the newest round, and not long before the newest.

    Args:
        newest_s: how much older than the newest one may be; clocks of nodes differ a little.
    """
    found = []
    for file in files:
        with suppress(OSError, ValueError, TypeError, KeyError):
            found.append(_now(json.loads(file.read_text(encoding="utf-8"))))
    last = max((now.wall_s for now in found), default=0.0)
    newest = [now for now in found if now.wall_s >= last - newest_s]
    tokens = [stand.token for now in newest for stand in now.stands if now.wall_s == last]
    token = tokens[0] if tokens else None
    return [now for now in newest if any(stand.token == token for stand in now.stands)]


def ranks_of(nows: Sequence[Now]) -> list[RankSums]:
    """All ranks, by rank, who they send to by name."""
    ranks = [rank for now in nows for rank in now.ranks]
    names = {f"#{rank.node}": rank.node_name for rank in ranks}
    named = (
        replace(rank, sent=rank.sent._replace(to=names.get(rank.sent.to, rank.sent.to)))
        if rank.sent is not None
        else rank
        for rank in ranks
    )
    return sorted(named, key=lambda rank: rank.rank)


def _now(row: Mapping[str, Any]) -> Now:
    return Now(
        wall_s=float(row["wall_s"]),
        ranks=tuple(RankSums.from_row(each) for each in row["ranks"]),
        stands=tuple(Stand.from_row(each) for each in row["stands"]),
    )


def age_text(now: Now) -> str:
    """How old it is, in words."""
    return f"{max(0.0, time.time() - now.wall_s):.0f} s ago"
