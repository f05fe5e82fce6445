"""The metrics of a step, or of a validation, summed over the ranks of the last stage.

    the recipe has metric_names   each has its place among the small sums of the step
    it has not                    they are summed by themselves, after those of the step

In the latter case the rank with the first micro-batch of all tells the others the names, once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.workers.step import StepShare

AllSum = Callable[[Tensor], Tensor]
"""Sums float64 numbers over the replicas of the stage; collective."""


class MetricSums:
    """Knows the metrics by name; one for all training steps, and one for each validation.

    Args:
        names: of the metrics, the same on all ranks; None: the recipe does not say.
    """

    def __init__(self, names: tuple[str, ...] | None) -> None:
        self._declared = names
        self._agreed: tuple[str, ...] | None = None

    @property
    def num_slots(self) -> int:
        """Numbers among the small sums of a step."""
        return len(self._declared or ())

    def slots(self, sums: Tensor) -> dict[str, Tensor]:
        """Where among the small sums of a step each metric is added up, by name.

        Args:
            sums: float64, (num_slots,).
        """
        return dict(zip(self._declared or (), sums.unbind(), strict=True))

    def check(self, share: StepShare) -> None:
        """Raises ConfigError if `metrics()` gives other names than the recipe has declared."""
        if self._declared is not None and share.loss is not None:
            _check_names(share.metrics, self._declared, "the recipe's metric_names")

    def totals(
        self, slots: Sequence[float], share: StepShare, *, is_first: bool, all_sum: AllSum
    ) -> dict[str, float]:
        """The sums over all ranks by name; `slots` has those of what was added up in `slots`.

        Collective: all replicas of the stage, where the recipe has not declared names.

        Args:
            is_first: whether this rank had the first micro-batch of all.

        Raises:
            ConfigError: `metrics()` gives other names than it did in the first call.
        """
        if self._declared is not None:
            return dict(zip(self._declared, slots, strict=True))
        if self._agreed is None:
            # Once: all ranks come here in the same step, so the collective inside matches.
            self._agreed = _told_names(tuple(share.metrics) if is_first else None, all_sum)
        # A rank without a micro-batch takes part with zeros: the sum is a collective.
        device = None if share.loss is None else share.loss.device
        own = torch.zeros(len(self._agreed), dtype=torch.float64, device=device)
        if share.loss is not None:
            _check_names(share.metrics, self._agreed, "its first micro-batch")
            for index, name in enumerate(self._agreed):
                own[index] = share.metrics[name]
        found = all_sum(own).tolist() if self._agreed else []
        return dict(zip(self._agreed, found, strict=True))


def _told_names(own: tuple[str, ...] | None, all_sum: AllSum) -> tuple[str, ...]:
    """What the one rank that has names says; the others have None, and add zeros to its letters."""
    text = b"" if own is None else json.dumps(own).encode()
    # A sum with zeros is a broadcast; the length comes first, as all need a buffer of one size.
    length = all_sum(torch.tensor([len(text)], dtype=torch.float64))
    letters = torch.zeros(int(length.item()), dtype=torch.float64)
    if own is not None:
        # One float64 per byte: exact.
        letters[:] = torch.tensor(list(text))
    return tuple(json.loads(bytes(map(int, all_sum(letters).tolist()))))


def _check_names(found: Collection[str], names: Collection[str], whose: str) -> None:
    for name in found:
        if name not in names:
            raise ConfigError(
                f"metrics() gives {name!r}, which {whose} does not have; {nearest(name, names)}"
            )
    for name in names:
        if name not in found:
            raise ConfigError(
                f"metrics() does not give {name!r}, which {whose} has; give a tensor of 0 where "
                "there is nothing to count"
            )
