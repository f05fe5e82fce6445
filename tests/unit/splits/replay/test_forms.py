"""Inputs in other forms than those by which a model was cut, such as of more images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.replay.model import ReplayedModel
from bundlerun.workers.model.trial import Subject
from tests.unit.splits.replay.chain import assert_same


class Detector(nn.Module):
    """Images of any size are made of one size; targets are looked at; the end goes by numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)
        self.double()

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Any:
        for target in targets:
            boxes = target["boxes"]
            if (boxes[:, 2:] <= boxes[:, :2]).any():
                raise ValueError("a box has no area")
        sides = [max(i) for i in zip(*(image.shape[1:] for image in images), strict=True)]
        batch = images[0].new_zeros((len(images), 3, *sides))
        for image, place in zip(images, batch, strict=True):
            place[:, : image.shape[1], : image.shape[2]].copy_(image)
        found = self.second(self.first(batch) * 2)
        scale = 2.0 if found.sum() > 0 else 1.0
        areas = [(t["boxes"][:, 2:] - t["boxes"][:, :2]).prod(1).sum() for t in targets]
        return found.flatten(1).mean(1) * torch.stack(areas) * scale


def batch_of(*sizes: tuple[int, int, int]) -> tuple[Any, ...]:
    """Images of a height and width, with so many boxes."""
    numbers = torch.Generator().manual_seed(sum(map(sum, sizes)))
    images = [torch.rand(3, h, w, generator=numbers, dtype=torch.float64) for h, w, _ in sizes]
    boxes = [torch.rand(n, 4, generator=numbers, dtype=torch.float64) for *_, n in sizes]
    for each in boxes:
        each[:, 2:] += 1
    return images, [{"boxes": each} for each in boxes]


def cut_detector(inputs: tuple[Any, ...]) -> Subject:
    torch.manual_seed(0)
    model = Detector()
    found = ReplayedModel(model, inputs)
    return Subject(whole=model, stages=found.cut(["second"]))


def test_more_images_of_other_sizes_with_other_boxes_are_the_models() -> None:
    subject = cut_detector(batch_of((9, 7, 1), (8, 8, 2)))
    for sizes in (
        [(9, 7, 1), (8, 8, 2)],
        [(12, 8, 0), (7, 7, 3)],
        [(9, 7, 1), (8, 9, 2), (10, 11, 1)],
        [(7, 9, 4)],
        [(8, 8, 1)] * 5,
    ):
        assert_same(subject, batch_of(*sizes))


def test_what_a_line_has_read_is_looked_at_in_other_forms_too() -> None:
    subject = cut_detector(batch_of((9, 7, 1), (8, 8, 2)))
    wrong = batch_of((9, 7, 1), (8, 8, 2), (8, 8, 1))
    wrong[1][2]["boxes"][0, 2] = 0
    with pytest.raises(ConfigError, match="goes by True, and went by False"):
        subject.stages[0](*wrong)


def test_a_model_without_numbers_is_cut_where_the_model_is() -> None:
    class Sized(Detector):
        def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Any:
            # As torchvision works out how large an image becomes: of no input, and read.
            smallest = torch.min(torch.tensor(images[0].shape[1:])).item()
            return super().forward([image * smallest for image in images], targets)

    images, targets = batch_of((9, 7, 1), (8, 8, 2))
    inputs = [image.to("meta") for image in images], targets
    wanted = ReplayedModel(Sized(), inputs).names
    with torch.device("meta"):
        assert ReplayedModel(Sized(), inputs).names == wanted
    assert "second" in wanted


def test_no_more_crosses_than_is_held() -> None:
    front, _ = cut_detector(batch_of((9, 7, 1), (8, 8, 2))).stages
    *tensors, text = front(*batch_of((9, 7, 1), (8, 8, 2)))
    assert isinstance(text, str)
    # The inputs, their batch and the last view of it, which the forward still has, and what goes
    # on; no comparison of boxes, and nothing that was on the way.
    images, going_on = [(3, 9, 7), (3, 8, 8)], (2, 4, 7, 6)
    held = [*images, (1, 4), (2, 4), (2, 3, 9, 8), (3, 9, 8), going_on]
    assert sorted(tuple(t.shape) for t in tensors) == sorted(held)
