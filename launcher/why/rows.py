"""The row of the history that says what an epoch's time went for: written, and read again.

{"kind": "why", "epoch": 3, "step": 4000, "text": "bound by data, 71% of the time", "pace": {...},
 "end": {"checkpoint": 0.4}, "ranks": [{"rank": 0, "seconds": {"data": 70.9, ...}, ...}, ...]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bundlerun.launcher.why.pace import Pace
from bundlerun.launcher.why.sums import RankSums

_MOST_RANKS = 64
"""Of more, those of a row are a sample: the critical one, the slow one, and the first ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """An epoch as its row tells of it.

    Args:
        epoch: its number, from 0. step: finished steps of the run.
        text: the verdict. pace: the same in numbers.
        ranks: what each rank did, or some of them.
    """

    epoch: int
    step: int
    text: str
    pace: Pace
    ranks: tuple[RankSums, ...]


def why_row(
    epoch: int,
    step: int,
    pace: Pace,
    ranks: Sequence[RankSums],
    end: Mapping[str, float],
    text: str,
) -> dict[str, Any]:
    """The values of the row."""
    told = {pace.rank, pace.slow.rank if pace.slow is not None else pace.rank}
    first = sorted(ranks, key=lambda rank: (rank.rank not in told, rank.rank))[:_MOST_RANKS]
    return {
        "epoch": epoch,
        "step": step,
        "text": text,
        "pace": asdict(pace),
        "end": {name: round(seconds, 3) for name, seconds in end.items()},
        "ranks": [_rounded(rank) for rank in sorted(first, key=lambda rank: rank.rank)],
    }


def _rounded(rank: RankSums) -> dict[str, Any]:
    row = asdict(rank)
    seconds = {name: round(value, 3) for name, value in rank.seconds.items() if value >= 0.0005}
    return row | {
        "seconds": seconds,
        "wall_s": round(rank.wall_s, 3),
        "cpu_s": round(rank.cpu_s, 3),
        "run_delay_s": round(rank.run_delay_s, 3),
    }


def epoch_of(row: Mapping[str, Any]) -> Epoch | None:
    """What a row of the kind "why" says; None where it is of another version."""
    try:
        ranks = tuple(RankSums.from_row(each) for each in row["ranks"])
        return Epoch(
            epoch=int(row["epoch"]),
            step=int(row["step"]),
            text=str(row["text"]),
            pace=Pace.from_row(row["pace"]),
            ranks=ranks,
        )
    except (KeyError, TypeError, ValueError):
        return None
