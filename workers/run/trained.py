"""The state of a trainer as what is saved and resumed sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.optimizer import check_same_optimizer
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.run.keeper import Share
from bundlerun.workers.state.named import stage_names
from bundlerun.workers.trainer import Trainer

log = logging.getLogger(__name__)


class Trained:
    """A trainer whose state is kept; see `Kept`.

    Args:
        session: this rank's place.
        trainer: has the state of its stage.
    """

    def __init__(self, session: Session, trainer: Trainer) -> None:
        self._session = session
        self._trainer = trainer

    def names(self, available: Iterable[str]) -> list[str]:
        """Those of this rank's stage."""
        all_names = list(available)
        average = self._trainer.average.names(all_names)
        return [*stage_names(self._trainer.stage, all_names), *average]

    def load(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Into stage, optimizer and loss scale."""
        check_same_optimizer(progress.optimizer, self._trainer.optimizer)
        self._trainer.load(tensors)
        self._trainer.loss_scale.load(progress.loss_scale, progress.loss_scale_steps)

    def load_own(self, find: Callable[[str], Mapping[str, Tensor]]) -> None:
        """Loads the rounding error of this rank's exchange; another layout has no use for it."""
        sync = self._trainer.sync
        if not sync.rounds:
            return
        # Feedback belongs to one rank's buckets; it means something only where those are the same.
        kept = find(sync.feedback_situation)
        sync.load_feedback(kept)
        if not kept and self._session.is_writer:
            log.info(
                "stage %d: nodes or buckets are not those of before; what rounding had left to be "
                "made up for is dropped", self._session.place.stage,
            )  # fmt: skip

    def share(self) -> Share | None:
        """The whole stage, by one of its replicas."""
        if not self._session.is_writer:
            return None
        return Share(f"stage-{self._session.place.stage}", self._trainer.state())

    def check_finite(self) -> None:
        """Raises CheckpointError where a parameter is not."""
        self._trainer.check_finite()

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all active ranks; collective."""
        return self._trainer.total(values)
