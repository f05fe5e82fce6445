"""Measures a few steps action by action, and leaves them in the run folder; no step waits."""

from __future__ import annotations

import hashlib
import logging
import resource
import threading
import time

from bundlerun.launcher.process import boot_id
from bundlerun.launcher.run_folder.measured import (
    NUM_RANKS,
    MeasuredRank,
    prune_measured,
    write_measured,
)
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.rank.recording import Recording

EVERY = 1000
"""Steps between two measured ones inside a long epoch."""
EVERY_EPOCHS = 10
_FIRST_EPOCHS = (0, 1, 2, 5)
_THIRD = 2
"""The first steps of a start are slower than those that follow: the third one, from 0."""
_LAST_WAIT_S = 1.0

log = logging.getLogger(__name__)


def is_measured(num_epochs: int, num_done: int, num_in_pass: int) -> bool:
    """Pure: whether a step is measured, the same on all ranks.

    Of an epoch of few short steps one would be too many, so not every epoch has one.

    Args:
        num_epochs: that this start has done before.
        num_done: steps before it that this start has done of its epoch.
        num_in_pass: steps of the epoch that this start does.
    """
    if num_done % EVERY == EVERY - 1:
        return True
    has_one = num_epochs in _FIRST_EPOCHS or num_epochs % EVERY_EPOCHS == 0
    return has_one and num_done == min(_THIRD, num_in_pass - 1)


class MeasuredSteps:
    """Measures steps of one rank.

    Args:
        paths: of the run.
        session: this rank's place.
        meters: tell what it does.
    """

    def __init__(self, paths: RunPaths, session: Session, meters: Meters) -> None:
        self._paths = paths
        self._session = session
        self._meters = meters
        self._thread: threading.Thread | None = None
        self._is_on = session.place.rank < NUM_RANKS

    def begin(self, step: int, *, num_epochs: int, num_done: int, num_in_pass: int) -> None:
        """A step begins; see `is_measured`."""
        if not self._is_on or not is_measured(num_epochs, num_done, num_in_pass):
            return
        # A folder that does not answer costs measurements, and no memory.
        if self._thread is None or not self._thread.is_alive():
            self._meters.recording = Recording(step, self._session.device)

    def end(self) -> None:
        """The step is over; what was measured is written by a thread."""
        recording, self._meters.recording = self._meters.recording, None
        if recording is None:
            return
        recording.close()
        self._thread = threading.Thread(
            target=self._write, args=(recording,), name="measured-step", daemon=True
        )
        self._thread.start()

    def _write(self, recording: Recording) -> None:
        rank = measured_rank(self._session, recording)
        place = self._session.place
        try:
            write_measured(self._paths, rank)
            if place.rank == 0:
                prune_measured(self._paths)
        except OSError as exc:
            # Nobody needs it: a full disk is said by what does.
            log.debug("step %d is not kept as it was measured: %s", rank.step, exc.strerror)

    def close(self) -> None:
        """Lets the last one be written, for a moment."""
        if self._thread is not None:
            self._thread.join(_LAST_WAIT_S)


def measured_rank(session: Session, recording: Recording) -> MeasuredRank:
    """What a rank has recorded of a step; waits for a GPU: not for the rank's own thread."""
    place = session.place
    memory = door.memory(session.device)
    return MeasuredRank(
        step=recording.step,
        round=hashlib.sha256(session.token.encode()).hexdigest()[:12],
        node=session.arrival.node_name,
        boot=boot_id(),
        rank=place.rank,
        bundle=place.bundle,
        stage=place.stage,
        replica=place.replica,
        chunks=session.topology.chunks_per_stage,
        wall_s=time.time() - time.perf_counter(),
        host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        device_bytes=memory.peak if memory is not None else 0,
        spans=recording.spans(),
    )
