"""The small sums of a step, which ride along with the gradients: who puts in what, and where.

    loss | told to stop | ready | weight, ranks that said one | found | headway | comparison |
    metrics | tally

The second and third count bundles: of which a rank was told to stop, all of whose ranks are ready
to go on in the next round. `found` counts tensors that a forward was seen to write, `headway` the
buckets that had come when the last backward of the step before was over; the comparison is that of
the replicas, the tally is what all ranks have spent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from bundlerun.workers.optim.update import StepLoss
from bundlerun.workers.report.metric_sums import MetricSums
from bundlerun.workers.shares.tally import Tally
from bundlerun.workers.step import StepShare
from bundlerun.workers.verify.replica_check import NUM_SUMS

_STOP, _READY = 1, 2
_WEIGHT = _READY + 1
_FOUND = _WEIGHT + 2
_HEADWAY = _FOUND + 1
_CHECK = _HEADWAY + 1
_METRICS = _CHECK + NUM_SUMS


@dataclass(frozen=True, slots=True)
class Told:
    """What the sums over all bundles say.

    Args:
        numbers: of them, in their order.
        num_metrics: how many are metrics.
    """

    numbers: Sequence[float]
    num_metrics: int

    @property
    def loss(self) -> StepLoss:
        """Of the step."""
        return StepLoss(self.numbers[0], self.numbers[_WEIGHT], self.numbers[_WEIGHT + 1])

    @property
    def is_stop(self) -> bool:
        """Whether a bundle wants to stop."""
        return self.numbers[_STOP] > 0

    @property
    def num_ready(self) -> int:
        """Bundles all of whose ranks are ready to go on in the next round."""
        return round(self.numbers[_READY])

    @property
    def num_found(self) -> float:
        """Tensors that a forward was seen to write, over all replicas."""
        return self.numbers[_FOUND]

    @property
    def headway(self) -> float:
        """Buckets that had come early in the step before, over all replicas of the stage."""
        return self.numbers[_HEADWAY]

    @property
    def comparison(self) -> Sequence[float]:
        """For `Verifier.check`."""
        return self.numbers[_CHECK:_METRICS]

    @property
    def metrics(self) -> Sequence[float]:
        """For `MetricSums.totals`."""
        return self.numbers[_METRICS : _METRICS + self.num_metrics]

    @property
    def tally(self) -> Sequence[float]:
        """For `Tally.read`."""
        return self.numbers[_METRICS + self.num_metrics :]


class SmallSums:
    """The part of them that one rank has.

    Args:
        numbers: float64, (size(metrics),), zeros as a step begins.
        metrics: what of them is the recipe's.
        tally: what of them is about the ranks; None: nothing.
    """

    def __init__(self, numbers: Tensor, metrics: MetricSums, tally: Tally | None = None) -> None:
        self.numbers = numbers
        self._tally = tally
        end = _METRICS + metrics.num_slots
        self._tally_slots = numbers[end:]
        self.comparison = numbers[_CHECK:_METRICS]
        self._metrics = metrics
        self._stop, self._ready = numbers[_STOP], numbers[_READY]
        self._found = numbers[_FOUND]
        self._headway = numbers[_HEADWAY]
        self._weight = numbers[_WEIGHT : _WEIGHT + 2]
        self._loss_slot, self._metric_slots = numbers[0], metrics.slots(numbers[_METRICS:end])

    @staticmethod
    def size(metrics: MetricSums, tally: Tally | None = None) -> int:
        """How many there are."""
        return _METRICS + metrics.num_slots + (0 if tally is None else tally.num_slots)

    def told(self, numbers: Sequence[float]) -> Told:
        """What the sums over all bundles say; they are as many as `numbers` here."""
        return Told(numbers, self._metrics.num_slots)

    def share(self) -> StepShare:
        """A share whose loss and metrics are added up in here; one for each step."""
        return StepShare(loss_slot=self._loss_slot, metric_slots=self._metric_slots)

    def complete(self, share: StepShare, num_found: int) -> None:
        """Puts in what else there is to say of a step, once its forwards are done."""
        if num_found:  # else zero, as the step begins with
            self._found.fill_(float(num_found))
        self._metrics.check(share)
        if share.weight is not None:
            self._weight[0] = share.weight
            self._weight[1] = 1.0

    def tell_headway(self, num_buckets: int) -> None:
        """Says how many buckets had come when the last backward of the step before was over."""
        self._headway.fill_(float(num_buckets))

    def complete_tally(self) -> None:
        """Puts in what the ranks of this bundle have spent, once its word is there."""
        if self._tally is not None:
            self._tally.fill(self._tally_slots)

    def ask_to_stop(self) -> None:
        """Says that this rank's bundle wants to."""
        self._stop.fill_(1.0)

    def say_ready(self) -> None:
        """Says that all ranks of this rank's bundle are ready to go on in the next round."""
        self._ready.fill_(1.0)
