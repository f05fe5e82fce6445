"""Which files are images, of those that are named and in the folders that are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bundlerun.launcher.commands.use.predict import image_files
from bundlerun.launcher.errors import ConfigError


def test_images_of_a_folder_come_in_order_and_hidden_ones_do_not(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "a/1.jpg", "a/.3.jpg", "a/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = list(image_files([str(tmp_path), "as_typed.bin"]))
    assert found == [str(tmp_path / "a/1.jpg"), str(tmp_path / "b/2.PNG"), "as_typed.bin"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no image in the folder"):
        list(image_files([str(tmp_path)]))


def test_a_folder_that_may_not_be_read_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigError, match=r"cannot list '.*': Permission denied"):
        list(image_files([str(tmp_path)]))
