"""Which shards of DATA are used, and which folders cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.shards.find import find_shards, has_shards


def root_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("names", "train", "val"),
    [
        (
            ["train/b.tar", "train/a.tar", "val/a.tar", "train/.x.tar"],
            ["a.tar", "b.tar"],
            ["a.tar"],
        ),
        (
            ["train-0.tar", "train-1.tar", "val-0.tar", "README"],
            ["train-0.tar", "train-1.tar"],
            ["val-0.tar"],
        ),
        (
            ["train-0.PARQUET", "validation-0.parquet"],
            ["train-0.PARQUET"],
            ["validation-0.parquet"],
        ),
        (["train/0.parquet", "validation/0.parquet"], ["0.parquet"], ["0.parquet"]),
    ],
)
def test_shards_are_found_in_either_layout(
    names: list[str], train: list[str], val: list[str], tmp_path: Path
) -> None:
    root = root_of(tmp_path, *names)
    assert has_shards(root)
    found = find_shards(root, needs_val=True)
    assert ([p.name for p in found.train], [p.name for p in found.val]) == (train, val)
    assert not find_shards(root, needs_val=False).val


def test_without_validation_any_names_will_do(tmp_path: Path) -> None:
    root = root_of(tmp_path, "b.tar", "a.tar")
    assert [p.name for p in find_shards(root, needs_val=False).train] == ["a.tar", "b.tar"]


def test_class_folders_are_no_shards(tmp_path: Path) -> None:
    assert not has_shards(root_of(tmp_path, "train/a/1.jpg", "val/a/1.jpg", "train/notes.txt"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.tar"], "nothing says which shards of DATA .* are for val: .* or use --no-validate"),
        (["train/a.tar"], "nothing says which shards of DATA .* are for val"),
        (["val-0.tar"], "has no shards for train; shards are DATA/train/NAME.tar and"),
        (["train-0.tar", "val-0.parquet"], "of two kinds, 'train-0.tar' and 'val-0.parquet'"),
        (["train/0.tar.gz", "val/0.tar"], "0.tar.gz' is compressed, .*; unpack it to a plain .tar"),
        (["train/0.tar", "train/cat/1.jpg", "val/0.tar"], "has shards and class folders, such as"),
        (
            ["train-0.tar", "train/0.tar"],
            r"has shards \('train-0.tar'\), and so has its folder 'tr",
        ),
    ],
    ids=str,
)
def test_what_is_mixed_or_missing_is_one_line(
    names: list[str], message: str, tmp_path: Path
) -> None:
    root = root_of(tmp_path, *names)
    assert has_shards(root)
    with pytest.raises(ConfigError, match=message) as caught:
        find_shards(root, needs_val=True)
    assert "\n" not in str(caught.value)
