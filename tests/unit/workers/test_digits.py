"""The handwritten digits as an image folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from bundlerun.workers.data.image_folder import check_folder
from tests.extras import need

need("sklearn", "the digits come with scikit-learn")


def load_example() -> ModuleType:
    path = Path(__file__).parents[3] / "examples/write_digits.py"
    spec = importlib.util.spec_from_file_location("write_digits", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_example()


@pytest.fixture(scope="module")
def root(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "made" / "digits"
    assert example.main([str(root)]) == 0
    return root


def test_every_digit_is_written_in_the_layout_of_an_image_folder(root: Path) -> None:
    assert check_folder(root, needs_val=True) == [str(digit) for digit in range(10)]
    assert len(list(root.glob("*/*/*.png"))) == 1797
    with Image.open(root / "train/0/0000.png") as image:
        assert (image.size, image.mode) == ((8, 8), "L")


def test_a_fifth_of_each_class_is_held_out(root: Path) -> None:
    for digit in range(10):
        train, val = (len(list(root.glob(f"{part}/{digit}/*"))) for part in ("train", "val"))
        assert val == (train + val) // 5


def test_nothing_else_is_left_in_the_folder_above(root: Path) -> None:
    assert list(root.parent.iterdir()) == [root]


def test_a_second_call_changes_nothing(
    example: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = root / "train/0/0000.png"
    before = changed.stat().st_mtime_ns

    assert example.main([str(root)]) == 0

    assert changed.stat().st_mtime_ns == before
    assert "already there" in capsys.readouterr().out


def test_a_failed_attempt_leaves_nothing(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(root: Path) -> None:
        (root / "train").mkdir()
        raise OSError("no space left on device")

    monkeypatch.setattr(example, "_write_images", fail)
    with pytest.raises(OSError, match="no space"):
        example.write_digits(tmp_path / "digits")

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_clear_error(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    assert example.main([str(tmp_path / "file/digits")]) == 3

    assert "cannot write" in capsys.readouterr().err


def test_a_faster_process_wins(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "digits"

    def be_overtaken(beside: Path) -> None:
        (beside / "ours").touch()
        root.mkdir()
        (root / "theirs").touch()

    monkeypatch.setattr(example, "_write_images", be_overtaken)

    assert example.write_digits(root) is False
    assert [path.name for path in root.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [root]
