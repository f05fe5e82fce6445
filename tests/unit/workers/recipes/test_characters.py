"""The recipe for text: its windows, model, loss and metrics."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.models import make_stages
from bundlerun.workers.recipe import DataInfo, load_recipe
from tests.unit.workers.recipes.recipe_use import info_of, module_of, tensors, train


class TestCharacters:
    TEXT = "the quick brown fox jumps over the lazy dog. " * 60

    @pytest.fixture
    def config(self, tmp_path: Path) -> TrainConfig:
        path = tmp_path / "text.txt"
        path.write_text(self.TEXT, encoding="utf-8")
        return TrainConfig(data=str(path), recipe="characters", optimizer="adamw", lr=0.003)

    def test_windows_are_the_text_and_the_text_one_further(self, config: TrainConfig) -> None:
        data = load_recipe(config).open_data()
        alphabet = sorted(set(self.TEXT))

        characters, following = tensors(data.train, 1)

        assert data.num_outputs == len(alphabet)
        assert data.about == {"characters": "".join(alphabet), "context": 64}
        assert "".join(alphabet[i] for i in characters) == self.TEXT[64:128]
        assert "".join(alphabet[i] for i in following) == self.TEXT[65:129]

    def test_the_last_tenth_validates(self, config: TrainConfig) -> None:
        data = load_recipe(config).open_data()
        start = int(0.9 * len(self.TEXT))
        alphabet = sorted(set(self.TEXT))

        assert data.val is not None
        assert (len(data.train), len(data.val)) == ((start - 1) // 64, (2700 - start - 1) // 64)
        first, _ = tensors(data.val, 0)
        assert "".join(alphabet[i] for i in first) == self.TEXT[start : start + 64]

    def test_the_text_can_be_learnt(self, config: TrainConfig) -> None:
        config = replace(config, batch_size=10, epochs=7)
        recipe = load_recipe(config)
        data = recipe.open_data()
        model = module_of(recipe, info_of(data))

        losses = train(config, model, recipe, data.train)

        assert losses[0] > 0.9 * math.log(data.num_outputs)
        assert losses[-1] < 1
        inputs, target = (column[None] for column in tensors(data.train, 0))
        assert recipe.metrics(model(inputs), target)["top1"] > 0.7

    def test_a_character_sees_none_after_it(self, config: TrainConfig) -> None:
        model = module_of(load_recipe(config), DataInfo(num_train=1, num_val=1, num_outputs=9))
        inputs = torch.randint(9, (2, 64))
        changed = inputs.clone()
        changed[:, 40:] = (changed[:, 40:] + 1) % 9

        before, after = model(inputs), model(changed)

        assert torch.equal(before[:, :40], after[:, :40])
        assert not torch.equal(before[:, 40:], after[:, 40:])

    @pytest.mark.parametrize("num_stages", [1, 2, 3, 4, 6])
    def test_any_number_of_stages_computes_the_same(
        self, config: TrainConfig, num_stages: int
    ) -> None:
        model = module_of(load_recipe(config), DataInfo(num_train=1, num_val=1, num_outputs=9))
        names = {name for name, _ in model.named_parameters()}
        inputs = torch.randint(9, (2, 64))
        expected = model(inputs)

        stages = make_stages(model, cut=(), num_stages=num_stages)

        values: object = (inputs,)
        for stage in stages:
            assert isinstance(values, tuple)
            values = stage(*values)
        assert isinstance(values, Tensor)
        assert torch.equal(values, expected)
        assert {name for stage in stages for name, _ in stage.named_parameters()} == names

    def test_it_is_cut_by_the_names_of_its_blocks(self, config: TrainConfig) -> None:
        model = module_of(load_recipe(config), DataInfo(num_train=1, num_val=1, num_outputs=9))

        front, rear = make_stages(model, cut=("block3",), num_stages=2)

        assert {n.split(".")[0] for n, _ in rear.named_parameters()} == {"block3", "block4", "head"}
        assert {n.split(".")[0] for n, _ in front.named_parameters()} == {
            "embedding",
            "block1",
            "block2",
        }

    def test_a_missing_text_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"cannot read DATA '/nowhere.txt': No such file"):
            load_recipe(TrainConfig(data="/nowhere.txt", recipe="characters")).check()

    def test_a_folder_is_no_text(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"Is a directory; give a text file"):
            load_recipe(TrainConfig(data=str(tmp_path), recipe="characters")).check()

    @pytest.mark.parametrize("text", ["", "short", "é" * 999])
    def test_a_short_text_is_refused(self, config: TrainConfig, text: str) -> None:
        Path(config.data).write_text(text, encoding="utf-8")
        recipe = load_recipe(config)

        with pytest.raises(ConfigError, match=rf"has {len(text)} characters; give .* of 1000 or"):
            recipe.check() or recipe.open_data()  # type: ignore[func-returns-value]

    def test_the_shortest_text_has_a_window_for_each_part(self, config: TrainConfig) -> None:
        Path(config.data).write_text(self.TEXT[:1000], encoding="utf-8")
        recipe = load_recipe(config)
        recipe.check()

        info = info_of(recipe.open_data())

        assert (info.num_train, info.num_val) == (14, 1)

    def test_bytes_are_no_text(self, config: TrainConfig) -> None:
        Path(config.data).write_bytes(b"\xff" * 2000)

        with pytest.raises(ConfigError, match=r"is no UTF-8 text \(byte 0\); give a text file"):
            load_recipe(config).open_data()
