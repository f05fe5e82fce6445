"""What a rank is given to do in one step, and the result of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.checkpoints import RAW


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What one bundle does in one step.

    Args:
        seed: of the run.
        step: number of the step in the run.
        first: number in the step of this bundle's first micro-batch; they are consecutive.
        sizes: samples in each of this bundle's micro-batches.
        num_samples: samples of the step over all bundles.
    """

    seed: int
    step: int
    first: int
    sizes: Sequence[int]
    num_samples: int


class Share(NamedTuple):
    """One micro-batch's part of the step's loss."""

    loss: Tensor
    weight: Tensor | float | None
    """What the recipe says, in float64; None where the loss is a mean."""


@dataclass(slots=True, kw_only=True)
class StepShare:
    """The result of this rank's part of a step, if it has the last stage; stays empty elsewhere.

    Args:
        loss_slot: zero in float64, which losses are added to; None: one is made.
        metric_slots: the same for metrics, by name; one is made for those that have none.
    """

    loss_slot: Tensor | None = None
    metric_slots: Mapping[str, Tensor] = field(default_factory=dict)
    loss: Tensor | None = None
    """This rank's share of the loss of the step, see `bundlerun.workers.pipeline.loss`."""
    weight: Tensor | float | None = None
    """Of its micro-batches' losses, where they say one."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Sums over this rank's samples."""
    evidence: list[Mapping[str, Tensor]] = field(default_factory=list)
    """Of each micro-batch of a validation, see `bundlerun.workers.report.evidence`."""
    num_unreadable: int = 0

    def add(self, share: Share, metrics: Mapping[str, Tensor]) -> None:
        """Adds one micro-batch.

        Raises:
            ConfigError: its loss says a weight and those before do not, or the other way round;
                or so with one of its metrics.
        """
        if self.loss is None:
            self.loss = _total(self.loss_slot, share.loss)
            self.metrics = {n: _total(self.metric_slots.get(n), v) for n, v in metrics.items()}
        # Sums and means cannot be added up: the whole step has to be of one kind.
        elif (self.weight is None) != (share.weight is None):
            raise ConfigError(
                "loss() gives (sum, weight) for some micro-batches and a mean for others; let it "
                "give the same for all"
            )
        elif metrics.keys() != self.metrics.keys():
            name = sorted(metrics.keys() ^ self.metrics.keys())[0]
            raise ConfigError(
                f"metrics() gives {name!r} for some micro-batches only; let it give the same names "
                "for all, with a tensor of 0 where there is nothing to count"
            )
        # One call for all: of a small model it is what a micro-batch takes.
        totals = [self.loss, *self.metrics.values()]
        found = [share.loss.detach(), *(metrics[name] for name in self.metrics)]
        torch._foreach_add_(totals, [_scalar(value) for value in found])
        if share.weight is not None:
            self.weight = share.weight + (0.0 if self.weight is None else self.weight)


def _total(slot: Tensor | None, value: Tensor) -> Tensor:
    """Zero, in float64 so that rounding does not grow with the number of micro-batches."""
    return torch.zeros((), dtype=torch.float64, device=value.device) if slot is None else slot


def _scalar(value: Tensor) -> Tensor:
    return value.reshape(()) if value.ndim else value


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSums:
    """The result of one step, or one evaluation, over all bundles; known on the last stage."""

    loss: float
    """Mean over the samples, or over what the recipe's losses weigh; NaN where a validation had no
    loss."""
    metrics: dict[str, float]
    """Means over the samples, such as {"top1": 0.97}."""
    score: float | None = None
    """How good a validation was, higher is better; known where the metrics are."""


def with_raw(averaged: StepSums, raw: StepSums) -> StepSums:
    """A validation of averaged weights, with that of the weights themselves under `raw_...`."""
    beside = {"loss": raw.loss, **raw.metrics}
    return replace(averaged, metrics=averaged.metrics | {RAW + n: v for n, v in beside.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The result of one step of training.

    Args:
        sums: over all bundles; None on other stages than the last, which do not know them.
        num_unreadable: samples that this rank could not read.
        has_changed: whether the step changed anything; false if it was left out.
        heard_stop: whether some bundle wanted to stop; all ranks agree.
        moves: whether all bundles were ready to go on in the next round; all ranks agree.
        loss_scale: the factor of the loss in this step; 0: there was none.
    """

    sums: StepSums | None
    num_unreadable: int
    has_changed: bool
    heard_stop: bool
    moves: bool = False
    loss_scale: float = 0.0
