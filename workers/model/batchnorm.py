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
        self.sums = sums
        self._vectors = _Vectors(self._layers, sums) if layers else None
        self._pass: _Pass | None = None
        for index, (name, layer) in enumerate(layers.items()):
            own = layer.__dict__.get("forward", layer.forward)
            # A pool made before for this module is replaced, not wrapped a second time.
            own = own.own if isinstance(own, _LentForward) else own
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

    def apply(self) -> None:
        """Moves all running statistics by the summed vector, once, as torch would."""
        if self._vectors is not None:
            self._vectors.move()

    def _gather(self, forward: Forward, *inputs: Tensor) -> Any:  # noqa: ANN401 - any output
        # Without gradients it is an evaluation: running statistics do not move.
        if self._vectors is None or not torch.is_grad_enabled():
            return forward(*inputs)
        self._pass = _Pass(self._layers)
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
    function = getattr(layer.forward, "__func__", None)
    return function not in (_BatchNorm.forward, SyncBatchNorm.forward, _InstanceNorm.forward)


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
    """One forward of a stage: what is lent to its norms and what they have left."""

    def __init__(self, layers: Sequence[_NormBase]) -> None:
        self._layers = layers
        self.counts = [0] * len(layers)
        """Of the first call of each layer."""
        self.more: list[tuple[int, int, Pair]] = []
        """Layer, count and statistics of other calls."""
        self.before = _flat(layers)
        self.after = self.before.clone()
        channels = [_channels(layer) for layer in layers]
        # Views of one tensor: what all norms leave is added up in one operation at the end.
        self._parts = list(zip(*(row.split(channels) for row in self.after), strict=True))
        self._is_uniform = len({layer._buffers[_MEAN].dtype for layer in layers}) == 1  # type: ignore[union-attr]

    def lend(self, index: int) -> Pair:
        # A second call must not overwrite what the first has left. Norms of several dtypes cannot
        # have views of one tensor.
        if self.counts[index] or not self._is_uniform:
            return _cloned(self._layers[index])
        return cast(Pair, self._parts[index])

    def take_back(self, index: int, count: int, left: Pair) -> None:
        if left[0] is self._parts[index][0] and left[1] is self._parts[index][1]:
            self.counts[index] = count
        else:
            self.more.append((index, count, left))


class _Vectors:
    """The arithmetic over all channels of all layers at once.

    n values of each channel, or n samples for an instance norm, whose statistics are those of a
    sample and are averaged:

        sum        += n mean
        square sum += n (biased variance + mean^2)      instance norm: n variance
    """

    def __init__(self, layers: Sequence[_NormBase], sums: Tensor) -> None:
        self._layers = layers
        channels = [_channels(layer) for layer in layers]
        total = sum(channels)
        self._counts, self._sum, self._square_sum = sums.split([len(layers), total, total])
        self._channels = channels
        numbers = torch.arange(len(layers), device=sums.device)
        self._owner = numbers.repeat_interleave(torch.tensor(channels, device=sums.device))
        is_pooled = [float(not isinstance(layer, _InstanceNorm)) for layer in layers]
        self._is_pooled = sums.new_tensor(is_pooled).index_select(0, self._owner)
        self._known: dict[tuple[float, ...], Tensor] = {}

    @torch.no_grad()
    def add(self, done: _Pass) -> None:
        """Adds what one forward has left."""
        self._add(done.counts, done.before, done.after)
        for index, count, left in done.more:
            # Rare: a layer called twice, or one that puts other tensors into its buffers.
            after = done.before.clone()
            first = sum(self._channels[:index])
            place = slice(first, first + self._channels[index])
            after[0, place], after[1, place] = left
            counts = [count if i == index else 0 for i in range(len(self._layers))]
            self._add(counts, done.before, after)

    def _add(self, counts: Sequence[int], before: Tensor, after: Tensor) -> None:
        if not any(counts):
            return
        # A forward that only reads its statistics has left them as they were.
        is_changed = (before != after).any(0).to(self._sum)
        changes = torch.zeros_like(self._counts).index_add_(0, self._owner, is_changed)
        seen = self._vector(counts) * (changes > 0)
        self._counts.add_(seen)
        n = seen.index_select(0, self._owner)
        mean, variance = after.to(self._sum)
        weighted = mean * n
        self._sum.add_(weighted)
        # torch leaves the unbiased variance: times n - 1 it is the sum of squares around the mean.
        self._square_sum.addcmul_(variance, (n - self._is_pooled).clamp_(min=0))
        self._square_sum.addcmul_(weighted, mean * self._is_pooled)

    @torch.no_grad()
    def move(self) -> None:
        """Moves the running statistics; those of a layer that saw nothing stay."""
        seen = self._counts > 0
        n = self._counts.index_select(0, self._owner).clamp_(min=1)
        mean = self._sum / n
        # Biased, over all values of the step; small negative numbers are rounding.
        variance = (self._square_sum / n).addcmul_(mean * self._is_pooled, mean, value=-1)
        unbiased = variance.clamp_(min=0) * (n / (n - self._is_pooled).clamp_(min=1))
        # A layer that saw nothing has rate 0, and so stays.
        rate = (self._rates(seen) * seen).index_select(0, self._owner)
        before = _flat(self._layers).to(self._sum)
        moved = torch.lerp(before, torch.stack([mean, unbiased]), rate)
        for name, row in zip((_MEAN, _VAR), moved, strict=True):
            for layer, values in zip(self._layers, row.split(self._channels), strict=True):
                cast(Tensor, layer._buffers[name]).copy_(values)

    def _rates(self, seen: Tensor) -> Tensor:
        """By how much each layer moves; counts the step in layers that count."""
        rates = self._vector([layer.momentum or 0.0 for layer in self._layers]).clone()
        for index, layer in enumerate(self._layers):
            tracked = layer._buffers.get(_TRACKED)
            if tracked is None or isinstance(layer, _InstanceNorm):
                continue
            tracked.add_(seen[index])
            # torch's cumulative mean: the n-th step counts 1/n.
            if layer.momentum is None:
                rates[index] = tracked.to(rates).clamp(min=1).reciprocal()
        return rates

    def _vector(self, values: Sequence[float]) -> Tensor:
        """`values` on the device; the same again costs no copy."""
        key = tuple(values)  # also of a changed length of the inputs: so bounded
        if key not in self._known:
            if len(self._known) > 100:
                self._known.clear()
            vector = torch.tensor(key, dtype=torch.float64)
            self._known[key] = vector.to(self._sum.device, non_blocking=True)
        return self._known[key]


def _flat(layers: Sequence[_NormBase]) -> Tensor:
    """The running statistics of all layers, (2, channels of all)."""
    rows = [torch.cat([cast(Tensor, layer._buffers[n]) for layer in layers]) for n in (_MEAN, _VAR)]
    return torch.stack(rows)


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
