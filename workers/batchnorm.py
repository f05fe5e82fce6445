"""Batch normalisation whose running statistics do not depend on the topology (I2).

Each micro-batch is normalised with its own statistics; the running statistics move once a step,
by the pooled statistics of all micro-batches of all bundles.

Source: deferred batch normalisation, torchgpipe (Kim et al., 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from launcher.errors import ConfigError


class DeferredBatchNorm(_BatchNorm):
    """A batch norm that gathers its statistics until `StatisticsPool.apply` uses them.

    It shares parameters and buffers with `original` and keeps its names.
    """

    def __init__(self, original: _BatchNorm) -> None:
        super().__init__(
            original.num_features, original.eps, original.momentum, affine=False, device="meta"
        )
        self.affine = original.affine
        self.weight, self.bias = original.weight, original.bias
        self.running_mean = original.running_mean
        self.running_var = original.running_var
        self.num_batches_tracked = original.num_batches_tracked
        self.train(original.training)
        self.attach(torch.zeros(statistics_size(self), dtype=torch.float64))

    def attach(self, sums: Tensor) -> None:
        """Gathers into `sums` from now on: count, then per channel sum and sum of squares."""
        self._count, rest = sums[:1], sums[1:]
        self._sum, self._square_sum = rest.chunk(2)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions: the original module checked nothing it cannot do."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (batch, channels, ...) by its own statistics while training."""
        if not self.training:
            return super().forward(input)
        count = input.numel() // self.num_features
        if count == 1:
            raise ConfigError(
                f"a batch norm of {self.num_features} channels gets one value of each, from a "
                "micro-batch of 1 sample (an epoch's last may be that small); use another "
                "--microbatch-size or --batch-size, or a larger --image-size"
            )
        # With momentum 1 torch leaves the statistics of this micro-batch in the two buffers,
        # whatever kernel does the work.
        mean = torch.zeros(self.num_features, dtype=self._dtype(), device=input.device)
        variance = torch.zeros_like(mean)
        output = nn.functional.batch_norm(
            input, mean, variance, self.weight, self.bias, True, 1.0, self.eps
        )
        with torch.no_grad():
            self._gather(count, mean, variance)
        return output

    def _dtype(self) -> torch.dtype:
        return self.running_mean.dtype if self.running_mean is not None else torch.float32

    def _gather(self, count: int, mean: Tensor, unbiased: Tensor) -> None:
        mean = mean.double().to(self._sum.device)
        biased = unbiased.double().to(self._sum.device) * ((count - 1) / count)
        self._count.add_(count)
        self._sum.add_(mean, alpha=count)
        self._square_sum.add_(biased.addcmul_(mean, mean), alpha=count)

    @torch.no_grad()
    def move_running_statistics(self) -> None:
        """Moves the running statistics by what was gathered, once, as torch would."""
        count = float(self._count)
        if count == 0 or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
        mean = self._sum / count
        variance = (self._square_sum / count - mean * mean).clamp_(min=0)
        unbiased = variance * (count / max(count - 1, 1))
        for running, now in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.mul_(1 - momentum).add_(now.to(running), alpha=momentum)


def statistics_size(layer: _BatchNorm) -> int:
    """Numbers that one layer gathers in a step."""
    return 1 + 2 * layer.num_features


def defer_batchnorm(module: nn.Module) -> nn.Module:
    """Replaces the batch norms that track running statistics inside `module`, or itself.

    A synchronised batch norm does its own communication and stays.
    """
    if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm):
        return DeferredBatchNorm(module) if module.track_running_stats else module
    for name, child in list(module.named_children()):
        replaced = defer_batchnorm(child)
        if replaced is not child:
            setattr(module, name, replaced)
    return module


class StatisticsPool:
    """What all batch norms of a stage gather in one step, as one vector to be summed."""

    def __init__(self, module: nn.Module, sums: Tensor) -> None:
        self._layers = deferred_layers(module)
        self.sums = sums
        sizes = [statistics_size(layer) for layer in self._layers]
        for layer, part in zip(self._layers, sums.split(sizes) if sizes else (), strict=True):
            layer.attach(part)

    @staticmethod
    def size(module: nn.Module) -> int:
        """Numbers that `module` gathers in a step."""
        return sum(map(statistics_size, deferred_layers(module)))

    def apply(self) -> None:
        """Moves all running statistics by the summed vector."""
        for layer in self._layers:
            layer.move_running_statistics()


def deferred_layers(module: nn.Module) -> list[DeferredBatchNorm]:
    """The deferred batch norms of a stage, in module order, each once."""
    return [m for m in module.modules() if isinstance(m, DeferredBatchNorm)]
