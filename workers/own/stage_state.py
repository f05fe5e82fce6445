"""A stage and the user's own optimizer as what is saved and resumed sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor
from torch.optim import Optimizer

from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.splits.shared import kept_elsewhere
from bundlerun.workers.optimizer import check_same_optimizer
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.run.keeper import Share
from bundlerun.workers.snapshot.own_plan import Own
from bundlerun.workers.state.named import load_state_tensors, stage_names, state_tensors
from bundlerun.workers.trainer import Trainer


class StageState:
    """See `run.keeper.Kept`.

    Args:
        session: this rank's place.
        trainer: has the stage.
        optimizer: the user's; None: only the stage is kept.
    """

    def __init__(self, session: Session, trainer: Trainer, optimizer: Optimizer | None) -> None:
        self._session = session
        self._trainer = trainer
        self._optimizer = optimizer

    def names(self, available: Iterable[str]) -> list[str]:
        """Those of this rank's stage."""
        return stage_names(self._trainer.stage, available)

    def load(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Into the stage and the optimizer."""
        if self._optimizer is not None:
            check_same_optimizer(progress.optimizer, self._optimizer)
        load_state_tensors(self._trainer.stage, self._optimizer, tensors)

    @property
    def own(self) -> Own:
        """Of no use to another rank."""
        return Own()

    def load_own(
        self,
        find: Callable[[str], Mapping[str, Tensor]],
        others: Iterable[Mapping[str, Tensor]],
    ) -> None:
        """A rank has nothing for itself here."""

    def collect(self) -> None:
        """All is here."""

    def share(self) -> Share | None:
        """The whole stage, by one of its replicas."""
        if not self._session.is_writer:
            return None
        stage, number = self._trainer.stage, self._session.place.stage
        without = kept_elsewhere(stage, number)
        return Share(f"stage-{number}", state_tensors(stage, self._optimizer, without=without))

    def check_finite(self) -> None:
        """What the user trains is the user's to judge."""

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all active ranks; collective."""
        return self._trainer.total(values)
