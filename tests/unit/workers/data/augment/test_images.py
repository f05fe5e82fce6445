"""A training image becomes what torchvision's own transforms make of it, with the same draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from benchmarks.workload.pictures import picture
from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.recipe import load_recipe, model_inputs
from bundlerun.workers.recipes.image_classification import views

SIZE = 48
NORMAL = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def policies(how: v2.InterpolationMode) -> dict[str, v2.Transform]:
    named = {
        name: v2.AutoAugment(v2.AutoAugmentPolicy(name), interpolation=how)
        for name in ("imagenet", "cifar10", "svhn")
    }
    return {
        "ra": v2.RandAugment(magnitude=12, interpolation=how),
        "ta-wide": v2.TrivialAugmentWide(interpolation=how),
        "augmix": v2.AugMix(severity=5, interpolation=how),
        **named,
    }


POLICIES = ("ra", "ta-wide", "augmix", "imagenet", "cifar10", "svhn")


def config(**options: Any) -> TrainConfig:
    return TrainConfig(data="x", image_size=SIZE, ra_magnitude=12, augmix_severity=5, **options)


def ours(config: TrainConfig, image: Any, seed: int) -> tuple[Tensor, Tensor]:
    """One image as the model gets it, and what is drawn next."""
    torch.manual_seed(seed)
    seen = views(config)[0](image)
    follows = torch.rand(3)
    parts = seen if isinstance(seen, tuple) else (seen,)
    batched: tuple[Any, ...] = (parts[0][None],)
    if len(parts) > 1:
        batched = (parts[0][None], {name: value[None] for name, value in parts[1].items()})
    (found,) = model_inputs(load_recipe(config), batched)
    return found[0], follows


def theirs(config: TrainConfig, image: Any, seed: int) -> tuple[Tensor, Tensor]:
    """As the steps of the reference's preset for training say."""
    how = v2.InterpolationMode(config.interpolation)
    steps: list[v2.Transform] = [v2.RandomResizedCrop(SIZE, interpolation=how)]
    steps.append(v2.RandomHorizontalFlip())
    if config.auto_augment != "none":
        steps.append(policies(how)[config.auto_augment])
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float, scale=True), v2.Normalize(*NORMAL)]
    if config.random_erase:
        steps.append(v2.RandomErasing(p=config.random_erase))
    torch.manual_seed(seed)
    return v2.Compose(steps)(image), torch.rand(3)


@pytest.mark.parametrize("policy", ["none", *POLICIES])
def test_policies_and_erasing_are_those_of_torchvision(policy: Any) -> None:
    how = "bilinear" if policy == "augmix" else "bicubic"
    chosen = config(auto_augment=policy, interpolation=how, random_erase=0.5)
    image = picture(90, 64, seed=3)
    num_erased = 0
    for seed in range(8):
        (found, follows), (wanted, next_there) = (f(chosen, image, seed) for f in (ours, theirs))
        assert torch.equal(follows, next_there), "as much is drawn"
        assert torch.equal(found, wanted)
        num_erased += bool((found == 0).all(0).any())
    assert 0 < num_erased < 8


def test_pixels_of_a_fast_decoder_are_drawn_for_alike() -> None:
    chosen = config(auto_augment="ta-wide", interpolation="bicubic")
    image = picture(90, 64, seed=3)
    for seed in range(4):
        exact, follows = ours(chosen, image, seed)
        fast, next_there = ours(chosen, pil_to_tensor(image), seed)
        assert torch.equal(follows, next_there)
        assert fast.shape == exact.shape
        assert (fast - exact).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("options", "resize", "crop"),
    [
        ({}, round(SIZE * 256 / 224), SIZE),
        ({"val_crop_size": 60}, round(60 * 256 / 224), 60),
        ({"val_resize_size": 70, "val_crop_size": 64, "interpolation": "bicubic"}, 70, 64),
        ({"augment": "none"}, [SIZE, SIZE], SIZE),
        ({"augment": "none", "val_resize_size": 60}, 60, SIZE),
    ],
)
def test_validation_has_sizes_of_its_own(options: Any, resize: Any, crop: int) -> None:
    chosen = config(auto_augment="ra", random_erase=1.0, **options)
    image = picture(90, 64, seed=4)
    how = v2.InterpolationMode(chosen.interpolation)
    wanted = v2.Compose([v2.Resize(resize, how), v2.CenterCrop(crop), v2.PILToTensor()])(image)
    assert torch.equal(views(chosen)[1](image), wanted)  # type: ignore[arg-type]


def test_no_random_view_may_have_a_policy_all_the_same() -> None:
    chosen = config(augment="none", auto_augment="ta-wide", random_erase=0.5)
    image = picture(90, 64, seed=5)
    found = [ours(chosen, image, seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
