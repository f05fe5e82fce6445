"""Annotations in COCO's form: what is read of them, mirrored with the image, and left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.boxes.annotations import Extra, read_annotations, read_categories
from bundlerun.workers.data.boxes.images import BoxedImages, is_learnt_from
from bundlerun.workers.data.boxes.layout import find_part
from bundlerun.workers.data.boxes.masks import mask_of
from tests.unit.workers.data.boxed import told_of, write_boxed, write_told


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_boxed(tmp_path / "data")
    return tmp_path / "data"


def images_of(root: Path, extra: Extra | None = None, *, is_random: bool = False) -> BoxedImages:
    paths = find_part(root, "train")
    categories = read_categories(paths.annotations)
    notes = read_annotations(paths.annotations, categories, extra).images
    return BoxedImages(
        paths, notes, categories, extra=extra, is_random=is_random, is_judged=not is_random
    )


def test_boxes_and_masks_stay_on_their_things_in_a_mirror(root: Path) -> None:
    samples = images_of(root, "masks", is_random=True)
    samples.check_there()
    is_mirrored = set()
    for seed in range(6):
        torch.manual_seed(seed)
        image, target, truth = samples[1]
        assert image.dtype is torch.uint8
        assert truth.keys() == {"image"}
        assert target["labels"].tolist() == [1, 2]
        assert target["masks"].shape == (2, *image.shape[1:])
        is_mirrored.add(tuple(target["boxes"].flatten().tolist()))
        left, top, right, bottom = target["boxes"][1].int().tolist()
        # The second one hides nothing of itself: all of it is green, and so is nothing else.
        green = (image[1] == 255).nonzero()
        assert green.min(dim=0).values.tolist() == [top, left]
        assert green.max(dim=0).values.tolist() == [bottom - 1, right - 1]
        assert torch.equal(target["masks"][1].bool(), image[1] == 255)
    assert len(is_mirrored) == 2
    (images, targets), truths = images_of(root).collate([images_of(root)[n] for n in range(3)])
    assert [len(image) for image in images] == [3, 3, 3]
    assert len(targets) == len(truths) == 3
    assert [truth["image"].tolist() for truth in truths] == [[0], [1], [2]]


def test_what_is_outside_is_cut_off_and_what_has_no_area_left_out(root: Path) -> None:
    told = told_of(root)
    width, height = told["images"][0]["width"], told["images"][0]["height"]
    like = told["annotations"][0]
    told["annotations"] = [
        {**like, "id": n, "bbox": box, "iscrowd": n == 4}
        for n, box in enumerate(
            [[-4, 2, 10, 1000], [width, 0, 5, 5], [3, 3, 0, 5], [2, -9, 4, 8.5], [1, 1, 5, 5]]
        )
    ]
    write_told(root, "train2017", told)
    path = find_part(root, "train").annotations
    read = read_annotations(path, read_categories(path))
    first = read.images[0]
    assert first.boxes.tolist() == [[0, 2, 6, height], [1, 1, 6, 6]]
    assert first.crowds.tolist() == [False, True]
    assert read.num_without_area == 3
    assert [is_learnt_from(notes, None) for notes in read.images] == [True, False, False, False]
    sample = images_of(root)[0]
    assert sample.target["boxes"].tolist() == [[0, 2, 6, height]]
    assert sample.truth["crowds"].tolist() == [False, True]
    # An image without any box is a sample of its own, as in validation.
    bare = images_of(root, "masks")[1].target
    assert bare["boxes"].shape == (0, 4)
    assert bare["masks"].shape == (0, *images_of(root)[1].image.shape[1:])


def test_key_points_change_places_in_a_mirror(root: Path) -> None:
    told = told_of(root)
    names = ["nose", "left_eye", "right_eye"]
    told["categories"] = [{**each, "keypoints": names} for each in told["categories"]]
    for row in told["annotations"]:
        row["keypoints"] = [4, 5, 2, 2, 3, 1, 0, 0, 0]
    write_told(root, "train2017", told)
    plain = images_of(root, "keypoints")[0].target["keypoints"]
    assert plain.tolist() == [[[4, 5, 2], [2, 3, 1], [0, 0, 0]]]
    found = set()
    samples = images_of(root, "keypoints", is_random=True)
    for seed in range(6):
        torch.manual_seed(seed)
        image, target, _ = samples[0]
        found.add(tuple(target["keypoints"].flatten().tolist()))
    width = image.shape[2]
    mirrored = (width - 4, 5, 2, 0, 0, 0, width - 2, 3, 1)
    assert found == {tuple(plain.flatten().tolist()), mirrored}


def test_masks_of_runs_are_those_of_polygons() -> None:
    wanted = np.zeros((5, 6), np.uint8)
    wanted[1:4, 2:5] = 1
    polygon = [[2.0, 1.0, 5.0, 1.0, 5.0, 4.0, 2.0, 4.0]]
    runs = {"size": [5, 6], "counts": [11, 3, 2, 3, 2, 3, 6]}
    # As `encode` of pycocotools 2.0.11 writes it.
    packed = {"size": [5, 6], "counts": ";320004"}
    for segmentation in (polygon, runs, packed):
        assert np.array_equal(mask_of(segmentation, (6, 5)), wanted), segmentation
    for wrong in ("ab", [[1, 2]], {"size": [6, 5], "counts": [30]}, {**runs, "counts": [1]}):
        with pytest.raises(ValueError, match=r"it is|a polygon|its size|its runs"):
            mask_of(wrong, (6, 5))


def test_categories_are_found_without_the_rest_of_the_file(root: Path) -> None:
    path = find_part(root, "train").annotations
    found = read_categories(path)
    assert found.labels == {3: 1, 7: 2}
    assert found.by_label == ["", "red", "green"]
    assert read_categories(path, 91).labels == {3: 3, 7: 7}
    with pytest.raises(ConfigError, match=r"category 7 \('green'\) .* is not 1 to 5"):
        read_categories(path, 6)
    # A file that is not whole is told where all of it is read.
    path.write_text(path.read_text().replace('"annotations": [', '"annotations": [oops'))
    assert read_categories(path) == found
    with pytest.raises(ConfigError, match="is no JSON: Expecting value"):
        read_annotations(path, found)


def test_the_layout_of_roboflow_is_found_too(root: Path) -> None:
    told = told_of(root)
    write_told(root, "train2014", told)
    with pytest.raises(ConfigError, match=r"several files of annotations for train"):
        find_part(root, "train")
    for file in (root / "annotations").glob("*train*"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"has no annotations for train; annotations in COCO's"):
        find_part(root, "train")
    (root / "train2017").rename(root / "train")
    beside = root / "train/_annotations.coco.json"
    beside.write_text("{}")
    assert find_part(root, "train").images == root / "train"
