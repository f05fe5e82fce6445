"""All that the files of a run say about why it is slow or stands."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bundlerun.launcher.run_folder.events import read_events
from bundlerun.launcher.run_folder.history import Row, read_rows
from bundlerun.launcher.run_folder.outcome import incidents
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.run_folder.status import failure_text
from bundlerun.launcher.why.flight import Missed, missed, records_of
from bundlerun.launcher.why.hang import Hang, hang_of, is_hang
from bundlerun.launcher.why.now import Now, ranks_of, read_nows
from bundlerun.launcher.why.pace import Pace, pace_of
from bundlerun.launcher.why.rows import Epoch, epoch_of
from bundlerun.launcher.why.stands import Stand, read_stands
from bundlerun.launcher.why.sums import RankSums

_FRESH_S = 20.0
"""After how long without a word of the agents nobody is said to do anything now."""
_PER_RANK_S = 0.03
_NUM_FAILURES = 3
STILL_S = 5.0
"""A rank that has been at one thing for so long is told to stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stood:
    """A run stood, and its ranks were ended.

    Args:
        wall_s: when, seconds since the epoch.
        hang: why. stands: where each rank was. files: with their stacks.
        missed: operations of NCCL that some ranks had begun and others had not.
    """

    wall_s: float
    hang: Hang
    stands: tuple[Stand, ...]
    files: tuple[Path, ...]
    missed: tuple[Missed, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """What the ranks do now.

    Args:
        age_s: how old that is, seconds.
        pace: of the epoch under way; None: it has just begun.
        hang: why they stand, as far as one can see; None: they do not.
    """

    age_s: float
    ranks: tuple[RankSums, ...]
    stands: tuple[Stand, ...]
    pace: Pace | None
    hang: Hang | None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """See the module.

    Args:
        epochs: in order. present: None where nobody says what it does. stood: the last time.
        failures: the last ones, a line each: what ends a rank is why the others stood.
    """

    epochs: tuple[Epoch, ...]
    present: Present | None
    stood: Stood | None
    failures: tuple[str, ...] = ()


def view_of(paths: RunPaths, *, now_s: float) -> View:
    """Reads what there is.

    Args:
        now_s: of the wall clock, seconds since the epoch.
    """
    rows = read_rows(paths.metrics)
    return View(
        epochs=_epochs(rows),
        present=_present(read_nows(paths.all_nows()), now_s),
        stood=_stood(paths),
        failures=tuple(
            failure_text(row) for found in incidents(read_events(paths.events)) for row in found
        )[-_NUM_FAILURES:],
    )


def _epochs(rows: Sequence[Row]) -> tuple[Epoch, ...]:
    found = (epoch_of(row) for row in rows if row.get("kind") == "why")
    # An epoch that was done again, as its end was lost, counts once: as it was at last.
    return tuple({each.epoch: each for each in found if each is not None}.values())


def _present(nows: Sequence[Now], now_s: float) -> Present | None:
    ranks = ranks_of(nows)
    if not ranks:
        return None
    age_s = max(0.0, now_s - max(now.wall_s for now in nows))
    world_size = nows[0].stands[0].world_size if nows[0].stands else len(ranks)
    if age_s > _FRESH_S + _PER_RANK_S * world_size:
        return None
    stands = sorted((s for now in nows for s in now.stands), key=lambda stand: stand.rank)
    still = [stand for stand in stands if stand.age_s >= STILL_S]
    return Present(
        age_s=age_s,
        ranks=tuple(ranks),
        stands=tuple(stands),
        pace=pace_of(ranks),
        # Where one works on, others only wait for it.
        hang=hang_of(still) if len(still) == len(stands) else None,
    )


def _stood(paths: RunPaths) -> Stood | None:
    """The newest round of which a wait ran out."""
    by_token: dict[str, list[Path]] = {}
    for file in paths.all_stands():
        by_token.setdefault(file.name.partition("-")[0], []).append(file)
    found = []
    for own in by_token.values():
        with suppress(OSError):
            found.append((max(file.stat().st_mtime for file in own), own))
    for wall_s, own in sorted(found, reverse=True):
        stands = read_stands(own)
        hang = hang_of(stands) if is_hang(stands) else None
        if hang is not None:
            return Stood(
                wall_s=wall_s,
                hang=hang,
                stands=tuple(stands),
                files=tuple(own),
                missed=tuple(missed(records_of(_records(paths, stands)))),
            )
    return None


def _records(paths: RunPaths, stands: Sequence[Stand]) -> list[tuple[int, Path]]:
    """What torch's flight recorder has written, and of which rank."""
    found = []
    for stand in stands:
        begin = paths.flight_record(stand.node_name, stand.pid)
        with suppress(OSError):
            found += [(stand.rank, file) for file in begin.parent.glob(f"{begin.name}*")]
    return found
