"""The list of images is that of torchvision, and is made once."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from bundlerun.workers.data import image_index
from bundlerun.workers.data.image_index import ImageIndex, open_index

LONG_AGO_S = 1_700_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "train"
    for name in ("b/2.png", "b/10.JPG", "b/deep/er/1.png", "a/x\n'y.png", "a/notes.txt", "c/é.png"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "b/empty").mkdir()
    age(root)
    return root


def age(root: Path, at_s: int = LONG_AGO_S) -> None:
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        os.utime(folder, (at_s, at_s))


def all_of(index: ImageIndex) -> list[tuple[str, int]]:
    return [index[i] for i in range(len(index))]


@pytest.fixture
def num_listed(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    calls: list[None] = []
    honest = image_index._listed

    def listed(root: Path, hidden: list[str]) -> list[image_index.Folder]:
        calls.append(None)
        return honest(root, hidden)

    monkeypatch.setattr(image_index, "_listed", listed)
    return calls


def test_the_images_are_those_of_torchvision_in_its_order(root: Path, tmp_path: Path) -> None:
    wanted = ImageFolder(root).samples
    assert len(wanted) == 5
    for kept_in in (None, tmp_path / "kept", tmp_path / "kept"):
        found = all_of(open_index(root, kept_in))
        assert [(os.path.normpath(path), number) for path, number in found] == wanted
        assert open_index(root, kept_in)[-1] == found[-1]
    with pytest.raises(IndexError):
        open_index(root, None)[5]


def test_the_next_start_lists_nothing(root: Path, tmp_path: Path, num_listed: list[None]) -> None:
    first = all_of(open_index(root, tmp_path / "kept"))
    assert all_of(open_index(root, tmp_path / "kept")) == first
    assert len(num_listed) == 1


CHANGES: dict[str, Callable[[Path], object]] = {
    "an image more": lambda root: (root / "a/new.png").touch(),
    "one less": lambda root: (root / "b/2.png").unlink(),
    "another name": lambda root: (root / "b/2.png").rename(root / "b/3.png"),
    "one deep inside": lambda root: (root / "b/deep/er/2.png").touch(),
    "one in an empty folder": lambda root: (root / "b/empty/2.png").touch(),
    "a class more": lambda root: ((root / "d").mkdir(), (root / "d/1.png").touch()),
    "a folder less": lambda root: (root / "b/empty").rmdir(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: str, root: Path, tmp_path: Path, num_listed: list[None]) -> None:
    open_index(root, tmp_path / "kept")
    CHANGES[change](root)
    found = all_of(open_index(root, tmp_path / "kept"))
    assert len(num_listed) == 2
    assert [(os.path.normpath(p), n) for p, n in found] == ImageFolder(root).samples


def test_what_has_changed_just_now_is_not_kept(
    root: Path, tmp_path: Path, num_listed: list[None]
) -> None:
    """A second change within a clock tick would leave the folder's mtime as it is."""
    (root / "a/new.png").touch()
    for _ in range(2):
        open_index(root, tmp_path / "kept")
    assert len(num_listed) == 2
    assert not (tmp_path / "kept").exists()


def test_a_damaged_list_is_made_again(root: Path, tmp_path: Path, num_listed: list[None]) -> None:
    wanted = all_of(open_index(root, tmp_path / "kept"))
    (path,) = (tmp_path / "kept").iterdir()
    whole, chance = path.read_bytes(), random.Random(1)
    for number in range(100):
        data = bytearray(whole)
        if number % 2:
            del data[chance.randrange(len(data)) :]
        else:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        assert all_of(open_index(root, tmp_path / "kept")) == wanted
    assert len(num_listed) == 101


def test_a_run_folder_that_cannot_be_written_costs_a_warning(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kept").touch()
    assert len(open_index(root, tmp_path / "kept")) == 5
    assert "cannot keep the list of images" in caplog.text
