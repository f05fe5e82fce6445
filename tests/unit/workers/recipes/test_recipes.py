"""The shipped recipes and the example: data, model, loss, metrics and optimizer of each."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models.googlenet import GoogLeNetOutputs
from torchvision.models.inception import InceptionOutputs
from torchvision.transforms import v2

from benchmarks.workload.pictures import picture
from bundlerun.launcher.choices import Decode
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.models import make_stages
from bundlerun.workers.data.loader import MicrobatchLoader
from bundlerun.workers.recipe import (
    DataInfo,
    Recipe,
    SampleSet,
    load_recipe,
    model_inputs,
)
from bundlerun.workers.recipes.image_classification import heads, views
from tests.unit.workers.recipes.recipe_use import info_of, module_of, train

SYNTHETIC = TrainConfig(data="synthetic", synthetic_samples=40, image_size=32)
EXAMPLE = str(Path(__file__).parents[4] / "examples/my_recipe.py")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of red, green and blue."""
LOGITS = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3], [1, 2, 3, 4, 5, 6, 7]])


def normalised(recipe: Recipe, pixels: Tensor) -> Tensor:
    (found,) = model_inputs(recipe, (pixels,))
    assert isinstance(found, Tensor)
    return found


def image_folder(root: Path, *, classes: int = 2) -> Path:
    for part in ("train", "val"):
        for name in range(classes):
            folder = root / part / str(name)
            folder.mkdir(parents=True)
            Image.linear_gradient("L").resize((20, 30)).save(folder / "grey.png")
    return root


class TestImageClassification:
    def test_synthetic_images_are_the_same_for_an_index_always(self) -> None:
        first, second = (load_recipe(SYNTHETIC).open_data() for _ in range(2))

        for index in (0, 17):
            assert torch.equal(image(first.train, index), image(second.train, index))
        assert not torch.equal(image(first.train, 0), image(first.train, 10))

    def test_a_quarter_more_of_synthetic_images_validates(self) -> None:
        data = load_recipe(SYNTHETIC).open_data()

        assert data.val is not None
        assert (len(data.train), len(data.val), data.num_outputs) == (40, 10, 10)
        assert not torch.equal(image(data.train, 0), image(data.val, 0))

    def test_synthetic_images_can_be_learnt(self) -> None:
        config = replace(SYNTHETIC, batch_size=20, lr=0.01, epochs=5)
        recipe = load_recipe(config)
        data = recipe.open_data()
        torch.manual_seed(0)
        model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 10))

        train(config, model, recipe, data.train)

        assert data.val is not None
        images = torch.stack([image(data.val, i) for i in range(10)])
        right = recipe.metrics(model(images), torch.arange(10))["top1"]
        assert right >= 9

    def test_the_images_of_a_folder_are_transformed(self, tmp_path: Path) -> None:
        config = TrainConfig(data=str(image_folder(tmp_path)), image_size=48)
        recipe = load_recipe(config)
        recipe.check()

        data = recipe.open_data()

        assert data.val is not None
        assert (len(data.train), len(data.val), data.num_outputs) == (2, 2, 2)
        for samples in (data.train, data.val):
            assert image(samples, 1).shape == (3, 48, 48)
            assert image(samples, 1).dtype is torch.uint8
            assert normalised(recipe, image(samples, 1)).dtype is torch.float32

    def test_only_training_images_are_random(self, tmp_path: Path) -> None:
        config = TrainConfig(data=str(image_folder(tmp_path)), image_size=16)
        random = load_recipe(config).open_data()
        plain = load_recipe(replace(config, augment="none")).open_data()

        assert random.val is not None
        for samples, is_random in ((random.train, True), (random.val, False), (plain.train, False)):
            assert torch.equal(image(samples, 0), image(samples, 0)) is not is_random

    def test_colours_are_normalised_as_torchvisions_weights_expect(self) -> None:
        config = TrainConfig(data="x", image_size=8)
        _, val = views(config)
        grey = Image.new("RGB", (9, 12), (255, 127, 0))

        colours = normalised(load_recipe(config), val(grey))[:, 0, 0]

        expected = [(1 - 0.485) / 0.229, (127 / 255 - 0.456) / 0.224, -0.406 / 0.225]
        torch.testing.assert_close(colours, torch.tensor(expected))

    def test_numbers_are_to_the_bit_those_of_torchvisions_transforms(self) -> None:
        theirs = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*IMAGENET), v2.ToPureTensor()]
        )
        pixels = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 4, 1)

        found = normalised(load_recipe(SYNTHETIC), pixels)

        assert torch.equal(found, torch.stack([theirs(each) for each in pixels]))
        assert found.stride() == pixels.stride()

    def test_images_that_are_no_pixels_are_left_as_they_are(self) -> None:
        recipe = load_recipe(SYNTHETIC)
        found = image(recipe.open_data().train, 0)
        assert normalised(recipe, found) is found

    @pytest.mark.parametrize("decode", ["fast", "exact"])
    def test_an_image_is_as_many_bytes_as_it_has_colours_until_it_is_on_the_device(
        self, tmp_path: Path, decode: Decode
    ) -> None:
        (tmp_path / "train" / "a").mkdir(parents=True)
        for number in range(4):
            picture(500, 375, seed=number).save(tmp_path / "train" / "a" / f"{number}.jpg")
        config = TrainConfig(data=str(tmp_path), validate=False, decode=decode)
        data = load_recipe(config).open_data()
        with closing(MicrobatchLoader(data.train, config=config, num_workers=1)) as loader:
            (batch,) = loader.batches([[2, 0, 1, 3]], epoch=0)
        assert batch.inputs[0].is_contiguous()
        assert batch.inputs[0].nbytes == 4 * 150_528

    def test_fast_and_exact_draw_alike_and_are_one_of_255_apart(self, tmp_path: Path) -> None:
        for part in ("train", "val"):
            (tmp_path / part / "a").mkdir(parents=True)
            picture(500, 375, seed=1).save(tmp_path / part / "a" / "0.jpg", quality=90)
        config = TrainConfig(data=str(tmp_path))
        fast = load_recipe(config).open_data()
        exact = load_recipe(replace(config, decode="exact")).open_data()
        assert fast.val is not None
        assert exact.val is not None
        for one, other in ((fast.train, exact.train), (fast.val, exact.val)):
            farthest = []
            for seed in range(6):
                torch.manual_seed(seed)
                found = image(one, 0).int()
                torch.manual_seed(seed)
                apart = (found - image(other, 0).int()).abs()
                assert apart.float().mean() < 0.1
                farthest.append(int(apart.max()))
            assert max(farthest) == 1, "by two ways, which round otherwise"

    def test_validation_takes_the_middle_of_the_image(self) -> None:
        _, val = views(TrainConfig(data="x", image_size=224))
        striped = Image.new("RGB", (512, 256))
        striped.paste((255, 255, 255), (256 - 112, 16, 256 + 112, 240))

        assert val(striped).unique().tolist() == [255]

    def test_validation_can_be_left_out(self, tmp_path: Path) -> None:
        (image_folder(tmp_path) / "val").rename(tmp_path / "no val")
        recipe = load_recipe(TrainConfig(data=str(tmp_path), validate=False))

        recipe.check()

        assert recipe.open_data().val is None

    def test_fewer_outputs_than_classes_are_refused(self, tmp_path: Path) -> None:
        root = str(image_folder(tmp_path, classes=3))

        with pytest.raises(ConfigError, match=r"--num-classes 2 is less than the 3 class folders"):
            load_recipe(TrainConfig(data=root, num_classes=2)).check()
        assert load_recipe(TrainConfig(data=root, num_classes=9)).open_data().num_outputs == 9

    def test_without_a_run_folder_no_list_of_images_is_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here = tmp_path / "here"
        here.mkdir()
        monkeypatch.chdir(here)
        load_recipe(TrainConfig(data=str(image_folder(tmp_path / "data")))).open_data()
        assert not list(here.iterdir())

    def test_a_missing_folder_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"DATA '/nowhere' does not exist"):
            load_recipe(TrainConfig(data="/nowhere")).check()

    def test_the_model_has_an_output_per_class(self) -> None:
        recipe = load_recipe(SYNTHETIC)

        with torch.device("meta"):
            model = recipe.model(DataInfo(num_train=1, num_val=1, num_outputs=7))

        assert isinstance(model, nn.Module)
        assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 7)

    def test_metrics_count_the_first_guess_and_the_first_five(self) -> None:
        metrics = load_recipe(SYNTHETIC).metrics

        assert counts(metrics(LOGITS, torch.tensor([0, 6]))) == {"top1": 2, "top5": 2}
        assert counts(metrics(LOGITS, torch.tensor([4, 1]))) == {"top1": 0, "top5": 1}
        assert counts(metrics(LOGITS[:, :3], torch.tensor([2, 2]))) == {"top1": 1, "top5": 2}

    def test_label_smoothing_is_part_of_the_loss(self) -> None:
        target = torch.tensor([0, 6])
        smooth = load_recipe(replace(SYNTHETIC, label_smoothing=0.1))

        assert float(smooth.loss(LOGITS, target)) == pytest.approx(
            float(cross_entropy(LOGITS, target, label_smoothing=0.1))
        )
        assert smooth.loss(LOGITS, target) > load_recipe(SYNTHETIC).loss(LOGITS, target)

    @pytest.mark.parametrize(
        ("output", "factor"),
        [
            (LOGITS, 1.0),
            (InceptionOutputs(LOGITS, LOGITS), 1.4),
            (InceptionOutputs(LOGITS, None), 1.0),
            (GoogLeNetOutputs(LOGITS, LOGITS, LOGITS), 1.6),
            ((LOGITS,), 1.0),
        ],
    )
    def test_auxiliary_heads_count_in_the_loss_only(self, output: object, factor: float) -> None:
        recipe = load_recipe(SYNTHETIC)
        target = torch.tensor([0, 1])

        expected = factor * float(cross_entropy(LOGITS, target))
        assert float(recipe.loss(output, target)) == pytest.approx(expected)
        assert counts(recipe.metrics(output, target)) == {"top1": 1, "top5": 1}

    @pytest.mark.parametrize("output", [{"out": LOGITS}, (), (LOGITS,) * 4, [LOGITS]])
    def test_an_output_that_is_no_logits_is_refused(self, output: object) -> None:
        with pytest.raises(ConfigError, match=r"the model returns .*write a --recipe with a loss"):
            heads(output)

    def test_the_options_name_the_optimizer(self) -> None:
        parameters = list(nn.Linear(2, 2).named_parameters())
        sgd = replace(SYNTHETIC, lr=0.3, momentum=0.8, weight_decay=0.02)

        (group,) = load_recipe(sgd).optimizer(parameters).param_groups
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.8, 0.02)
        assert group["params"] == [p for _, p in parameters]

        adamw = load_recipe(replace(sgd, optimizer="adamw")).optimizer(parameters)
        assert isinstance(adamw, torch.optim.AdamW)
        assert adamw.param_groups[0]["weight_decay"] == 0.02

    @pytest.mark.parametrize("name", ["sgd", "adamw"])
    def test_a_stage_without_parameters_has_an_optimizer_all_the_same(self, name: str) -> None:
        optimizer = load_recipe(replace(SYNTHETIC, optimizer=name)).optimizer([])

        optimizer.step()

        assert optimizer.param_groups[0]["params"] == []


class TestExample:
    CONFIG = TrainConfig(data="made-up", recipe=EXAMPLE, lr=0.01, batch_size=100, epochs=3)

    def test_it_learns(self) -> None:
        recipe = load_recipe(self.CONFIG)
        recipe.check()
        data = recipe.open_data()
        model = module_of(recipe, info_of(data))

        losses = train(self.CONFIG, model, recipe, data.train)

        assert losses[-1] < losses[0] / 10

    def test_it_is_cut_where_its_docstring_says(self) -> None:
        recipe = load_recipe(self.CONFIG)
        one, other = torch.rand(3, 2), torch.rand(3, 2)
        model = module_of(recipe, info_of(recipe.open_data()))
        expected = model(one, other)

        front, rear = make_stages(model, cut=("head",), num_stages=2)

        assert torch.equal(rear(*front(one, other)), expected)


def image(samples: SampleSet, index: int) -> Tensor:
    value, _ = samples[index]
    assert isinstance(value, Tensor)
    return value


def counts(metrics: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(value) for name, value in metrics.items()}
