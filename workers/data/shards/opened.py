"""The images in the shards of DATA, for training and for validation, and their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bundlerun.workers.data.shards.classes import check_classes, count_classes, is_sorted, names_of
from bundlerun.workers.data.shards.find import find_shards
from bundlerun.workers.data.shards.parquet_records import ParquetRecords
from bundlerun.workers.data.shards.records import Records, ShardImages
from bundlerun.workers.data.shards.tables import check_pyarrow
from bundlerun.workers.data.shards.tar_records import TarRecords
from bundlerun.workers.data.views import View


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageShards:
    """The images that shards have.

    Args:
        train: of them.
        val: of them; None: there is no validation.
        num_classes: of the labels.
        classes: their names, or else their numbers.
        remarks: lines about them.
    """

    train: ShardImages
    val: ShardImages | None
    num_classes: int
    classes: Sequence[str]
    remarks: Sequence[str]


def check_shards(root: Path, *, needs_val: bool) -> None:
    """Raises ConfigError where shards are not laid out as they should be; opens none."""
    if find_shards(root, needs_val=needs_val).kind == ".parquet":
        check_pyarrow(root)


def open_shards(
    root: Path,
    views: tuple[View, View],
    *,
    needs_val: bool,
    is_fast: bool,
    window: int,
    num_classes: int,
    kept_in: Path | None,
) -> ImageShards:
    """Finds the images in the shards of DATA.

    Args:
        root: DATA.
        views: in training and in validation; from a PIL image in mode RGB to a tensor.
        needs_val: whether there must be shards for validation.
        is_fast: see `ShardImages`.
        window: images that are shuffled together; 0: all; -1: as the kind of shards has it.
        num_classes: what --num-classes says; 0: nothing.
        kept_in: where indexes are kept for the next start; None: nowhere.

    Raises:
        ConfigError: a shard cannot be used, or an image has a number that is no class.
    """
    found = find_shards(root, needs_val=needs_val)
    opened = partial(_records, kind=found.kind, window=window, kept_in=kept_in)
    records = opened(found.train)
    names = names_of(root) or list(getattr(records, "names", ()))
    count = count_classes(records.labels, records.place, names, num_classes)
    images = partial(ShardImages, is_fast=is_fast, window=window)
    train, val = images(records, views[0]), None
    if found.val:
        of_val = opened(found.val)
        check_classes(of_val.labels, of_val.place, count)
        val = images(of_val, views[1])
    return ImageShards(
        train=train,
        val=val,
        num_classes=count,
        classes=names or [str(number) for number in range(count)],
        remarks=[*records.remarks(), *_remarks(train)],
    )


def _records(shards: Sequence[Path], *, kind: str, window: int, kept_in: Path | None) -> Records:
    if kind == ".tar":
        return TarRecords(shards, kept_in)
    return ParquetRecords(shards, window)


def _remarks(train: ShardImages) -> list[str]:
    if train.is_shuffled_whole or not is_sorted(train.labels):
        return []
    return [
        "the images lie in the shards in order of their classes, and only some of them are "
        "shuffled together: a batch has few classes; write the shards in a random order, or give "
        "a larger --shuffle-window (0: all)"
    ]
