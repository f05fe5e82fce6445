"""How often a snapshot is taken: after each step, or as often as its cost allows.

    cost of one snapshot      what its thread takes from the ranks' cores, and waits for it; on GPUs
                              what it adds to a step, by leaving some out (`Trial`)
    steps between two         cost / (1 % of a step), rounded up

So a restart does again at most what took 100 times as long as one snapshot does, whatever the
length of a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

MOST_SHARE = 0.01
"""Of a step's time that snapshots may take."""
_BESIDES = 1.25
"""Slow-down by a copy, in addition to the time that it takes itself: it empties caches. Measured on
ResNet-18, 28 ms of 847 ms: 4.1 % of processor time, where the copy itself is 3.3 %."""
_FIRST_REVIEW = 4
_BLOCK_STEPS = 4
_TRIAL_STEPS = 4 * _BLOCK_STEPS
"""Steps before a review, in blocks with snapshots and without."""
_WARM_UP = 2
"""Snapshots at the start that do not count: the first of each slot takes its memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """How often a snapshot is taken from now on, and why.

    Args:
        every: steps between two.
        share: the part of a step that one takes.
    """

    every: int
    share: float


class Pace:
    """Counts steps and costs of one rank, and says which steps have a snapshot.

    Every rank has the same `every`, so all take theirs after the same steps.

    Args:
        every: steps between two snapshots; 0: adapts.
        compares: whether the cost is found by leaving some out, on all ranks alike. On a GPU it is
            not to be seen on any clock: copies share its memory, its links, and the interpreter.
    """

    def __init__(self, every: int = 0, *, compares: bool = False) -> None:
        self.every = every or 1
        self._adapts = every == 0
        self._compares = compares and self._adapts
        self._num_steps = 0
        self._num_taken = 0
        self._costs: list[float] = []
        self._step_times: list[float] = []
        self._trial = Trial()

    def is_due(self, step: int) -> bool:
        """Whether the state after `step` finished steps is to be kept."""
        if self._compares:
            wanted = wanted_in_trial(self._num_steps)
            if wanted is not None:
                return wanted
        return step % self.every == 0

    def taken(self, cost_s: float) -> None:
        """Counts one snapshot that cost `cost_s`."""
        self._num_taken += 1
        # The first ones would make the interval longer than it need be.
        if self._num_taken > _WARM_UP:
            self._costs.append(cost_s)

    def adds(self, seconds: float) -> None:
        """Counts what the newest snapshot took from the links between nodes."""
        if self._costs:
            self._costs[-1] += seconds

    def stepped(self, seconds: float) -> bool:
        """Counts one step; whether `review` is due now, on all ranks alike.

        Reviews come after 4, 16, 64, ... steps of a round, as the first ones may be slow.
        """
        self._step_times.append(seconds)
        self._trial.stepped(seconds, self._num_steps)
        is_due = self.is_review_next
        self._num_steps += 1
        return is_due

    @property
    def is_review_next(self) -> bool:
        """Whether `review` is due with the next step."""
        return self._adapts and _is_power_of_4(self._num_steps + 1)

    def measured(self) -> tuple[float, float]:
        """Seconds of a snapshot and of a step since the last review, medians; forgets both."""
        cost = median(self._costs) if self._costs else 0.0
        step = median(self._step_times) if self._step_times else 0.0
        if self._compares:
            cost, step = self._trial.measured()
        # Later reviews judge by later steps: the first ones may be slow.
        self._costs.clear()
        self._step_times.clear()
        self._trial = Trial()
        return cost, step

    def review(self, cost_s: float, step_s: float) -> Adapted | None:
        """Adapts to what all ranks measured, means; None where that changes nothing."""
        # Nothing was measured yet: the interval stays as it is. What was compared may be nothing.
        if not step_s or not (cost_s or self._compares):
            return None
        before, self.every = self.every, interval(cost_s, step_s)
        if self.every == before:
            return None
        return Adapted(every=self.every, share=max(0.0, share(cost_s, step_s)))


class Trial:
    """Compares steps that a copy runs in with steps that none does.

        review                                                           review
        steps      ...... | s s s s | - - - - | s s s s | - - - - |
        counted             . . +     + . . -   - . . +   + . . -

    A snapshot after one step is copied in the next. In some steps the processor is ahead of the
    GPU, so that it feels a copy a step late: the first step of each kind is not counted.
    """

    def __init__(self) -> None:
        self._times: dict[bool, list[float]] = {True: [], False: []}

    def stepped(self, seconds: float, number: int) -> None:
        """Counts the step with this number in its round, which began with 0."""
        kinds = {wanted_in_trial(number - back) for back in (1, 2) if number >= back}
        if len(kinds) == 1 and number > 1 and None not in kinds:
            self._times[kinds.pop() is True].append(seconds)

    def measured(self) -> tuple[float, float]:
        """Seconds that a snapshot adds to a step, which may be negative, and of a step without."""
        if not all(self._times.values()):
            return 0.0, 0.0
        step_s = median(self._times[False])
        # All that it slows down is in there.
        return (median(self._times[True]) - step_s) / _BESIDES, step_s


def wanted_in_trial(number: int) -> bool | None:
    """Whether there is a snapshot after a step, by its number in the round; None: no trial then."""
    end = _first_power_of_4(number + 1)
    place = number - (end - _TRIAL_STEPS)
    if end < _TRIAL_STEPS or place < 0:
        return None
    return place // _BLOCK_STEPS % 2 == 0


def interval(cost_s: float, step_s: float) -> int:
    """The fewest steps between two snapshots that keep their cost below its share."""
    return max(1, math.ceil(share(cost_s, step_s) / MOST_SHARE))


def share(cost_s: float, step_s: float) -> float:
    """The part of a step that a snapshot takes."""
    return _BESIDES * cost_s / step_s


def _is_power_of_4(number: int) -> bool:
    return number == _first_power_of_4(number)


def _first_power_of_4(number: int) -> int:
    """The review that comes after so many steps, or with them."""
    review = _FIRST_REVIEW
    while review < number:
        review *= 4
    return review
