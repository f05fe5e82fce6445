"""The recipe for boxes: its files, the model's losses, what is told of a validation, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.collate import Collate
from bundlerun.workers.recipe import UnreadableSample, model_inputs
from bundlerun.workers.recipes.detection import Detection
from tests.unit.workers.data.boxed import told_of, write_boxed, write_told
from tests.unit.workers.recipes.recipe_use import info_of, module_of, opened, refusal

MODEL = Path(__file__).parents[3] / "ranks/tiny_detector.py"


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    write_boxed(tmp_path / "data", val=3)
    return TrainConfig(
        data=str(tmp_path / "data"),
        recipe="detection",
        model=f"{MODEL}:of_two_passes",
        run_dir=str(tmp_path / "run"),
    )


def test_a_model_learns_by_its_own_losses_and_is_judged_by_its_detections(
    config: TrainConfig,
) -> None:
    recipe = Detection(config)
    data = opened(config)
    assert data.num_outputs == 3
    assert data.about["classes"] == ["background", "red", "green"]
    model = module_of(recipe, info_of(data))
    batch, target = Collate.of(data, data.val)([data.val[n] for n in range(2)], [0, 1])
    images, targets = model_inputs(recipe, batch)
    assert all(image.dtype is torch.float32 and image.max() <= 1 for image in images)
    losses = model(images, targets)
    wanted = sum(losses.values())
    assert recipe.loss(losses, target).item() == pytest.approx(wanted.item())  # type: ignore[union-attr]
    told = recipe.metrics(losses, target)
    assert told["loss_classifier"].item() == pytest.approx(2 * losses["loss_classifier"].item())
    output = model.eval()(images, targets)
    assert recipe.loss(output, target) is None
    assert recipe.metrics(output, target) == {}
    judged = recipe.judged(recipe.evidence(output, target))
    assert judged.keys() == {"map", "map_50", "map_75", "ap_1", "ap_2"}
    # What is there, found as it is, is right.
    perfect = [{**truth, "scores": torch.ones(len(truth["labels"]))} for truth in target]
    assert recipe.judged(recipe.evidence(perfect, target))["map"] == pytest.approx(1.0)
    # Models that were scripted give both in one.
    assert recipe.loss((losses, []), target) is not None
    assert recipe.loss(({}, perfect), target) is None


def test_what_is_no_output_of_a_detection_model_is_refused(config: TrainConfig) -> None:
    recipe = Detection(config)
    for output in (torch.zeros(2, 3), {"out": torch.zeros(2, 3)}, [torch.zeros(3)]):
        with pytest.raises(ConfigError, match=r"the model returns a .* returns a dict of losses"):
            recipe.loss(output, [])


def test_labels_are_counted_or_are_the_numbers_of_the_categories(config: TrainConfig) -> None:
    assert opened(config).train[1].target["labels"].tolist() == [1, 2]
    as_they_are = opened(replace(config, num_classes=91))
    assert as_they_are.num_outputs == 91
    assert as_they_are.train[1].target["labels"].tolist() == [3, 7]
    assert opened(replace(config, model="torchvision:maskrcnn_resnet50_fpn")).train[0].target.keys()
    assert "masks" not in opened(config).train[0].target


def test_wrong_input_is_one_line(config: TrainConfig, tmp_path: Path) -> None:
    root = tmp_path / "data"
    assert "unknown --model 'fasterrcnn'" in refusal(replace(config, model="fasterrcnn"))
    assert "is not 1 to 6" in refusal(replace(config, num_classes=7))
    keypoints = replace(config, model="torchvision:keypointrcnn_resnet50_fpn")
    assert "here with 'person_keypoints' for 'instances'" in refusal(keypoints)
    told = told_of(root)

    def with_first(**changes: object) -> str:
        row = {**told["annotations"][0], **changes}
        write_told(root, "train2017", {**told, "annotations": [row]})
        return refusal(config)

    assert "annotation 1 of " in with_first(category_id=4)
    assert "has the label 4; the categories of the training data are 3, 7" in with_first(
        category_id=4
    )
    assert "is about image 99, which the file has not" in with_first(image_id=99)
    assert "has the box [1, 2, 3]; a box is [left, top, width, height]" in with_first(
        bbox=[1, 2, 3]
    )
    assert "has the box [1, 2, NaN, 4]" in with_first(bbox=[1, 2, float("nan"), 4])
    assert "has no images with boxes to learn from" in with_first(bbox=[1, 2, 0, 4])
    write_told(root, "train2017", {**told, "images": [*told["images"], told["images"][0]]})
    assert "each has an id of its own" in refusal(config)
    write_told(root, "train2017", {"images": []})
    assert "has no list 'annotations'" in refusal(config)
    write_told(root, "train2017", told)
    val = told_of(root, "val2017")
    val["categories"][0]["name"] = "blue"
    write_told(root, "val2017", val)
    assert "category 3 is 'blue' in " in refusal(config)
    (root / "annotations/instances_val2017.json").unlink()
    assert "has no annotations for val; " in refusal(config)
    config = replace(config, validate=False)
    image = root / "train2017/1.png"
    data = image.read_bytes()
    image.write_bytes((root / "train2017/0.png").read_bytes())
    with pytest.raises(ConfigError, match="its boxes do not fit"):
        opened(config).train[1]
    image.write_bytes(data[:40])
    with pytest.raises(UnreadableSample, match="cannot read the image"):
        opened(config).train[1]
    image.unlink()
    assert "1 of 4 images of " in refusal(config)
    assert "such as '1.png'" in refusal(config)


def test_samples_of_a_micro_batch_keep_their_own_sizes(config: TrainConfig) -> None:
    data = opened(config)
    samples = [data.train[n] for n in range(3)]
    inputs, _ = Collate.of(data, data.train)(samples, [0, 1, 2])
    images: list[Tensor] = inputs[0]
    assert [image.shape for image in images] == [sample.image.shape for sample in samples]
    assert len({image.shape for image in images}) > 1
