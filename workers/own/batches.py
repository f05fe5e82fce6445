"""A batch of a user's own loop in micro-batches."""

from __future__ import annotations

from enum import Enum
from typing import Any

from torch import Tensor

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.values.nest import leaves, mapped


class Use(Enum):
    """What a batch is for; what to do where it has another number of samples."""

    STEP = (
        "in a step; leave the rest of an epoch out (drop_last=True), or make the bundle with "
        "another batch_size"
    )
    EVALUATION = (
        "in this evaluation; num_samples= says how many it has, the same number in all bundles"
    )


def arguments_of(inputs: object) -> tuple[Any, ...]:
    """What the model is called with: a tuple has several arguments."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def cut_batch(
    inputs: object, targets: object, num_samples: int, samples: int, use: Use
) -> list[Batch]:
    """The micro-batches of a batch, in order; the last may be smaller.

    Args:
        inputs, targets: nested tensors whose first dimension is that of the samples.
        num_samples: that there should be.
        samples: of a micro-batch.
        use: of the batch.

    Raises:
        ConfigError: there are others, or none.
    """
    if inputs is None:
        raise ConfigError(
            "no batch on a rank that has the first stage; give it one: where bundle.is_first, or "
            "on all ranks"
        )
    if targets is None:
        raise ConfigError(
            "the loss is of outputs and targets, and there are no targets; give them with the "
            "batch, as the second argument (the inputs once more, where there are none)"
        )
    arguments = arguments_of(inputs)
    _check_sizes(arguments, num_samples, "the batch has", use)
    _check_sizes(targets, num_samples, "the targets have", use)
    return [
        Batch(_part(arguments, begin, samples), _part(targets, begin, samples), 0)
        for begin in range(0, num_samples, samples)
    ]


def _part(value: object, begin: int, count: int) -> Any:  # noqa: ANN401 (as `value` is)
    return mapped(lambda t: t[begin : begin + count] if isinstance(t, Tensor) else t, value)


def _check_sizes(value: object, num_samples: int, what: str, use: Use) -> None:
    """Raises ConfigError where a tensor in it has another number of samples."""
    for place, leaf in leaves(value):
        if isinstance(leaf, Tensor) and (not leaf.ndim or len(leaf) != num_samples):
            has = f"{len(leaf) if leaf.ndim else 'no'} samples{place and f' at {place}'}"
            raise ConfigError(f"{what} {has}, and this bundle does {num_samples} {use.value}")
