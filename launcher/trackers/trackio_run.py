"""Trackio: rows of its database, each with an identity: telling one twice changes nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime

from trackio.sqlite_storage import SQLiteStorage

from bundlerun.launcher.trackers.interface import Ending, Row, TrackerRun

PROJECT = "bundlerun"


class TrackioRun:
    """A run in Trackio's database on this machine; TRACKIO_DIR says where that is.

    Not through `trackio.init`, whose threads write later and give rows identities of their own.

    Args:
        run: which one.
    """

    keeps_told = True

    def __init__(self, run: TrackerRun) -> None:
        self._run = run
        self._project = os.environ.get("TRACKIO_PROJECT", PROJECT)

    def lacking(self, rows: Sequence[Row]) -> Sequence[Row]:
        """See `Tracker`."""
        return rows  # the database leaves out what it has

    def tell(self, rows: Sequence[Row]) -> None:
        """See `Tracker`."""
        SQLiteStorage.bulk_log(
            project=self._project,
            run=self._run.name,
            run_id=self._run.key,
            metrics_list=[dict(row.scalars) for row in rows],
            steps=[row.step for row in rows],
            timestamps=[datetime.fromtimestamp(row.time, UTC).isoformat() for row in rows],
            log_ids=[f"{self._run.key}-{row.number}" for row in rows],
            config=dict(self._run.config) if rows[0].number == 0 else None,
        )

    def close(self, ending: Ending) -> None:
        """See `Tracker`."""
        if ending == "replaced":
            SQLiteStorage.delete_run(self._project, self._run.name, self._run.key)
