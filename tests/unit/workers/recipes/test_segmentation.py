"""The recipe for classes of pixels: its files, loss, intersection over union, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.recipe import UnreadableSample, load_recipe
from bundlerun.workers.recipes.segmentation import Segmentation
from tests.unit.workers.recipes.recipe_use import info_of, module_of, opened, refusal, tensors

SIDE, CLASSES = 8, 3


def write_images(root: Path, count: int = 4) -> None:
    """Images that are red where a pixel is of class 1, blue where of 2; a corner is ignored."""
    numbers = np.random.default_rng(3)
    for part in ("train", "val"):
        for name in ("images/a", "masks/a"):
            (root / part / name).mkdir(parents=True)
        for n in range(count):
            mask = np.repeat(np.repeat(numbers.integers(0, CLASSES, (4, 4)), 4, 0), 4, 1)
            image = np.zeros((16, 16, 3), np.uint8)
            image[mask == 1, 0] = image[mask == 2, 2] = 255
            mask[:4, :4] = 255
            Image.fromarray(image).save(root / part / "images/a" / f"{n}.bmp")
            Image.fromarray(mask.astype(np.uint8)).save(root / part / "masks/a" / f"{n}.png")


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    write_images(tmp_path / "data")
    return TrainConfig(
        data=str(tmp_path / "data"),
        recipe="segmentation",
        model="torchvision:lraspp_mobilenet_v3_large",
        num_classes=CLASSES,
        image_size=SIDE,
        augment="none",
        run_dir=str(tmp_path / "run"),
    )


def test_image_and_mask_are_cut_and_mirrored_alike(config: TrainConfig) -> None:
    for augment in ("none", "imagenet"):
        data = opened(replace(config, augment=augment))
        assert (len(data.train), len(data.val)) == (4, 4)
        for seed in range(8):
            torch.manual_seed(seed)
            image, mask = tensors(data.train, seed % 4)
            assert (image.shape, mask.shape) == ((3, SIDE, SIDE), (SIDE, SIDE))
            assert image.dtype == mask.dtype == torch.uint8
            # What is surely of one colour is of that class, but for borders and the corner.
            for colour, number in ((0, 1), (2, 2)):
                sure = (image[colour] > 250) & (mask != 255)
                assert (mask[sure] == number).all()
        assert data.about["ignore_index"] == 255
    assert data.train.names_digest() == data.val.names_digest()


def test_the_loss_is_over_pixels_that_count_and_has_the_auxiliary_head(config: TrainConfig) -> None:
    recipe = Segmentation(config)
    torch.manual_seed(0)
    out, aux = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    target = torch.randint(0, 3, (2, 4, 4)).to(torch.uint8)
    target[0, :2] = 255
    total, weight = recipe.loss({"out": out, "aux": aux}, target)

    def mean(logits: Tensor) -> Tensor:
        return cross_entropy(logits, target.long(), ignore_index=255)

    assert weight.item() == 24
    assert (total / weight).item() == pytest.approx((mean(out) + 0.5 * mean(aux)).item(), rel=1e-6)
    alone, _ = recipe.loss(out, target)
    assert (alone / weight).item() == pytest.approx(mean(out).item(), rel=1e-6)
    # Logits for every second pixel are spread out.
    small, _ = recipe.loss({"logits": torch.zeros(2, 3, 2, 2)}, target)
    assert (small / weight).item() == pytest.approx(np.log(3), rel=1e-6)
    with pytest.raises(ConfigError, match="returns dict with 'boxes'"):
        recipe.loss({"boxes": out}, target)


def test_intersection_over_union_is_over_all_pixels_of_all_images(config: TrainConfig) -> None:
    recipe = Segmentation(config)
    torch.manual_seed(1)
    logits, target = torch.randn(6, 4, 5, 5), torch.randint(0, 3, (6, 5, 5))
    target[:, 0] = 255
    sums: dict[str, float] = {}
    for part in (slice(0, 2), slice(2, 6)):
        for name, value in recipe.metrics({"out": logits[part]}, target[part]).items():
            sums[name] = sums.get(name, 0.0) + value.item()
    told = recipe.final_metrics(1.0, {name: value / 6 for name, value in sums.items()})
    found, counts = logits.argmax(1), target != 255
    wanted = {}
    for n in range(4):
        both = (found == n) & (target == n)
        either = ((found == n) | (target == n)) & counts
        wanted[n] = (both.sum() / either.sum()).item()
    assert {n: told[f"iou_{n}"] for n in range(4)} == pytest.approx(wanted)
    assert told["miou"] == pytest.approx(sum(wanted.values()) / 4)
    assert told["accuracy"] == pytest.approx((found == target)[counts].double().mean().item())
    # A class that does not occur is no part of the mean.
    nothing = {**{k: 0.0 for k in sums}, "pixels": 2.0, "right_1": 1.0, "union_1": 2.0}
    assert recipe.final_metrics(1.0, nothing) == {"miou": 0.5, "accuracy": 0.5, "iou_1": 0.5}


def test_a_model_of_torchvision_computes_a_loss(config: TrainConfig) -> None:
    recipe = load_recipe(config)
    data = recipe.open_data()
    model = module_of(recipe, info_of(data)).eval()
    image, mask = tensors(data.train, 0)
    scaled = recipe.on_device(image[None])  # type: ignore[attr-defined]
    assert scaled.dtype is torch.float32
    total, weight = recipe.loss(model(scaled), mask[None])
    assert weight.item() == 60
    assert torch.as_tensor(total).isfinite()


def test_wrong_input_is_one_line(config: TrainConfig, tmp_path: Path) -> None:
    root = tmp_path / "data"
    assert "nothing says how many classes" in refusal(replace(config, num_classes=0))
    (root / "classes.txt").write_text("sky\nroad\ntree\n")
    assert opened(replace(config, num_classes=0)).about["classes"] == ["sky", "road", "tree"]
    assert "is less than the 3 names" in refusal(replace(config, num_classes=2))
    (root / "classes.txt").unlink()
    said = refusal(replace(config, num_classes=2))
    assert "/0.png' has the label 2 at row " in said
    assert "labels are 0 to 1, or --ignore-index 255" in said
    assert "has the label 255 at row 0, column 0" in refusal(replace(config, ignore_index=9))
    assert "unknown --model 'resnet19'" in refusal(replace(config, model="resnet19"))
    mask = root / "train/masks/a/1.png"
    Image.new("RGB", (16, 16)).save(mask)
    assert "of Pillow's mode RGB" in refusal(config)
    Image.new("L", (16, 8)).save(mask)
    with pytest.raises(ConfigError, match="has 16x16 pixels, its mask 16x8"):
        opened(config).train[1]
    mask.write_bytes(b"no image")
    with pytest.raises(UnreadableSample, match="cannot read the image"):
        opened(config).train[1]
    mask.unlink()
    assert "1 of 4 images of " in refusal(config)
    assert "has no folder 'train/images'" in refusal(replace(config, data=str(tmp_path)))
