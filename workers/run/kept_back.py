"""What a rank's exchange keeps back, by the names of the model, so that no restart loses it.

    snapshot, same layout        each rank goes on with its own, leg by leg: bit-equal
    snapshot, another layout     each part is added to the next gradients by the first of the ranks
                                 that hold the parameter, of the node that has the part if it can be
    checkpoint                   the sum over all ranks; the first holder of all adds it

Names in a snapshot: `SUM/LEG/BEGIN/NAME`, the part of a parameter of one sum (the stage's own is 0,
shared ones follow) in one leg. In a checkpoint: `remainder.NAME`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, cast

from torch import Tensor, nn

from bundlerun.launcher.layout.holders import Holders
from bundlerun.launcher.run_folder.checkpoints import MODEL, REMAINDER
from bundlerun.splits.shared import model_parameters, shared_parameters
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.rank.meters import Phase
from bundlerun.workers.snapshot.own_plan import Own
from bundlerun.workers.sync.rank_sync import RankSync
from bundlerun.workers.sync.short.owed import Owed, flat_of

log = logging.getLogger(__name__)


class _Name(NamedTuple):
    """Of a part in a snapshot."""

    sum: int
    leg: Phase
    begin: int
    parameter: str

    @classmethod
    def of(cls, text: str) -> _Name:
        number, leg, begin, parameter = text.split("/", 3)
        return cls(int(number), cast(Phase, leg), int(begin), parameter)

    def __str__(self) -> str:
        return f"{self.sum}/{self.leg}/{self.begin}/{self.parameter}"


class NamedRemainders:
    """What the sums of one rank keep back.

    Args:
        session: this rank's place.
        stage: its part of the model.
        sync: its sums.
        is_rounded: whether any rank of the run may round what it sends.
    """

    def __init__(
        self, session: Session, stage: nn.Module, sync: RankSync, *, is_rounded: bool
    ) -> None:
        self._session = session
        self._sync = sync
        self._is_rounded = is_rounded
        self._names = {p: name for name, p in model_parameters(stage)}
        # Under all names: another cut may know what is tied by another of them.
        self._parameters = dict(stage.named_parameters(remove_duplicate=False))
        for shared, parameter in shared_parameters(stage).items():
            self._parameters |= dict.fromkeys(shared.names, parameter)
        place, topology = session.place, session.topology
        holders = [
            Holders.of(topology, stages)
            for stages in ([place.stage], *(each.stages for each in sync.shared))
        ]
        self._is_first_here = [each.by_node[place.node][0] == place.rank for each in holders]
        self._is_first = [each.ranks[0] == place.rank for each in holders]
        self._sums: dict[str, Tensor] = {}

    def feedback(self) -> dict[str, Tensor]:
        """For a snapshot of this rank; not copied."""
        return {
            str(_Name(number, leg, part.begin, self._names[part.parameter])): part.numbers
            for number, kept in enumerate(self._sync.kept_back)
            for leg, parts in kept.parts().items()
            for part in parts
        }

    @property
    def situation(self) -> str:
        """The rank and layout in which `feedback` is gone on with."""
        return self._sync.feedback_situation

    @property
    def own(self) -> Own:
        """That as a restore sees it."""
        if not self._is_rounded:
            return Own()
        return Own(
            situation=self.situation, belongs_to=lambda name: MODEL + _Name.of(name).parameter
        )

    def load_feedback(
        self,
        find: Callable[[str], Mapping[str, Tensor]],
        others: Iterable[Mapping[str, Tensor]],
    ) -> None:
        """Takes up what is in the memory of this node.

        Args:
            find: gives what a rank has kept in a situation.
            others: what this node takes up of ranks that are in no such situation any more.
        """
        if not self._is_rounded:
            return
        for text, tensor in find(self.situation).items():
            name = _Name.of(text)
            self._sync.kept_back[name.sum].load(name.leg, self._part(name, tensor))
        has_any = False
        for text, tensor in ((t, tensor) for each in others for t, tensor in each.items()):
            name, has_any = _Name.of(text), True
            for number in self._sums_with(name.parameter):
                if self._is_first_here[number]:
                    self._sync.kept_back[number].debts.add([self._part(name, tensor)])
        if has_any and self._session.is_writer:
            log.info(
                "stage %d: nodes or buckets are not those of before; what rounding had kept back "
                "is added to the next gradients", self._session.place.stage,
            )  # fmt: skip

    def _part(self, name: _Name, tensor: Tensor) -> Owed:
        return Owed(self._parameters[name.parameter], name.begin, tensor)

    def _sums_with(self, name: str) -> Iterator[int]:
        """The sums of this rank that have a parameter; one at most."""
        parameter = self._parameters.get(name)
        for number, kept in enumerate(self._sync.kept_back):
            if parameter is not None and kept.has(parameter):
                yield number

    # --- checkpoints

    def add_up(self) -> None:
        """Brings the sums over all ranks to whoever writes them, for `written`.

        Collective: every active rank.
        """
        self._sums = {}
        if not self._is_rounded:
            return
        for number, kept in enumerate(self._sync.kept_back):
            found = kept.sums()
            if self._is_first[number]:
                self._sums |= {REMAINDER + self._names[p]: t for p, t in found.items()}

    def written(self) -> dict[str, Tensor]:
        """For the part of a checkpoint that this rank writes; each call gives it once."""
        found, self._sums = self._sums, {}
        return found

    def names(self, available: Iterable[str]) -> list[str]:
        """Those of the names in a checkpoint that this rank takes up."""
        return [name for name in available if any(self._is_first[n] for n in self._sums_of(name))]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `names` has picked."""
        for name, tensor in tensors.items():
            for number in self._sums_of(name):
                parameter = self._parameters[name.removeprefix(REMAINDER)]
                part = Owed(parameter, 0, flat_of(tensor, parameter))
                self._sync.kept_back[number].debts.add([part])

    def _sums_of(self, name: str) -> Iterator[int]:
        if name.startswith(REMAINDER):
            yield from self._sums_with(name.removeprefix(REMAINDER))


def _state_name(own: str) -> str:
    """Of the parameter that a part is of."""
    return MODEL + _Name.of(own).parameter
