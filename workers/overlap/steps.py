"""The steps of a trainer that may end before all their sums are there, see `Behind`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.optim.average import Average
from bundlerun.workers.optim.parts import why_not_in_parts
from bundlerun.workers.optim.update import StepLoss, Update
from bundlerun.workers.overlap.behind import Behind
from bundlerun.workers.overlap.reasons import why_not_behind
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.step import StepWork
from bundlerun.workers.sync.rank_sync import RankSync

log = logging.getLogger(__name__)


class StepsBehind(Behind):
    """Leaves steps behind where that changes no number.

    Args:
        config: of the run.
        session: this rank's place.
        sync: sums.
        optimizer: of the stage.
        update: what a step does by it.
        average: of its weights.
        meters: gets the time of each phase.
    """

    def __init__(
        self,
        config: TrainConfig,
        session: Session,
        sync: RankSync,
        optimizer: Optimizer,
        update: Update,
        average: Average,
        meters: Meters,
    ) -> None:
        super().__init__(sync, config.chunks)
        self._sync = sync
        self._optimizer = optimizer
        self._update = update
        self._average = average
        self._meters = meters
        self.is_on = config.overlap_forward
        """Whether any step is left behind; on all replicas of a stage alike."""
        if self.is_on:
            why_not = why_not_behind(
                config, optimizer, session.device, needs_norms=update.wants_norms
            )
            self.is_on = not why_not
            if why_not and session.is_reporter:
                log.info("--overlap-forward hides nothing behind the next forward: %s", why_not)

    def begin_step(self) -> bool:
        """A step begins; whether the one before is left behind still."""
        if self._meters.recording is not None:
            # Times of another step are no part of this one's.
            self.settle()
        return self.is_open

    def may_leave(self) -> bool:
        """Whether a step that is over but for its sums may be left so, as far as is known here."""
        return (
            self.is_on
            and self._sync.has_replicas
            and self._meters.recording is None
            # A hook may have come since.
            and not why_not_in_parts(self._optimizer)
        )

    def leave_step(
        self,
        loss: StepLoss,
        work: StepWork,
        steps_per_epoch: int,
        to_come: Collection[nn.Parameter],
        written: Callable[[Iterable[nn.Parameter]], None],
    ) -> bool:
        """Leaves a step behind whose small sums are there; whether it counts.

        Collective: the bundle.

        Args:
            loss: of the step.
            work: what was done in it.
            steps_per_epoch: for the learning rate.
            to_come: parameters whose sums are not there.
            written: told of those that the optimizer has written.
        """
        change = self._update.in_parts(
            loss, num_samples=work.num_samples, step=work.step, steps_per_epoch=steps_per_epoch
        )
        if change is None:
            self._sync.take()
            return False

        def changed(parameters: Sequence[nn.Parameter]) -> None:
            with self._meters.phase("optimizer"):
                change(parameters)
            written(parameters)

        with torch.no_grad():
            changed(self._sync.shared_parameters)
        self.leave(to_come, changed)
        self.when_settled(self._finish)
        return True

    @torch.no_grad()
    def _finish(self) -> None:
        """All parameters have been changed by the step that was left behind."""
        self._average.follow()
        # What rounding kept back was of gradients at the scale of that step.
        if self._update.is_weighted:
            self._sync.drop_feedback()
