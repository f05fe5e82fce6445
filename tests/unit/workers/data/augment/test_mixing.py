"""Mixup and cutmix are torchvision's, to the bit, drawn for each micro-batch by its samples."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.data.augment.mixing import Mix
from bundlerun.workers.data.loader import MicrobatchLoader
from bundlerun.workers.data.readers import Source
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.recipe import DataSets, load_recipe, model_inputs

CLASSES = 7
CONFIG = TrainConfig(data="synthetic", image_size=12, num_classes=CLASSES, synthetic_samples=40)


def batch_of(seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(5, 3, 12, 9), torch.randint(CLASSES, (5,))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.2, 1.0)], ids=str)
def test_images_targets_and_losses_are_torchvisions(
    alphas: tuple[float, float], smoothing: float
) -> None:
    both = zip((v2.MixUp, v2.CutMix), alphas, strict=True)
    ways = [way(alpha=alpha, num_classes=CLASSES) for way, alpha in both if alpha]
    config = replace(
        CONFIG, mixup_alpha=alphas[0], cutmix_alpha=alphas[1], label_smoothing=smoothing
    )
    recipe = load_recipe(config)
    images, classes = batch_of()
    for seed in range(6):
        torch.manual_seed(seed)
        wanted, soft = v2.RandomChoice(ways)(images, classes)
        follows = torch.rand(3)
        torch.manual_seed(seed)
        inputs, target = Mix(*alphas)((images,), classes)
        assert torch.equal(torch.rand(3), follows), "as much is drawn"

        (found,) = model_inputs(recipe, inputs)
        assert torch.equal(found, wanted)
        logits = torch.randn(5, CLASSES)
        loss: Any = recipe.loss(logits, target)
        assert torch.equal(loss, cross_entropy(logits, soft, label_smoothing=smoothing))
        right = logits.argmax(1) == soft.max(dim=1)[1]
        assert recipe.metrics(logits, target)["top1"] == right.sum()


def test_a_loss_of_mixed_images_is_a_mean_over_samples() -> None:
    recipe = load_recipe(replace(CONFIG, mixup_alpha=0.4))
    images, classes = batch_of()
    _, target = Mix(0.4, 0.0)((images,), classes)
    logits = torch.randn(5, CLASSES)
    parts = [
        recipe.loss(logits[i : i + 1], {n: v[i : i + 1] for n, v in target.items()})
        for i in range(5)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), recipe.loss(logits, target))  # type: ignore[arg-type]


def read(data: DataSets, config: TrainConfig, wanted: list[list[int]], **more: int) -> list[Batch]:
    source = Source.train(data)
    loader = MicrobatchLoader(source.samples, config=config, collate=source.collate)
    with closing(loader):
        return list(loader.batches(wanted, epoch=more.get("epoch", 0)))


def test_what_is_drawn_depends_on_seed_epoch_and_samples_alone() -> None:
    config = replace(CONFIG, cutmix_alpha=1.0, mixup_alpha=1.0)
    data: Any = load_recipe(config).open_data()

    def shares(wanted: list[list[int]], config: TrainConfig = config, epoch: int = 0) -> list[Any]:
        return [b.target["share"][0].item() for b in read(data, config, wanted, epoch=epoch)]

    first, second, third = shares([[0, 1], [2, 3], [4, 5]])
    assert shares([[4, 5]]) == [third]
    assert shares([[2, 3], [0, 1]]) == [second, first]
    assert len({first, second, third}) == 3
    assert shares([[0, 1]], epoch=1) != [first]
    assert shares([[0, 1]], replace(config, seed=1)) != [first]


def test_validation_is_not_mixed() -> None:
    data = load_recipe(replace(CONFIG, mixup_alpha=1.0)).open_data()
    val = Source.val(data)
    assert val is not None
    assert val.collate.mix is None
    assert Source.train(data).collate.mix is not None
