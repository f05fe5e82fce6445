"""How all ranks come to stop after the same step, when somebody has asked for it.

    step s      a rank of stage i is told: its 1 is in the small sums of the sync
                all replicas of stage i know, as they have the same sum
    step s+1    each bundle takes the greatest of what its stages know, behind the step
                all stages of all bundles know the same: this was the last step

So nobody decides by a clock, and no rank asks any other outside its bundle.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import torch
from torch.distributed import Work

from launcher.paths import RunPaths
from workers.comm import Group
from workers.session import Session

LOOK_S = 0.5
"""How often the request file is looked for, seconds."""


class StopRequest:
    """Whether this rank has heard that the run is to stop.

    The reporter looks for the request file, once for all.

    Args:
        is_told: whether this node is told to, by a signal.
        is_first_start: a request that is there already is an old one.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        paths: RunPaths,
        is_told: Callable[[], bool],
        *,
        is_reporter: bool,
        is_first_start: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = paths.drain
        self._is_told = is_told
        self._is_reporter = is_reporter
        self._clock = clock
        self._looked_at = -LOOK_S
        self._is_there = False
        if is_reporter and is_first_start:
            self.forget()  # it was meant for a run that is no more

    @property
    def is_heard(self) -> bool:
        """Whether this rank wants to stop."""
        return self._is_told() or (self._is_reporter and self._look())

    def forget(self) -> None:
        """Removes the request."""
        with suppress(OSError):
            self._file.unlink(missing_ok=True)

    def _look(self) -> bool:
        now = self._clock()
        if not self._is_there and now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._is_there = self._file.exists()
        return self._is_there


class StopWord:
    """Tells the stages of a bundle what each has heard from its replicas.

    Collective: the bundle, in all calls.
    """

    def __init__(self, session: Session) -> None:
        ranks = session.topology.bundles[session.place.bundle]
        self._group: Group | None = None
        if len(ranks) > 1:
            name = f"stop/bundle{session.place.bundle}"
            self._group = Group(session.arrival.network, name, ranks, "gloo")
        self._word = torch.zeros(1)
        self._work: Work | None = None

    def begin(self, heard: bool) -> None:
        """Sends what this stage has heard by the end of the step before; behind this step."""
        self._word.fill_(float(heard))
        if self._group is not None:
            self._work = self._group.all_reduce(self._word)

    def finish(self) -> bool:
        """Whether the step that is finished now was the last."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return bool(self._word.item())
