"""What a tracker is, for whoever adds one.

A package names its own with an entry point; `bundlerun run --tracker mine` then has it:

    [project.entry-points."bundlerun.launcher.trackers"]
    mine = "my_package.tracking:open_mine"      # (TrackerRun) -> Tracker
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

Ending = Literal["done", "open", "replaced"]
"""Why a tracker is closed: the run is done; it may go on; another run of it has its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the history, as numbers.

    Args:
        number: of the row in the tracker's run, from 0 without a gap.
        step: of the run; the rows of an epoch's end carry the number of finished steps.
        time: seconds since the epoch, when the line was written.
        scalars: by name, as "step/loss"; may be NaN or infinite.
    """

    number: int
    step: int
    time: float
    scalars: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerRun:
    """Which run of a tracker is to be opened, a new one or one that is there already.

    Args:
        key: unlike that of any other run of a tracker; the same whenever this run is opened.
        name: for people.
        group: what the runs have in common that replace one another.
        folder: for files of the tracker; exists.
        config: of the training.
        last_pid: the process that had it open before, 0 if there is none.
    """

    key: str
    name: str
    group: str
    folder: Path
    config: Mapping[str, object] = field(default_factory=dict)
    last_pid: int = 0


class Tracker(Protocol):
    """One open run of a tracker. Any method may raise; then the run is opened again later."""

    keeps_told: bool
    """What `tell` has returned from is there whatever process dies next."""

    def lacking(self, rows: Sequence[Row]) -> Sequence[Row]:
        """What the tracker does not have of rows that it may have: a death left that open.

        Rows that it has in part come back with the scalars that are missing.
        """

    def tell(self, rows: Sequence[Row]) -> None:
        """Adds rows, in order, that it does not have."""

    def close(self, ending: Ending) -> None:
        """Returns when everything told is kept."""


@runtime_checkable
class TakesBack(Tracker, Protocol):
    """A tracker that steps can be taken out of.

    Any other is told a step only when a snapshot has it, and a new run of it is told the whole
    history where steps are done again nevertheless.
    """

    def take_back(self, step: int) -> None:
        """Takes out, or hides, all rows of steps from `step` on: they are done again."""
