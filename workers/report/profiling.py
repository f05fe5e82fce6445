"""torch's profiler over some steps: a trace per rank, and one timeline of all."""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, supported_activities

from bundlerun.launcher.options.step_range import StepRange
from bundlerun.launcher.run_folder.files import name_beside
from bundlerun.launcher.run_folder.measured import NUM_RANKS, MeasuredRank, text_of_rank
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.rank.recording import Recording
from bundlerun.workers.report.measured_steps import measured_rank

_LAST_WAIT_S = 120.0
_HEAD_BYTES = 64
_QUIET = "5"
log = logging.getLogger(__name__)


class Profiling:
    """Profiles some steps of one rank. A profile that fails is told, and training goes on.

    Args:
        paths: of the run.
        session: this rank's place.
        meters: tell what it does, for lines of their own in the timeline.
        steps: which; None: none.
        is_teller: it makes the timeline, and says where it is.
    """

    def __init__(
        self,
        paths: RunPaths,
        session: Session,
        meters: Meters,
        steps: StepRange | None,
        *,
        is_teller: bool,
    ) -> None:
        self._paths = paths
        self._session = session
        self._meters = meters
        self._steps = steps if session.place.rank < NUM_RANKS else None
        self._is_teller = is_teller
        self._num_done = 0
        self._folder = ""
        self._profiler: profile | None = None
        self._recordings: list[Recording] = []
        self._is_own = False
        self._thread: threading.Thread | None = None

    def begin(self, step: int) -> None:
        """A step begins; what measures it for others has begun."""
        if self._steps is None:
            return
        if self._steps.begins_at(step, self._num_done):
            last = step + self._steps.count
            self._folder = f"steps-{step + 1:09d}-{last:09d}"
            self._start()
        if self._profiler is not None:
            self._is_own = self._meters.recording is None
            if self._meters.recording is None:
                self._meters.recording = Recording(step, self._session.device)
            self._recordings.append(self._meters.recording)

    def end(self) -> None:
        """The step is over, and what measures it for others not yet."""
        if self._steps is None:
            return
        self._num_done += 1
        if self._profiler is None:
            return
        self._recordings[-1].close()
        if self._is_own:
            self._meters.recording = None
        if len(self._recordings) == self._steps.count:
            self._finish()

    def _start(self) -> None:
        # What it says of its own doings belongs on no console; read when it is first used.
        os.environ.setdefault("KINETO_LOG_LEVEL", _QUIET)
        made: Any = torch._C._profiler
        config = made._ExperimentalConfig(profile_all_threads=True)
        profiler = profile(activities=supported_activities(), experimental_config=config)
        try:
            profiler.start()
        except RuntimeError as exc:
            log.warning("no profile: %s", str(exc).splitlines()[0])
            self._steps = None
            return
        self._profiler = profiler

    def _finish(self) -> None:
        """Stops it; a thread writes, as others wait for this rank's next step."""
        profiler, self._profiler = self._profiler, None
        assert profiler is not None
        profiler.stop()
        self._thread = threading.Thread(
            target=self._write, args=(profiler,), name="profile", daemon=True
        )
        self._steps = None
        self._thread.start()

    def _write(self, profiler: profile) -> None:
        place = self._session.place
        path = self._paths.rank_trace(self._folder, place.bundle, place.stage, place.replica)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._export(profiler, path)
            if self._is_teller:
                self._merge()
        except (OSError, RuntimeError, ValueError) as exc:
            log.warning("the profile of rank %d is not kept: %s", place.rank, exc)

    def _export(self, profiler: profile, path: Path) -> None:
        steps = [json.loads(text_of_rank(self._measured(each))) for each in self._recordings]
        beside = name_beside(path).with_suffix(".json")
        try:
            profiler.export_chrome_trace(str(beside))
            # Ours comes first in the same object: viewers pass over names that they do not know.
            with beside.open("rb") as raw, gzip.open(path.with_suffix(".tmp"), "wb", 5) as file:
                head, begin, rest = raw.read(_HEAD_BYTES).partition(b"{")
                ours = b'"bundlerun": ' + json.dumps(steps).encode() + b","
                file.write(head + begin + ours + rest)
                shutil.copyfileobj(raw, file)
            path.with_suffix(".tmp").replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def _measured(self, recording: Recording) -> MeasuredRank:
        return measured_rank(self._session, recording)

    def _merge(self) -> None:
        topology = self._session.topology
        count = min(NUM_RANKS, sum(not place.is_spare for place in topology.places))
        command = [sys.executable, "-m", "bundlerun.launcher.report.merge_traces"]
        done = subprocess.run(
            [*command, str(self._paths.root.absolute()), self._folder, str(count)],
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode == 0:
            log.info(
                "profile      %s, for https://ui.perfetto.dev; a file per rank beside it",
                self._paths.timeline(self._folder),
            )
        else:
            log.warning("no timeline of the profile in %s", self._paths.profiles)

    def close(self) -> None:
        """Lets it be written, with the timeline; the run is over, not in trouble."""
        if self._profiler is not None:  # fewer steps than were asked for
            self._finish()
        if self._thread is not None:
            self._thread.join(_LAST_WAIT_S)
