"""Images in shards, one by one: what a .tar and a .parquet have in common."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from bundlerun.workers.data.image_folder import image_of, readable
from bundlerun.workers.data.order import block_order
from bundlerun.workers.data.views import Seen

Labels = np.ndarray[Any, np.dtype[np.int64]]
"""(samples,): the number of the class of each."""


class Records(Protocol):
    """The images of some shards, by number."""

    labels: Labels
    blocks: Sequence[int]
    """Images of each piece of the shards that is read, or near, together, in order."""
    window: int
    """Images that are shuffled together, unless the user says it; 0: all."""
    run: int
    """Images of a block that stay next to each other in a window."""

    def read(self, index: int, /) -> bytes:
        """The file of an image.

        Raises:
            OSError, ValueError: it cannot be read.
        """
        ...

    def place(self, index: int, /) -> str:
        """Where it is, for messages."""
        ...

    def remarks(self) -> list[str]:
        """Lines about how they are stored."""
        ...

    def digest(self) -> str:
        """Of all that tells these images from others, wherever the shards are stored."""
        ...


class ShardImages:
    """(image, class) of each image, in the order in which the shards have them.

    Args:
        records: the files of the images.
        view: from a PIL image in mode RGB to a tensor.
        is_fast: JPEG files come to `view` as tensors, see `jpeg.pixels_of_jpeg`.
        window: images that are shuffled together; 0: all; -1: as the records have it.
    """

    def __init__(
        self, records: Records, view: Callable[[Any], Seen], *, is_fast: bool, window: int
    ) -> None:
        self._records = records
        self._view = view
        self._is_fast = is_fast
        self._window = records.window if window < 0 else window

    def __len__(self) -> int:
        return len(self._records.labels)

    def __getitem__(self, index: int, /) -> tuple[Seen, int]:
        """What is seen of the image, and its class.

        Raises:
            UnreadableSample: the image is damaged, or its shard cannot be read any more.
        """
        number = range(len(self))[index]
        with readable(lambda: self._records.place(number)):
            image = image_of(io.BytesIO(self._records.read(number)), is_fast=self._is_fast)
        return self._view(image), int(self._records.labels[number])

    def epoch_order(self, seed: int, epoch: int) -> list[int]:
        """The order in which an epoch uses them; see `bundlerun.workers.recipe.SampleSet`."""
        return block_order(seed, epoch, self._records.blocks, self._window, self._records.run)

    def names_digest(self) -> str:
        """For `bundlerun.workers.data.same_data`."""
        return self._records.digest()

    @property
    def labels(self) -> Labels:
        """The number of the class of each."""
        return self._records.labels

    @property
    def is_shuffled_whole(self) -> bool:
        """Whether any image may come next to any other."""
        return not self._window or self._window >= len(self)
