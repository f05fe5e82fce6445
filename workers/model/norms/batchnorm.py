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
from bundlerun.splits.replay.composite import is_noting
from bundlerun.workers.model.norms.sums import (
    MEAN,
    TRACKED,
    VAR,
    Pair,
    Pass,
    StatisticsSums,
    cloned_statistics,
    num_channels,
    sizes_of,
)

Forward = Callable[..., Any]


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
        self._sizes = sizes_of(self._layers)
        self.sums = sums
        self.counts = sums[: len(layers)]
        """What each has seen, values per channel or samples."""
        self._all = StatisticsSums(self._layers, sums) if layers else None
        self._pass: Pass | None = None
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
        return sum(1 + 2 * num_channels(layer) for layer in tracking_layers(module).values())

    def around(self, forward: Forward) -> Forward:
        """`forward` of the stage, or of a chunk; counts what the batch norms see in training.

        A call outside of it counts for nothing, such as a recomputation in the backward.
        """
        return partial(self._gather, forward) if self._layers else forward

    @property
    def may_go_ahead(self) -> bool:
        """Whether `apply` can do without the numbers of `counts`, as all norms have seen some."""
        return self._all is None or (self._only_torchs and self._all.has_seen_all)

    def apply(self, counts: Sequence[float] | None) -> None:
        """Moves all running statistics by the summed vector, once, as torch would.

        Args:
            counts: the numbers of `counts`, summed; None: nobody has read them yet, and
                `may_go_ahead`.
        """
        if self._all is not None:
            self._all.move(None if counts is None else tuple(counts))

    def _gather(self, forward: Forward, *inputs: Tensor) -> Any:  # noqa: ANN401 - any output
        # Without gradients it is an evaluation: running statistics do not move.
        if self._all is None or not torch.is_grad_enabled():
            return forward(*inputs)
        self._pass = Pass(self._layers, self._sizes, may_only_read=not self._only_torchs)
        try:
            result = forward(*inputs)
            self._all.add(self._pass)
        finally:
            self._pass = None
        return result

    def lend(self, index: int) -> Pair:
        """Copies of a layer's statistics, to be written by one call of it."""
        if self._pass is None:
            return cloned_statistics(self._layers[index])
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
        mean, variance = buffers.get(MEAN), buffers.get(VAR)
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
        self._num_channels = num_channels(layer)
        self._is_of_samples = isinstance(layer, _InstanceNorm)
        self.own = own
        # torch's own forward does without the counter, which then costs nothing.
        is_torchs = getattr(own, "__func__", None) is _BatchNorm.forward
        counter = layer._buffers.get(TRACKED)
        self._counter = None if is_torchs or counter is None else torch.zeros_like(counter)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (self.own,)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the module's own
        layer = self._layer
        if not layer.training or not layer.track_running_stats:
            return self.own(*args, **kwargs)
        # A stage may number the model's calls, see splits/replay: these are not the model's.
        is_watched = _has_modes()
        # Another chunk does it: this one has its result already.
        if is_watched and is_noting():
            return self.own(*args, **kwargs)
        # Not by name: a module looks for parameters and buffers in each value that it is given.
        buffers, fields = layer._buffers, vars(layer)
        momentum = fields["momentum"]
        mean, variance, counter = buffers[MEAN], buffers[VAR], buffers.get(TRACKED)
        # [1]
        given = args[0] if args else next(iter(kwargs.values()))
        if is_watched:
            with torch._C.DisableTorchFunction():
                count, lent = self._count(given), self._pool.lend(self._index)
        else:
            count, lent = self._count(given), self._pool.lend(self._index)
        buffers[MEAN], buffers[VAR] = lent
        buffers[TRACKED] = self._counter
        fields["momentum"] = 1.0
        try:
            # [2]
            result = self.own(*args, **kwargs)
            left: Any = buffers[MEAN], buffers[VAR]
        except ValueError as exc:
            if count == 1 and isinstance(layer, _BatchNorm):
                raise ConfigError(self._of_one_value()) from exc
            raise
        finally:
            # [3] Whatever happens: the user's module is as before, errors included.
            buffers[MEAN], buffers[VAR], buffers[TRACKED] = mean, variance, counter
            fields["momentum"] = momentum
        if is_watched:
            with torch._C.DisableTorchFunction():
                self._pool.take_back(self._index, count, left)
        else:
            self._pool.take_back(self._index, count, left)
        return result

    def _count(self, given: object) -> int:
        """Values per channel in the input of a call; samples for an instance norm."""
        if not isinstance(given, Tensor):
            return 1
        if not self._is_of_samples:
            return given.numel() // self._num_channels
        layer = cast(_InstanceNorm, self._layer)
        return given.size(0) if given.dim() > layer._get_no_batch_dim() else 1

    def _of_one_value(self) -> str:
        return (
            f"batch norm {self._name!r} of {num_channels(self._layer)} channels gets one value of "
            "each, from a micro-batch of 1 sample (an epoch's last may be that small); use another "
            "--microbatch-size or --batch-size, or a larger --image-size"
        )


def _has_modes() -> bool:
    return not torch.compiler.is_compiling() and bool(torch._C._len_torch_function_stack())
