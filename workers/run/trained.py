"""The state of a trainer as what is saved and resumed sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from bundlerun.launcher.run_folder.checkpoints import REMAINDER, Progress
from bundlerun.workers.optimizer import check_same_optimizer
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.run.keeper import Share
from bundlerun.workers.run.kept_back import NamedRemainders
from bundlerun.workers.snapshot.own_plan import Own
from bundlerun.workers.state.named import stage_names
from bundlerun.workers.trainer import Trainer


class Trained:
    """A trainer whose state is kept; see `Kept`.

    Args:
        session: this rank's place.
        trainer: has the state of its stage.
        remainders: what its exchange keeps back.
    """

    def __init__(self, session: Session, trainer: Trainer, remainders: NamedRemainders) -> None:
        self._session = session
        self._trainer = trainer
        self._remainders = remainders

    def names(self, available: Iterable[str]) -> list[str]:
        """Those of this rank's stage."""
        all_names = list(available)
        average = self._trainer.average.names(all_names)
        kept_back = self._remainders.names(all_names)
        return [*stage_names(self._trainer.stage, all_names), *average, *kept_back]

    def load(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Into stage, optimizer and loss scale."""
        check_same_optimizer(progress.optimizer, self._trainer.optimizer)
        kept_back = {n: t for n, t in tensors.items() if n.startswith(REMAINDER)}
        self._remainders.load(kept_back)
        self._trainer.load({n: t for n, t in tensors.items() if n not in kept_back})
        self._trainer.loss_scale.load(progress.loss_scale, progress.loss_scale_steps)

    @property
    def own(self) -> Own:
        """What its exchange keeps back."""
        return self._remainders.own

    def load_own(
        self,
        find: Callable[[str], Mapping[str, Tensor]],
        others: Iterable[Mapping[str, Tensor]],
    ) -> None:
        """Takes up what the exchange has kept back."""
        self._remainders.load_feedback(find, others)

    def collect(self) -> None:
        """Brings what the exchange of all ranks has kept back to the writers."""
        self._trainer.settle()  # what is still under way leaves something behind, too
        self._remainders.add_up()

    def share(self) -> Share | None:
        """The whole stage, by one of its replicas."""
        if not self._session.is_writer:
            return None
        tensors = {**self._trainer.state(), **self._remainders.written()}
        return Share(f"stage-{self._session.place.stage}", tensors)

    def check_finite(self) -> None:
        """Raises CheckpointError where a parameter is not."""
        self._trainer.check_finite()

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all active ranks; collective."""
        return self._trainer.total(values)
