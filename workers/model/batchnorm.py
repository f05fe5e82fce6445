"""Running statistics that do not depend on the topology (I2), around the user's own modules (I13).

Each micro-batch is normalised with its own statistics; the running statistics move once a step,
by the pooled statistics of all micro-batches of all bundles. No module is replaced. In a call:

    [1] running_mean, running_var = copies of themselves  lent to the module,
        momentum = 1                                      by which it leaves there
    [2] its own forward                                   what it has found in its input
    [3] running_mean, running_var, momentum = as before   taken back

So whatever kernel does the work, and whatever a subclass does besides, stays as it is.

Source: deferred batch normalisation, torchgpipe (Kim et al., 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.device import accelerator as door

Forward = Callable[..., Any]
Pair = tuple[Tensor, Tensor]
"""Mean and variance per channel."""

_MEAN, _VAR, _TRACKED = "running_mean", "running_var", "num_batches_tracked"


class StatisticsPool:
    """What all batch norms of a stage gather in one step, as one vector to be summed.

    From its making on, their running statistics move by `apply` only. Outside of a call their
    buffers are the usual ones.

    Instance norms that track statistics take part: theirs are means over the samples.

    Args:
        module: the stage.
        sums: zeros in float64, (size(module),).

    Raises:
        ConfigError: a batch norm does not know its channels yet.
    """

    def __init__(self, module: nn.Module, sums: Tensor) -> None:
        layers = tracking_layers(module)
        self._layers = list(layers.values())
        self._sizes = _sizes(self._layers)
        self.sums = sums
        self.counts = sums[: len(layers)]
        """What each has seen, values per channel or samples."""
        self._vectors = _Vectors(self._layers, sums) if layers else None
        self._pass: _Pass | None = None
        self._only_torchs = True
        for index, (name, layer) in enumerate(layers.items()):
            own = layer.__dict__.get("forward", layer.forward)
            # A pool made before for this module is replaced, not wrapped a second time.
            own = own.own if isinstance(own, _LentForward) else own
            self._only_torchs &= _is_torchs(own)
            # On the instance: calls of `forward` itself go through it, too.
            layer.forward = _LentForward(self, index, name, layer, own)

    @staticmethod
    def size(module: nn.Module) -> int:
        """Numbers that `module` gathers in a step."""
        return sum(1 + 2 * _channels(layer) for layer in tracking_layers(module).values())

    def around(self, forward: Forward) -> Forward:
        """`forward` of the stage, or of a chunk; counts what the batch norms see in training.

        A call outside of it counts for nothing, such as a recomputation in the backward.
        """
        return partial(self._gather, forward) if self._layers else forward

    def apply(self, counts: Sequence[float]) -> None:
        """Moves all running statistics by the summed vector, once, as torch would.

        Args:
            counts: the numbers of `counts`, summed.
        """
        if self._vectors is not None:
            self._vectors.move(tuple(counts))

    def _gather(self, forward: Forward, *inputs: Tensor) -> Any:  # noqa: ANN401 - any output
        # Without gradients it is an evaluation: running statistics do not move.
        if self._vectors is None or not torch.is_grad_enabled():
            return forward(*inputs)
        self._pass = _Pass(self._layers, self._sizes, may_only_read=not self._only_torchs)
        try:
            result = forward(*inputs)
            self._vectors.add(self._pass)
        finally:
            self._pass = None
        return result

    def lend(self, index: int) -> Pair:
        """Copies of a layer's statistics, to be written by one call of it."""
        if self._pass is None:
            return _cloned(self._layers[index])
        return self._pass.lend(index)

    def take_back(self, index: int, count: int, left: Pair) -> None:
        """What the call of a layer has left, after `count` values per channel, or samples."""
        if self._pass is not None:
            self._pass.take_back(index, count, left)


def tracking_layers(module: nn.Module) -> dict[str, _NormBase]:
    """The norms with running statistics, by their first name.

    Raises:
        ConfigError: one of them does not know its channels yet.
    """
    found = {}
    for name, layer in module.named_modules():
        buffers = layer._buffers if isinstance(layer, _NormBase) else {}
        mean, variance = buffers.get(_MEAN), buffers.get(_VAR)
        if mean is None or variance is None:
            continue
        if is_lazy(mean):
            raise ConfigError(
                f"{name!r} is a {type(layer).__name__} that does not know its channels yet; call "
                "the model once with an example before you return it"
            )
        found[name] = cast(_NormBase, layer)
    return found


def has_own_forward(layer: _NormBase) -> bool:
    """Whether a user has written what it does, not torch."""
    return not _is_torchs(layer.forward)


def _is_torchs(forward: Forward) -> bool:
    """Whether it is one of torch's; in training these write their statistics in each call."""
    function = getattr(forward, "__func__", None)
    return function in (_BatchNorm.forward, SyncBatchNorm.forward, _InstanceNorm.forward)


class _LentForward:
    """The forward of one norm, for whose time its buffers are lent.

    A copy of the module, or what pickle makes of it, has its own forward only.
    """

    def __init__(
        self, pool: StatisticsPool, index: int, name: str, layer: _NormBase, own: Forward
    ) -> None:
        self._pool = pool
        self._index = index
        self._name = name
        self._layer = layer
        self.own = own
        # torch's own forward does without the counter, which then costs nothing.
        is_torchs = getattr(own, "__func__", None) is _BatchNorm.forward
        counter = layer._buffers.get(_TRACKED)
        self._counter = None if is_torchs or counter is None else torch.zeros_like(counter)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (self.own,)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the module's own
        layer = self._layer
        if not layer.training or not layer.track_running_stats:
            return self.own(*args, **kwargs)
        count = _count(layer, args[0] if args else next(iter(kwargs.values())))
        buffers, momentum = layer._buffers, layer.momentum
        mean, variance, counter = buffers[_MEAN], buffers[_VAR], buffers.get(_TRACKED)
        # [1]
        buffers[_MEAN], buffers[_VAR] = self._pool.lend(self._index)
        buffers[_TRACKED] = self._counter
        layer.momentum = 1.0
        try:
            # [2]
            result = self.own(*args, **kwargs)
            left = (buffers[_MEAN], buffers[_VAR])
        except ValueError as exc:
            if count == 1 and isinstance(layer, _BatchNorm):
                raise ConfigError(self._of_one_value()) from exc
            raise
        finally:
            # [3] Whatever happens: the user's module is as before, errors included.
            buffers[_MEAN], buffers[_VAR], buffers[_TRACKED] = mean, variance, counter
            layer.momentum = momentum
        self._pool.take_back(self._index, count, cast(Pair, left))
        return result

    def _of_one_value(self) -> str:
        return (
            f"batch norm {self._name!r} of {_channels(self._layer)} channels gets one value of "
            "each, from a micro-batch of 1 sample (an epoch's last may be that small); use another "
            "--microbatch-size or --batch-size, or a larger --image-size"
        )


class _Pass:
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
        self.after = _flat(layers)
        self.before = self.after.clone() if may_only_read else None
        # Views of one tensor: what all norms leave is added up in one operation at the end.
        self._parts = self.after.split_with_sizes(sizes)
        self._is_uniform = _dtype(layers) is not None

    def lend(self, index: int) -> Pair:
        # A second call must not overwrite what the first has left. Norms of several dtypes cannot
        # have views of one tensor.
        if self.counts[index] or not self._is_uniform:
            return _cloned(self._layers[index])
        return self._parts[index], self._parts[index + len(self._layers)]

    def take_back(self, index: int, count: int, left: Pair) -> None:
        mean, variance = left
        others = self._parts[index + len(self._layers)]
        if mean is self._parts[index] and variance is others:
            self.counts[index] = count
        else:
            self.more.append((index, count, left))


class _Vectors:
    """The arithmetic over all channels of all layers at once, in a few operations.

    n values of each channel, or n samples for an instance norm, whose statistics are those of a
    sample and are averaged:

        sum        += n mean
        square sum += n (biased variance + mean^2)      instance norm: n variance

    What depends on the counts only is worked out on the processor, and kept on the device.
    """

    def __init__(self, layers: Sequence[_NormBase], sums: Tensor) -> None:
        self._layers = layers
        self._channels = [_channels(layer) for layer in layers]
        self._sizes = _sizes(layers)
        self._rows = (sum(self._channels),) * 2
        self._counts, self._moments = sums.tensor_split([len(layers)])
        self._sum, self._square_sum = self._moments.split_with_sizes(self._rows)
        self._pooled = [float(not isinstance(layer, _InstanceNorm)) for layer in layers]
        self._is_pooled = self._on_device(self._of_channels(self._pooled))
        self._made: dict[object, tuple[Tensor, ...]] = {}

    @torch.no_grad()
    def add(self, done: _Pass) -> None:
        """Adds what one forward has left."""
        self._add(done.counts, done.before, done.after)
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
    def move(self, counts: tuple[float, ...]) -> None:
        """Moves the running statistics; those of a layer that saw nothing stay."""
        n, correction = self._kept(("all", counts), lambda _: self._of_sums(counts))
        means = self._moments.view(2, -1) / n
        mean, variance = means.unbind()
        # Biased, over all values of the step; small negative numbers are rounding.
        variance.addcmul_(self._where_pooled(mean), mean, value=-1).clamp_(min=0).mul_(correction)
        is_seen = [float(count > 0) for count in counts]
        rate = self._rate(is_seen)
        moved = torch.lerp(_flat(self._layers).to(means).view(2, -1), means, rate).view(-1)
        # One conversion: a GPU copies tensors of one dtype together.
        moved = moved.to(_dtype(self._layers) or moved.dtype)
        torch._foreach_copy_(_buffers(self._layers), moved.split_with_sizes(self._sizes))

    def _of_sums(self, counts: tuple[float, ...]) -> list[Tensor]:
        """What sums are divided by, and what makes a variance unbiased, for each channel."""
        n = self._of_channels(counts).clamp_(min=1)
        return [n, n / (n - self._of_channels(self._pooled)).clamp_(min=1)]

    def _rate(self, is_seen: list[float]) -> Tensor:
        """By how much each channel moves; counts the step in layers that count."""
        counting = [
            (index, tracked)
            for index, layer in enumerate(self._layers)
            if (tracked := layer._buffers.get(_TRACKED)) is not None
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
            tracked = cast(Tensor, self._layers[index]._buffers[_TRACKED])
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
    return [cast(Tensor, layer._buffers[name]) for name in (_MEAN, _VAR) for layer in layers]


def _sizes(layers: Sequence[_NormBase]) -> list[int]:
    """Of the running means of all layers, then of the variances."""
    return [buffer.numel() for buffer in _buffers(layers)]


def _flat(layers: Sequence[_NormBase]) -> Tensor:
    """The running statistics of all layers, one after the other, flat."""
    return torch.cat(_buffers(layers))


def _dtype(layers: Sequence[_NormBase]) -> torch.dtype | None:
    """Of all running statistics; None where they are not of one."""
    dtypes = {buffer.dtype for buffer in _buffers(layers)}
    return dtypes.pop() if len(dtypes) == 1 else None


def _cloned(layer: _NormBase) -> Pair:
    return cast(Tensor, layer._buffers[_MEAN]).clone(), cast(Tensor, layer._buffers[_VAR]).clone()


def _channels(layer: _NormBase) -> int:
    return cast(Tensor, layer._buffers[_MEAN]).numel()


def _count(layer: _NormBase, given: object) -> int:
    """Values per channel in the input of a call; samples for an instance norm."""
    if not isinstance(given, Tensor):
        return 1
    if isinstance(layer, _InstanceNorm):
        return given.size(0) if given.dim() > layer._get_no_batch_dim() else 1
    return given.numel() // _channels(layer)
