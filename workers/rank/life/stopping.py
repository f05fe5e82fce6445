"""How all ranks come to stop after the same step, when somebody has asked for it.

    step s      begins       [1] each rank tells its bundle whether it has heard of a request
                forwards     continue meanwhile
                sync         [2] its small sums have a 1 from each bundle in which somebody has
                ends         all replicas of a stage have the same sum, and all stages of a bundle
                             have put in the same: all ranks know the same, this was the last step

What else the ranks of a bundle are to know of each other in a step travels in the same word.

So nobody decides by a clock, and no rank asks any other outside its bundle. Between steps, in a
validation, all ranks ask each other directly: that is seldom.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch.distributed import Work

from bundlerun.launcher.run_folder.files import is_absent
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.run_folder.stop_request import forget_request
from bundlerun.workers.rank.groups import Groups

LOOK_S = 0.5
"""How often the request file is looked for, seconds."""


class StopRequest:
    """Whether this rank has heard that the run is to stop.

    The reporter looks for the request file, once for all. Whenever that was written, it counts: a
    start, a node that joins and a resume do not take it for an old one. It is removed at the end
    of the run (`forget`), and whoever begins a new run removes what a dead one has left.

    Args:
        paths: of the run.
        is_told: whether a signal has told this node to.
        is_reporter: whether this rank looks for the file.
        is_lost: whether the run folder is gone, another reason to stop.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        paths: RunPaths,
        is_told: Callable[[], bool],
        *,
        is_reporter: bool,
        is_lost: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = paths
        self._is_told = is_told
        self._is_reporter = is_reporter
        self._is_lost = is_lost
        self._clock = clock
        self._looked_at = -LOOK_S
        self._is_there = False

    @property
    def is_heard(self) -> bool:
        """Whether this rank wants to stop."""
        return self._is_told() or (self._is_reporter and self._look())

    def forget(self) -> None:
        """Removes the request at the end of the run; only the reporter does."""
        if self._is_reporter:
            forget_request(self._paths)

    def _look(self) -> bool:
        # A shared folder is slow to ask, so not in every short step.
        now = self._clock()
        if not self._is_there and now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._is_there = not is_absent(self._paths.drain) or self._is_lost()
        return self._is_there


class Rider(Protocol):
    """Numbers that travel in the word of a bundle."""

    @property
    def size(self) -> int:
        """How many."""

    def own(self) -> Sequence[float]:
        """Of this rank, as a step begins."""

    def hear(self, numbers: Sequence[float]) -> None:
        """The sums over the bundle, once its forwards are done."""


class StopWord:
    """Tells the ranks of a bundle what each has heard, and whether each is ready to move.

    Collective: every rank of the bundle, in all calls; `begin` and `finish` alternate.

    Args:
        groups: of this rank.
        num_more: numbers that travel with it.
    """

    def __init__(self, groups: Groups, num_more: int = 0) -> None:
        self._group = groups.stop
        self._word = torch.zeros(2 + num_more, dtype=torch.float64)
        self._num_ready = 0.0
        self._work: Work | None = None

    def begin(self, heard: bool, more: Sequence[float] = (), *, is_ready: bool = False) -> None:
        """Sends what this rank has heard, while the forwards of the step run.

        Args:
            heard: of a request to stop.
            more: what travels with it.
            is_ready: to go on in the next round.
        """
        # [1] Its own group: the bundle's may be in use meanwhile.
        own = [float(heard), float(is_ready), *more]
        self._word.copy_(torch.tensor(own, dtype=torch.float64))
        if self._group is not None:
            self._work = self._group.all_reduce(self._word)

    def finish(self) -> tuple[bool, Sequence[float]]:
        """Whether any rank of the bundle has heard of a request; the sums of the other numbers."""
        # None in a bundle of one rank: its own word is the sum.
        if self._work is not None:
            assert self._group is not None
            with self._group.talking():
                self._work.wait()
            self._work = None
        heard, self._num_ready, *more = self._word.tolist()
        return bool(heard), more

    @property
    def are_ready(self) -> bool:
        """Whether all ranks of the bundle are ready to go on in the next round; after `finish`."""
        return self._num_ready == (1 if self._group is None else self._group.size)


class Stopping:
    """How a rank learns that the run is to stop, so that all ranks do after the same step.

    Args:
        request: what this rank has heard.
        word: what its bundle has.
        rider: what travels with that; None: nothing.
        is_ready: whether this rank is ready to go on in the next round.
        stays: see the attribute.
    """

    def __init__(
        self,
        request: StopRequest,
        word: StopWord,
        rider: Rider | None = None,
        *,
        is_ready: Callable[[], bool] = lambda: False,
        stays: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._request = request
        self._word = word
        self._rider = rider
        self._is_ready = is_ready
        self.stays = stays
        """Says why this rank does not go on in the next round, after all."""

    @property
    def is_heard(self) -> bool:
        """Whether this rank wants to stop."""
        return self._request.is_heard

    def begin_step(self) -> None:
        """Tells the bundle whether this rank wants to stop, while the forwards of a step run."""
        own = () if self._rider is None else self._rider.own()
        self._word.begin(self._request.is_heard, own, is_ready=self._is_ready())

    def is_wanted(self) -> bool:
        """Whether a rank of the bundle wanted to stop as the step began; asked once per step."""
        # [2] The answer goes into the small sums.
        heard, more = self._word.finish()
        if self._rider is not None:
            self._rider.hear(more)
        return heard

    def are_ready(self) -> bool:
        """Whether all ranks of the bundle were ready to move as the step began; after that."""
        return self._word.are_ready

    def forget(self) -> None:
        """Removes the request at the end of the run; only the reporter does."""
        self._request.forget()
