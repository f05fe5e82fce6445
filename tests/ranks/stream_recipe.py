"""The synthetic images of the default recipe as a stream that shuffles itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

from torch.utils.data import IterableDataset

from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.data.order import sample_order
from bundlerun.workers.recipe import DataSets, Sample, SampleSet
from bundlerun.workers.recipes.image_classification import ImageClassification


class Streamed(IterableDataset[Sample]):
    """Samples in the order that they would have if they had numbers."""

    def __init__(self, samples: SampleSet, seed: int) -> None:
        self._samples, self._seed, self._epoch = samples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[Sample]:
        order = sample_order(self._seed, self._epoch, len(self._samples))
        # As data sets do that look at RANK.
        order = order[int(os.environ.get("PART_OF_STREAM", "0")) :]
        return (self._samples[index] for index in order)


class OfStream(ImageClassification):
    """The default recipe, over a stream."""

    def open_data(self) -> DataSets:
        data = super().open_data()
        count = len(data.train)
        return replace(data, train=Streamed(data.train, self._config.seed), num_train=count)


def recipe(config: TrainConfig) -> OfStream:
    """The recipe for this configuration."""
    return OfStream(config)
