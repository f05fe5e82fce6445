"""What is refused before anything starts."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from bundlerun.launcher.agreement.data_card import data_card
from bundlerun.launcher.errors import ConfigError, NodeError
from bundlerun.launcher.preflight import (
    check_data,
    check_torch,
    check_writable,
)


@pytest.mark.parametrize("version", ["2.10.1", "1.13.0+cpu", "nightly"])
def test_an_old_torch_is_refused_with_its_version(version: str) -> None:
    with pytest.raises(NodeError, match=f"torch {version.replace('+', '.')} is too old"):
        check_torch(lambda _: version)


@pytest.mark.parametrize("version", ["2.11.0", "2.15.0+cu130", "3.0.0a1"])
def test_a_newer_torch_is_taken(version: str) -> None:
    check_torch(lambda _: version)


def test_no_torch_says_how_to_get_it() -> None:
    def missing(_: str) -> str:
        raise PackageNotFoundError

    with pytest.raises(NodeError, match="pip install"):
        check_torch(missing)


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NodeError, match=r"--run-dir .*file' is a file; give a folder"):
        check_writable(tmp_path / "file" / "run", "--run-dir")


def test_a_folder_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(NodeError, match="no permission to write to"):
        check_writable(tmp_path / "run", "--run-dir")


def test_the_check_makes_no_folder(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "--run-dir")
    assert not list(tmp_path.iterdir())


def test_missing_data_is_named_and_synthetic_needs_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data at '/nowhere'"):
        check_data("/nowhere", "image-classification")
    check_data("synthetic", "image-classification")
    check_data(str(tmp_path), "image-classification")
    check_data("whatever it likes", "own.py")


def test_data_below_the_home_folder_may_be_given_by_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").mkdir()
    check_data("~/x", "image-classification")
    with pytest.raises(ConfigError, match="no data at '~nobody-here/x'"):
        check_data("~nobody-here/x", "image-classification")
    assert data_card("~nobody-here/x") == ""
