"""What is seen of an image: torchvision's to the bit of Pillow's, within 1 of a tensor."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from benchmarks.workload.pictures import picture
from bundlerun.workers.data.views import MiddleView, RandomView

SIZE = 64
SIZES = [(500, 375), (375, 500), (90, 64), (64, 64), (40, 30), (31, 200)]


def torchvisions(view: v2.Transform, image: Image.Image) -> Tensor:
    pixels: Tensor = pil_to_tensor(view(image))
    return pixels


def difference(one: Tensor, other: Tensor) -> Tensor:
    assert one.shape == other.shape
    assert one.dtype is other.dtype is torch.uint8
    return (one.int() - other.int()).abs()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_random_view_is_torchvisions(size: tuple[int, int]) -> None:
    image = picture(*size, seed=1)
    view = RandomView(SIZE)
    theirs = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()])
    for seed in range(6):
        torch.manual_seed(seed)
        wanted, follows = torchvisions(theirs, image), torch.rand(3)
        torch.manual_seed(seed)
        exact = view(image)
        assert torch.equal(torch.rand(3), follows), "as much is drawn"
        torch.manual_seed(seed)
        fast = view(pil_to_tensor(image))
        assert torch.equal(torch.rand(3), follows), "as much is drawn"

        assert torch.equal(exact, wanted)
        assert difference(fast, wanted).max() <= 1
        assert difference(fast, wanted).float().mean() < 0.1


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("resize", [73, 64, [64, 64]])
def test_a_middle_view_is_torchvisions(size: tuple[int, int], resize: int | list[int]) -> None:
    image = picture(*size, seed=2)
    view = MiddleView(resize, SIZE)
    wanted = torchvisions(v2.Compose([v2.Resize(resize), v2.CenterCrop(SIZE)]), image)

    assert torch.equal(view(image), wanted)
    assert difference(view(pil_to_tensor(image)), wanted).max() <= 1


def test_a_part_smaller_than_the_view_is_padded_as_torchvision_does() -> None:
    image = picture(50, 40, seed=3)
    wanted = torchvisions(v2.Compose([v2.Resize(40), v2.CenterCrop(SIZE)]), image)
    view = MiddleView(40, SIZE)
    assert torch.equal(view(image), wanted)
    assert torch.equal(view(pil_to_tensor(image)), wanted)


def test_views_of_one_picture_differ_in_place_and_direction() -> None:
    pixels = pil_to_tensor(picture(100, 80, seed=4))
    torch.manual_seed(0)
    seen = [RandomView(16)(pixels) for _ in range(8)]
    assert len({view.numpy().tobytes() for view in seen}) == 8
