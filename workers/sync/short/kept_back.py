"""What the legs of a rank keep back, from step to step and from round to round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from bundlerun.workers.rank.comm import Group
from bundlerun.workers.rank.meters import Phase
from bundlerun.workers.sync.bucket import Bucket, shaped
from bundlerun.workers.sync.legs import Shortening
from bundlerun.workers.sync.short.owed import Debts, Owed


class KeptBack:
    """The rounding errors of the sums of one rank.

    Read and change them between the end of a sync and the next step's first bucket.

    Args:
        parameters: whose gradients are summed.
        buckets: in which they are; without them where there is no other replica.
        roundings: of the legs that round, by leg.
        groups: in which a sum over all ranks can be taken, one after the other.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        buckets: Sequence[Bucket],
        roundings: Mapping[Phase, Shortening],
        groups: Sequence[Group],
    ) -> None:
        self._parameters = frozenset(parameters)
        self._buckets = buckets
        self._roundings = roundings
        self._groups = groups
        self._bucket_of = {p: bucket for bucket in buckets for p in bucket.parameters}
        self.debts = Debts()
        """What another rank, or another round, has kept back, and this one makes up for."""

    def has(self, parameter: Parameter) -> bool:
        """Whether it is one of those that are summed here."""
        return parameter in self._parameters

    def parts(self) -> dict[Phase, list[Owed]]:
        """What the next step makes up for, by leg; not copied."""
        return {
            phase: [part for bucket in self._buckets for part in rounding.kept(bucket)]
            for phase, rounding in self._roundings.items()
        }

    def load(self, phase: Phase, part: Owed) -> None:
        """Continues from what `parts` gave for the same layout, before the first step."""
        self._roundings[phase].take_up(self._bucket_of[part.parameter], part)

    def sums(self) -> dict[Parameter, Tensor]:
        """What all ranks keep back together, as gradients; without those where that is zero.

        Collective: all replicas of the stage.
        """
        found: dict[Parameter, Tensor] = {}
        for bucket in self._buckets:
            # All ranks have the same buckets; who leads none has nothing to add.
            if bucket.flat.dtype == torch.float32 and bucket.parameters:
                found |= self._sums_of(bucket)
        return found

    def _sums_of(self, bucket: Bucket) -> dict[Parameter, Tensor]:
        total, places = torch.zeros_like(bucket.wire), bucket.places
        for rounding in self._roundings.values():
            for part in rounding.kept(bucket):
                begin = places[part.parameter][0] + part.begin
                total[begin : begin + part.numbers.numel()] += part.numbers
        # Between the nodes, each leader with those of the same shard; then inside the node.
        for group in self._groups:
            group.all_reduce(total).wait()
        return {
            parameter: shaped(total[begin:end], parameter).clone()
            for parameter, (begin, end) in places.items()
            if bool(total[begin:end].any())
        }

    def drop(self) -> None:
        """Forgets all of it.

        An error that is not finite would stay for good, and one of another scale of the gradients
        would be wrong for the next step.
        """
        for rounding in self._roundings.values():
            rounding.drop()
        self.debts.drop()
