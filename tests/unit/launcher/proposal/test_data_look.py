from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.proposal.data_look import look_at_data


def image(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def test_class_folders_are_counted_and_measured(tmp_path: Path) -> None:
    for name in ("ape", "bat", "cat"):
        for number in range(4):
            image(tmp_path / "train" / name / f"{number}.png", (50 + number, 40))
    image(tmp_path / "train" / ".cache" / "x.png")
    (tmp_path / "train/ape/0.png").write_bytes(b"torn")
    look = look_at_data(str(tmp_path), synthetic_samples=1)
    assert (look.recipe, look.num_train, look.num_classes) == ("image-classification", 12, 3)
    assert (look.side, look.largest, look.num_opened) == (40, 53, 12)
    assert look.unreadable.endswith("train/ape/0.png")
    assert look.num_unreadable == 1
    assert not look.has_val


def test_of_many_class_folders_a_part_is_counted(tmp_path: Path) -> None:
    for number in range(100):
        folder = tmp_path / "train" / f"c{number}"
        folder.mkdir(parents=True)
        (folder / "a.jpg").touch()
        (folder / "b.jpg").touch()
    look = look_at_data(str(tmp_path), synthetic_samples=1)
    assert (look.num_train, look.is_counted, look.num_classes) == (200, False, 100)


@pytest.mark.parametrize(
    ("files", "recipe", "has_val"),
    [
        (["train-0.tar", "val-0.tar"], "image-classification", True),
        (["train/a.parquet"], "image-classification", False),
        (["train/images/a.png", "train/masks/a.png", "val/images/b.png"], "segmentation", True),
        (["annotations/instances_train2017.json"], "detection", True),
        (["train/_annotations.coco.json", "train/a.jpg"], "detection", True),
        (["train.csv"], "sequence-classification", True),
    ],
)
def test_a_layout_says_the_recipe(
    files: list[str], recipe: str, has_val: bool, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    look = look_at_data(str(tmp_path), synthetic_samples=1)
    assert (look.recipe, look.has_val) == (recipe, has_val)


def test_a_file_of_text_is_learnt_by_characters(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("a")
    assert look_at_data(str(tmp_path / "book.txt"), synthetic_samples=1).recipe == "characters"


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], "no data at"),
        (["data"], "has no folder 'train'"),
        (["data/train"], "has no class folders"),
    ],
)
def test_what_nothing_reads_is_refused(folders: list[str], message: str, tmp_path: Path) -> None:
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match=message):
        look_at_data(str(tmp_path / "data"), synthetic_samples=1)
