"""A step as ranks have measured it: what each of them did, from when to when; one file per rank.

    measured-steps/step-000000003/bundle-0-stage-1-replica-0.json

Times are of the monotonic clock, which all processes of a machine have in common. What the clocks
of two machines differ by is for the reader to find (`bundlerun.launcher.report.clocks`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.paths import RunPaths

NUM_RANKS = 64
"""Ranks that measure: the first ones of a job, so that no job fills a folder with files."""
NUM_STEPS = 8
"""Measured steps that are kept."""


class Span(NamedTuple):
    """Something that a rank did.

    phase: its name, as the meters have it. begin_s, end_s: by the monotonic clock. action: the pass
    that it belongs to, such as "F3" or "B0.1"; empty: none. ahead: 1 where that is one of the next
    step, whose first forward a GPU gets early.
    """

    phase: str
    begin_s: float
    end_s: float
    action: str = ""
    ahead: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRank:
    """What one rank did in one step, and the most memory that it has held so far.

    round: a text that all ranks of a round share. boot: this start of its machine. wall_s: the wall
    clock less the monotonic clock, seconds. host_bytes, device_bytes: peaks; 0 for what is not
    known or not there. chunks: of the model on this rank.
    """

    step: int
    round: str
    node: str
    boot: str
    rank: int
    bundle: int
    stage: int
    replica: int
    chunks: int
    wall_s: float
    host_bytes: int
    device_bytes: int
    spans: tuple[Span, ...]


def write_measured(paths: RunPaths, rank: MeasuredRank) -> None:
    """Writes what a rank has measured.

    Raises:
        OSError: the folder cannot be written.
    """
    place = (rank.bundle, rank.stage, rank.replica)
    write_text(paths.measured_rank(rank.step, *place), text_of_rank(rank), is_lasting=False)


def text_of_rank(rank: MeasuredRank) -> str:
    """What a rank has measured, as a line of JSON."""
    # A microsecond is more than the clocks tell apart; it halves the file.
    spans = [(s.phase, round(s.begin_s, 6), round(s.end_s, 6), *s[3:]) for s in rank.spans]
    return json.dumps({**asdict(rank), "spans": spans}) + "\n"


def prune_measured(paths: RunPaths, *, keep: int = NUM_STEPS) -> None:
    """Removes all but the steps that were measured last; by one rank of all."""
    # By age: a run that had to begin again measures lower numbers than those that are there.
    with suppress(OSError):
        folders = sorted(_folders(paths), key=lambda folder: folder.stat().st_mtime_ns)
        for folder in folders[:-keep]:
            shutil.rmtree(folder, ignore_errors=True)


def read_measured(paths: RunPaths) -> Iterator[list[MeasuredRank]]:
    """Each measured step, oldest first: its ranks in order of their numbers.

    What cannot be read is left out, as are ranks of an earlier round that did the same step.
    """
    for folder in sorted(_folders(paths)):
        ranks = [rank for file in sorted(folder.glob("*.json")) if (rank := _rank_of(file))]
        if not ranks:
            continue
        newest = max(ranks, key=lambda rank: rank.wall_s + rank.spans[0].begin_s).round
        yield sorted((r for r in ranks if r.round == newest), key=lambda rank: rank.rank)


def _folders(paths: RunPaths) -> Iterator[Path]:
    return paths.measured_steps.glob("step-*")


def _rank_of(file: Path) -> MeasuredRank | None:
    try:
        return rank_of_text(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def rank_of_text(text: str) -> MeasuredRank | None:
    """What `text_of_rank` has written; None for anything else, and for a rank that did nothing."""
    try:
        values = json.loads(text)
        spans = tuple(
            Span(str(p), float(b), float(e), str(a), int(n)) for p, b, e, a, n in values["spans"]
        )
        rest: dict[str, Any] = {name: int(values[name]) for name in _INTS}
        rest |= {name: str(values[name]) for name in ("round", "node", "boot")}
        found = MeasuredRank(**rest, wall_s=float(values["wall_s"]), spans=spans)
    except (ValueError, TypeError, KeyError):
        return None
    return found if found.spans else None


_INTS = ("step", "rank", "bundle", "stage", "replica", "chunks", "host_bytes", "device_bytes")
