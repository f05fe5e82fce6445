"""Micro-batches of a run's own data, and how long one loading process takes for a sample."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.readers import Readers, Source, is_indexed, num_samples_of, read_first
from bundlerun.workers.data.samples import Answer, Batch, Request
from bundlerun.workers.recipe import DataSets
from bundlerun.workers.values.nest import leaf_values


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBatch:
    """The first samples of the data, and seconds of the processor for each of them."""

    batch: Batch
    samples: int
    load_s: float


def first_batch(data: DataSets, config: TrainConfig, samples: int) -> FirstBatch:
    """So many samples, as a loading process makes them.

    Raises:
        ConfigError: they cannot be read, or a stream has fewer.
    """
    # The first read opens files and imports what decodes them.
    _read(data, config, 1)
    start = time.thread_time()
    answer = _read(data, config, samples)
    spent = time.thread_time() - start
    if answer.batch is None:
        raise ConfigError(answer.messages[0])
    return FirstBatch(batch=answer.batch, samples=samples, load_s=spent / samples)


def _read(data: DataSets, config: TrainConfig, samples: int) -> Answer:
    source = Source.train(data)
    if is_indexed(source.samples):
        # An epoch's samples once more, where there are fewer.
        return Readers([source], config)[Request(0, range(samples))]
    if samples > num_samples_of(source):
        raise ConfigError(
            f"a profile of micro-batches of {samples} samples needs as many, and the data has "
            f"{num_samples_of(source)}; use a smaller --microbatch-size"
        )
    return read_first(data, config, samples)


def bytes_of(value: object) -> int:
    """Of all tensors in it."""
    return sum(leaf.nbytes for leaf in leaf_values(value) if isinstance(leaf, Tensor))
