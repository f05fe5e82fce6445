"""Reads the status of a run from its folder, as often as asked; only what is new is read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bundlerun.launcher.agreement.claim import gone_holder
from bundlerun.launcher.report.members import NodeMembers, members_of
from bundlerun.launcher.run_folder import events, status
from bundlerun.launcher.run_folder.checkpoints import survey
from bundlerun.launcher.run_folder.events import of_events
from bundlerun.launcher.run_folder.growing import Growing
from bundlerun.launcher.run_folder.history import Row
from bundlerun.launcher.run_folder.outcome import read_outcome
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.run_folder.status import Status, status_of


class RunLook:
    """A run as its folder shows it.

    Args:
        paths: of the run.
        clock: seconds since the epoch.
    """

    def __init__(self, paths: RunPaths, clock: Callable[[], float]) -> None:
        self._paths = paths
        self._clock = clock
        self._metrics = Growing(paths.metrics, status.is_fit)
        self._nodes: dict[Path, Growing] = {}
        self.events: list[Row] = []
        """Of all nodes, as of the last `status`."""

    def status(self) -> Status:
        """How the run fares now.

        Raises:
            OSError: the folder cannot be read.
        """
        # Before the history: what is read of an end has all its lines by then.
        outcome = read_outcome(self._paths)
        gone = gone_holder(self._paths) if outcome is None else ""
        self._metrics.look()
        self._look_at_events()
        return status_of(
            self._metrics.rows,
            self.events,
            outcome,
            # Manifests and sizes only: a status reads no weights.
            checkpoints=[found.step for found in survey(self._paths).found],
            now=self._clock(),
            gone=gone,
        )

    def _look_at_events(self) -> None:
        for file in sorted(self._paths.events.glob("*.jsonl")):
            self._nodes.setdefault(file, Growing(file, events.is_fit))
        # All of them: `any` on a generator would stop at the first that has changed.
        if any([log.look() for log in self._nodes.values()]):
            self.events = of_events(row for log in self._nodes.values() for row in log.rows)

    def members(self) -> list[NodeMembers]:
        """Who takes part, as of the last `status`."""
        return members_of(self.events)

    @property
    def rows(self) -> list[Row]:
        """The history, as of the last `status`."""
        return self._metrics.rows

    @property
    def shape(self) -> str:
        """Of a bundle, as of the last `status`; empty where nothing says it."""
        return str(self._start.get("shape", ""))

    @property
    def chunks(self) -> int:
        """Chunks of the model per stage, likewise."""
        return int(self._start.get("chunks", 1))

    @property
    def _start(self) -> Row:
        rows = reversed(self._metrics.rows)
        return next((row for row in rows if row.get("kind") == "start"), {})
