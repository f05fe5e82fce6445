"""Image folders: what is wrong with one is said before training starts, in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.image_folder import ImageSamples, check_folder
from bundlerun.workers.recipe import UnreadableSample
from bundlerun.workers.recipes.image_classification import ImageClassification

Spoil = Callable[[Path], object]


def write_images(root: Path, *, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for part in ("train", "val"):
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (5, 4), (number, 0, 0)).save(folder / f"{number}.png")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_images(tmp_path / "with space 'and quote")


def as_red(image: object) -> Tensor:
    assert isinstance(image, Image.Image)
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return torch.tensor(pixel[0])


def _remove_classes(root: Path) -> None:
    for folder in (root / "train").iterdir():
        shutil.rmtree(folder)


def test_a_sound_folder_gives_its_classes_in_order(root: Path) -> None:
    assert check_folder(root, needs_val=True) == ["cat", "dog"]


def test_the_check_opens_no_image(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.write_bytes(b"")

    assert check_folder(root, needs_val=True) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "does not exist; an ImageFolder root is laid out as"),
        (lambda root: shutil.rmtree(root / "train"), "has no folder 'train'; an ImageFolder root"),
        (lambda root: shutil.rmtree(root / "val"), "has no folder 'val'; .* or use --no-validate$"),
        (lambda root: shutil.rmtree(root / "train/cat"), "missing in train: 'cat'; both need the"),
        (lambda root: shutil.rmtree(root / "val/dog"), "missing in val: 'dog'; both need the same"),
        (lambda root: [f.unlink() for f in root.glob("train/*/*")], "no image in the 2 class fold"),
        (lambda root: [f.unlink() for f in root.glob("val/*/*")], 'no image .*val"; an image ends'),
        (_remove_classes, "has no class folders; an"),
    ],
)
def test_a_spoilt_folder_is_refused(root: Path, spoil: Spoil, message: str) -> None:
    spoil(root)

    with pytest.raises(ConfigError, match=message):
        check_folder(root, needs_val=True)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match=r"file' is no folder; an ImageFolder root is"):
        check_folder(tmp_path / "file", needs_val=False)


def test_val_is_not_needed_without_validation(root: Path) -> None:
    shutil.rmtree(root / "val")

    assert check_folder(root, needs_val=False) == ["cat", "dog"]


def test_samples_come_in_order_of_their_path_with_the_number_of_their_class(root: Path) -> None:
    samples = ImageSamples(root / "train", as_red)

    assert [(int(image), target) for image, target in map(samples.__getitem__, range(4))] == [
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
    ]
    assert len(samples) == 4


def test_one_empty_class_folder_is_refused_when_the_images_are_listed(root: Path) -> None:
    for path in (root / "train/dog").iterdir():
        path.unlink()

    with pytest.raises(ConfigError, match=r"cannot use .*no valid file for the classes dog"):
        ImageSamples(root / "train", as_red)


def _cut_short(path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:-500])


def _spoil_pixels(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 4] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b""), "cannot identify image file"),
        (lambda path: path.write_bytes(b"no image"), "cannot identify image file"),
        (_cut_short, "image file is truncated"),
        (_spoil_pixels, "broken|zlib|decoding|decoder|truncated"),
        (lambda path: path.unlink(), "No such file or directory"),
    ],
)
def test_an_unreadable_image_is_named(root: Path, spoil: Spoil, reason: str) -> None:
    samples = ImageSamples(root / "train", as_red)
    path = root / "train/cat/1.png"
    spoil(path)

    with pytest.raises(UnreadableSample, match=reason) as caught:
        samples[1]

    assert str(caught.value).startswith(f"cannot read the image {str(path)!r}: ")
    assert str(caught.value).count(path.name) == 1
    assert "\n" not in str(caught.value)


def test_hidden_folders_are_no_classes_and_hidden_files_no_images(root: Path) -> None:
    plain = ImageSamples(root / "train", as_red)
    assert plain.hidden == []
    for name in (".ipynb_checkpoints", "cat/.ipynb_checkpoints"):
        shutil.copytree(root / "train" / "dog", root / "train" / name)
    shutil.copytree(root / "val" / "dog", root / "val" / ".ipynb_checkpoints")
    (root / "train" / "cat" / "._0.png").write_bytes(b"no image")

    assert check_folder(root, needs_val=True) == ["cat", "dog"]
    samples = ImageSamples(root / "train", as_red)
    assert samples.names_digest() == plain.names_digest()
    assert {Path(name).name for name in samples.hidden} == {".ipynb_checkpoints", "._0.png"}
    assert len(samples.hidden) == 3
    assert [samples[i][1] for i in range(len(samples))] == [0, 0, 1, 1]


def test_what_is_hidden_is_said_with_one_example(root: Path, tmp_path: Path) -> None:
    (root / "train" / ".cache").mkdir()
    config = TrainConfig(data=str(root), run_dir=str(tmp_path / "run"))
    remarks = ImageClassification(config).open_data().remarks
    assert len(remarks) == 1
    assert "1 hidden files and folders are left out, such as" in remarks[0]
    assert ".cache" in remarks[0]


def test_an_image_of_unknown_scale_is_named(root: Path) -> None:
    path = root / "train" / "cat" / "0.tif"
    Image.new("F", (2, 2), 300.0).save(path)
    samples = ImageSamples(root / "train", as_red)
    with pytest.raises(UnreadableSample, match=r"0.tif.: its pixels are real numbers from 300 to"):
        _ = samples[1]  # behind 0.png
