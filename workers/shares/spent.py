"""What a rank has spent on the steps of a round, as numbers that only grow."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bundlerun.launcher.why.sheet import TOTAL, Sheet

_COMPUTE = (TOTAL["forward"], TOTAL["backward"])


class Spent(NamedTuple):
    """Since the round began, but for what was sent.

    Args:
        compute_s: in forwards and backwards; on a GPU as far as it has told. wall_s: in steps.
        run_delay_s: in which the rank's own thread was ready and had no core.
        num_microbatches: of its bundle.
        asked_for: the last step of which the rank may have asked its loader for samples before
            others hear of this; 0 where it reads none.
        node, to `rtt_s`: what it has sent lately, see `Sending.lately`.
    """

    compute_s: float = 0.0
    wall_s: float = 0.0
    run_delay_s: float = 0.0
    num_microbatches: float = 0.0
    asked_for: float = 0.0
    node: float = -1.0
    sent_wall_s: float = 0.0
    num_bytes: float = 0.0
    wire_s: float = 0.0
    unsent: float = 0.0
    retransmitted: float = 0.0
    segments: float = 0.0
    least_rtt_s: float = 0.0
    rtt_s: float = 0.0

    def since(self, before: Spent) -> Spent:
        """What was added; the rest is as it is."""
        return self._replace(
            compute_s=self.compute_s - before.compute_s,
            wall_s=self.wall_s - before.wall_s,
            run_delay_s=self.run_delay_s - before.run_delay_s,
            num_microbatches=self.num_microbatches - before.num_microbatches,
        )


NUM_SPENT = len(Spent._fields)


class Spending:
    """Adds up what this rank spends, step by step: validations and saving are not in it.

    Args:
        sheet: has the seconds of its phases, which begin anew with each epoch.
        asked_for: see `Spent`.
        lately: what was sent to another node, see `Sending`.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        sheet: Sheet,
        asked_for: Callable[[], int],
        lately: Callable[[], Sequence[float]],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._sheet = sheet
        self._asked_for = asked_for
        self._lately = lately
        self._clock = clock
        self._compute_s = self._wall_s = 0.0
        self._num_microbatches = 0
        self._begun = 0.0, 0.0

    def begin_step(self) -> None:
        """A step begins."""
        self._begun = self._clock(), self._computed_s()

    def end_step(self, num_microbatches: int) -> None:
        """It is over; its bundle has done so many."""
        begun, computed_s = self._begun
        self._wall_s += self._clock() - begun
        self._compute_s += self._computed_s() - computed_s
        self._num_microbatches += num_microbatches

    def so_far(self) -> Sequence[float]:
        """As `Spent`."""
        return Spent(
            self._compute_s,
            self._wall_s,
            self._sheet.all_run_delay_s,
            float(self._num_microbatches),
            float(self._asked_for()),
            *self._lately(),
        )

    def _computed_s(self) -> float:
        return float(sum(self._sheet.words[index] for index in _COMPUTE))
