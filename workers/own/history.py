"""The history of a user's loop: which steps are finished, for `bundlerun status` and whoever reads.

A step's line comes into the history once all ranks have the step, as it cannot be done again then.
"""

from __future__ import annotations

import logging
from typing import Self

from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.report.metrics import MetricsWriter
from bundlerun.workers.run.keeper import Resumed

log = logging.getLogger(__name__)


class LoopHistory:
    """Writes it; one rank has it.

    Args:
        paths: of the run.
    """

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._writer = MetricsWriter(paths)
        self._has_lost_folder = False

    def begins(self, topology: Topology, resumed: Resumed | None) -> None:
        """The loop begins, or goes on; lines of steps that are done again go."""
        step = resumed.progress.step if resumed else 0
        self._writer.write("start", ranks=topology.world_size, nodes=topology.num_nodes)
        num_out = self._writer.forget(step, with_ends=True)
        if resumed is not None or num_out:
            source = resumed.source if resumed else "nothing"
            self._writer.write("restart", step=step, epoch=0, source=source)

    def finished(self, step: int, values: dict[str, float]) -> None:
        """A step is finished here, and the one before it on all ranks.

        Args:
            step: its number.
            values: what the loop says of it.
        """
        self._writer.release()
        self._writer.hold("step", step=step, epoch=0, **values)

    def looks_lost(self) -> bool:
        """Whether the run folder was deleted or renamed under the loop; if so, makes it again."""
        if not self._writer.is_gone:
            return self._has_lost_folder
        self._has_lost_folder = True
        log.error(
            "%s was deleted or renamed while the loop goes on: it stops, with its history and its "
            "state in a new folder of that name", self._paths.root,
        )  # fmt: skip
        try:
            self._writer.make_again()
        except OSError as exc:
            log.error("cannot make %s again: %s", self._paths.root, exc.strerror)
        return True

    def ends(self, step: int, *, is_stopped: bool) -> None:
        """The loop is over, or stops; all ranks have its last step."""
        self._writer.release()
        self._writer.write("stop" if is_stopped else "end", step=step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
