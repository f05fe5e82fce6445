"""Running statistics of all norms of a stage at once, flat, and what a step adds up for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from bundlerun.workers.device import accelerator as door

MEAN, VAR, TRACKED = "running_mean", "running_var", "num_batches_tracked"
_DTYPE = attrgetter("dtype")
Pair = tuple[Tensor, Tensor]
"""Mean and variance per channel."""


class Pass:
    """One forward of a stage: what is lent to its norms and what they have left.

    Args:
        layers: the norms.
        sizes: of their running means, then of the variances.
        may_only_read: whether one of them may leave its statistics as they were.
    """

    def __init__(
        self, layers: Sequence[_NormBase], sizes: Sequence[int], *, may_only_read: bool
    ) -> None:
        self._layers = layers
        self.counts = [0] * len(layers)
        """Of the first call of each layer."""
        self.more: list[tuple[int, int, Pair]] = []
        """Layer, count and statistics of other calls."""
        buffers = _buffers(layers)
        self.after = torch.cat(buffers)
        self.before = self.after.clone() if may_only_read else None
        # Views of one tensor: what all norms leave is added up in one operation at the end.
        self._parts = self.after.split_with_sizes(sizes)
        self._is_uniform = len(set(map(_DTYPE, buffers))) == 1

    def lend(self, index: int) -> Pair:
        """What one call of a layer may write its statistics into."""
        # A second call must not overwrite what the first has left. Norms of several dtypes cannot
        # have views of one tensor.
        if self.counts[index] or not self._is_uniform:
            return cloned_statistics(self._layers[index])
        return self._parts[index], self._parts[index + len(self._layers)]

    def take_back(self, index: int, count: int, left: Pair) -> None:
        """What the call has left there, or elsewhere."""
        mean, variance = left
        others = self._parts[index + len(self._layers)]
        if mean is self._parts[index] and variance is others:
            self.counts[index] = count
        else:
            self.more.append((index, count, left))


class StatisticsSums:
    """The arithmetic over all channels of all layers at once, in a few operations.

    n values of each channel, or n samples for an instance norm, whose statistics are those of a
    sample and are averaged:

        sum        += n mean
        square sum += n (biased variance + mean^2)      instance norm: n variance

    What depends on the counts only is worked out on the processor, and kept on the device.
    """

    def __init__(self, layers: Sequence[_NormBase], sums: Tensor) -> None:
        self._layers = layers
        self._channels = [num_channels(layer) for layer in layers]
        self._sizes = sizes_of(layers)
        self._rows = (sum(self._channels),) * 2
        self._counts, self._moments = sums.tensor_split([len(layers)])
        self._sum, self._square_sum = self._moments.split_with_sizes(self._rows)
        self._pooled = [float(not isinstance(layer, _InstanceNorm)) for layer in layers]
        self._is_pooled = self._on_device(self._of_channels(self._pooled))
        self._made: dict[object, tuple[Tensor, ...]] = {}
        self.has_seen_all = False
        """Whether each layer was called in a forward of this step, here: then none has count 0."""

    @torch.no_grad()
    def add(self, done: Pass) -> None:
        """Adds what one forward has left."""
        self._add(done.counts, done.before, done.after)
        self.has_seen_all |= all(done.counts)
        for index, count, left in done.more:
            # Rare: a layer called twice, or one that puts other tensors into its buffers.
            after = torch.zeros_like(done.after) if done.before is None else done.before.clone()
            first = sum(self._channels[:index])
            place = slice(first, first + self._channels[index])
            mean, variance = after.split_with_sizes(self._rows)
            mean[place], variance[place] = left
            counts = [count if i == index else 0 for i in range(len(self._layers))]
            self._add(counts, done.before, after)

    def _add(self, counts: Sequence[int], before: Tensor | None, after: Tensor) -> None:
        if not any(counts):
            return
        seen, n, deviations = self._kept(tuple(counts), self._of_counts)
        if before is not None:
            seen, n, deviations = self._of_changed(seen, before != after)
        self._counts.add_(seen)
        mean, variance = after.to(self._moments).split_with_sizes(self._rows)
        weighted = mean * n
        self._sum.add_(weighted)
        # torch leaves the unbiased variance: times n - 1 it is the sum of squares around the mean.
        self._square_sum.addcmul_(variance, deviations)
        self._square_sum.addcmul_(weighted, self._where_pooled(mean))

    def _of_counts(self, counts: tuple[float, ...]) -> list[Tensor]:
        """The counts, and n and the n of a variance for each channel."""
        n = self._of_channels(counts)
        deviations = (n - self._of_channels(self._pooled)).clamp_(min=0)
        return [torch.tensor(counts, dtype=torch.float64), n, deviations]

    def _of_changed(self, counts: Tensor, is_changed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same, without layers whose forward has only read its statistics."""
        owner, *_ = self._kept("owner", self._owner)
        changes = is_changed.view(2, -1).any(0).to(counts)
        seen = counts * (torch.zeros_like(counts).index_add_(0, owner, changes) > 0)
        n = seen.index_select(0, owner)
        return seen, n, (n - self._is_pooled).clamp_(min=0)

    @torch.no_grad()
    def move(self, counts: tuple[float, ...] | None) -> None:
        """Moves the running statistics; those of a layer that saw nothing stay.

        Args:
            counts: as they are after the sum; None: they are on the device only, and none is 0.
        """
        self.has_seen_all = False
        if counts is None:
            n, correction = self._of_unread()
        else:
            n, correction = self._kept(("all", counts), lambda _: self._of_sums(counts))
        means = self._moments.view(2, -1) / n
        mean, variance = means.unbind()
        # Biased, over all values of the step; small negative numbers are rounding.
        variance.addcmul_(self._where_pooled(mean), mean, value=-1).clamp_(min=0).mul_(correction)
        is_seen = [float(count > 0) for count in counts or [1] * len(self._layers)]
        rate = self._rate(is_seen)
        moved = torch.lerp(_flat(self._layers).to(means).view(2, -1), means, rate).view(-1)
        torch._foreach_copy_(_buffers(self._layers), moved.split_with_sizes(self._sizes))

    def _of_unread(self) -> tuple[Tensor, Tensor]:
        """As `_of_sums`, of the counts on the device."""
        (owner,) = self._kept("owner", self._owner)
        n = self._counts.index_select(0, owner)
        return n, n / (n - self._is_pooled).clamp_(min=1)

    def _of_sums(self, counts: tuple[float, ...]) -> list[Tensor]:
        """What sums are divided by, and what makes a variance unbiased, for each channel."""
        n = self._of_channels(counts).clamp_(min=1)
        return [n, n / (n - self._of_channels(self._pooled)).clamp_(min=1)]

    def _rate(self, is_seen: list[float]) -> Tensor:
        """By how much each channel moves; counts the step in layers that count."""
        counting = [
            (index, tracked)
            for index, layer in enumerate(self._layers)
            if (tracked := layer._buffers.get(TRACKED)) is not None
            and not isinstance(layer, _InstanceNorm)
        ]
        seen = [tracked for index, tracked in counting if is_seen[index]]
        if seen:
            torch._foreach_add_(seen, 1)
        # A layer that saw nothing has rate 0, and so stays.
        rates = [
            (layer.momentum or 0.0) * s for layer, s in zip(self._layers, is_seen, strict=True)
        ]
        (rate,) = self._kept(("rate", *rates), lambda _: [self._of_channels(rates)])
        averaged = [i for i, _ in counting if self._layers[i].momentum is None and is_seen[i]]
        return self._averaged(rate, averaged) if averaged else rate

    def _averaged(self, rate: Tensor, layers: Sequence[int]) -> Tensor:
        """With torch's cumulative mean in some layers: the n-th step counts 1/n."""
        parts = list(rate.clone().split_with_sizes(self._channels))
        for index in layers:
            tracked = cast(Tensor, self._layers[index]._buffers[TRACKED])
            parts[index].copy_(tracked.to(rate).clamp(min=1).reciprocal().expand_as(parts[index]))
        return torch.cat(parts)

    def _where_pooled(self, mean: Tensor) -> Tensor:
        return mean if all(self._pooled) else mean * self._is_pooled

    def _of_channels(self, values: Sequence[float]) -> Tensor:
        """The value of its layer for each channel, on the processor."""
        found = torch.tensor(values, dtype=torch.float64)
        return found.repeat_interleave(torch.tensor(self._channels))

    def _owner(self, _: object) -> list[Tensor]:
        """The layer of each channel."""
        return [self._of_channels(range(len(self._layers))).long()]

    def _kept(self, key: Any, make: Callable[[Any], list[Tensor]]) -> tuple[Tensor, ...]:  # noqa: ANN401
        """What `make` gives for a key, on the device; the same again costs no copy."""
        if key not in self._made:
            # Keys are also of a changed length of the inputs: so bounded.
            if len(self._made) > 16:
                self._made.clear()
            self._made[key] = tuple(map(self._on_device, make(key)))
        return self._made[key]

    def _on_device(self, tensor: Tensor) -> Tensor:
        return door.placed(tensor, self._counts.device)


def _buffers(layers: Sequence[_NormBase]) -> list[Tensor]:
    """The running means of all layers, then the variances."""
    all_buffers: list[Any] = [layer._buffers for layer in layers]
    return [own[name] for name in (MEAN, VAR) for own in all_buffers]


def sizes_of(layers: Sequence[_NormBase]) -> list[int]:
    """Of the running means of all layers, then of the variances."""
    return [buffer.numel() for buffer in _buffers(layers)]


def _flat(layers: Sequence[_NormBase]) -> Tensor:
    """The running statistics of all layers, one after the other, flat."""
    return torch.cat(_buffers(layers))


def cloned_statistics(layer: _NormBase) -> Pair:
    """Copies of a layer's own."""
    return cast(Tensor, layer._buffers[MEAN]).clone(), cast(Tensor, layer._buffers[VAR]).clone()


def num_channels(layer: _NormBase) -> int:
    """Of its running statistics."""
    return cast(Tensor, layer._buffers[MEAN]).numel()
