"""The recipes that ship, by themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from launcher.config import TrainConfig
from launcher.errors import ConfigError
from splits.models import make_stages
from workers.recipe import DataInfo, load_recipe
from workers.recipes.characters import CONTEXT, MIN_CHARACTERS
from workers.recipes.image_classification import heads

SYNTHETIC = TrainConfig(data="synthetic", synthetic_samples=20, image_size=16, augment="none")
EXAMPLE = Path(__file__).parents[3] / "examples" / "my_recipe.py"


def characters(tmp_path: Path, text: str) -> TrainConfig:
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    return TrainConfig(data=str(file), recipe="characters")


def test_synthetic_images_are_the_same_every_time_and_differ_between_train_and_val() -> None:
    one, two = (load_recipe(SYNTHETIC).open_data() for _ in range(2))
    assert one.val is not None
    assert (len(one.train), len(one.val)) == (20, 5)
    assert torch.equal(one.train[3][0], two.train[3][0])  # type: ignore[arg-type]
    assert not torch.equal(one.train[0][0], one.val[0][0])  # type: ignore[arg-type]


def test_the_loss_is_cross_entropy_with_label_smoothing() -> None:
    recipe = load_recipe(replace(SYNTHETIC, label_smoothing=0.2))
    logits, target = torch.randn(4, 10), torch.tensor([1, 2, 3, 4])
    wanted = nn.functional.cross_entropy(logits, target, label_smoothing=0.2)
    assert torch.equal(recipe.loss(logits, target), wanted)


def test_top_1_and_top_5_count_samples() -> None:
    logits = torch.eye(10)[[0, 1, 2]] * 9 + torch.arange(10) * 0.1
    found = load_recipe(SYNTHETIC).metrics(logits, torch.tensor([0, 9, 3]))
    assert {name: int(value) for name, value in found.items()} == {"top1": 1, "top5": 2}


def test_top_5_of_three_classes_is_all_of_them() -> None:
    found = load_recipe(SYNTHETIC).metrics(torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert int(found["top5"]) == 6


def test_auxiliary_heads_add_to_the_loss_and_not_to_the_metrics() -> None:
    recipe = load_recipe(SYNTHETIC)
    logits, one, two = torch.randn(3, 4, 10).unbind()
    target = torch.tensor([1, 2, 3, 4])
    entropy = nn.functional.cross_entropy
    wanted = entropy(logits, target) + 0.3 * (entropy(one, target) + entropy(two, target))
    torch.testing.assert_close(recipe.loss((logits, two, one), target), wanted)
    assert recipe.metrics((logits, two, one), target) == recipe.metrics(logits, target)


def test_an_output_that_is_no_logits_is_refused() -> None:
    with pytest.raises(ConfigError, match="the model returns dict, not logits"):
        heads({"out": torch.zeros(1)})


def test_a_text_becomes_windows_of_characters_and_the_ones_after(tmp_path: Path) -> None:
    data = load_recipe(characters(tmp_path, "abc" * 1000)).open_data()
    assert data.num_outputs == 3
    tokens, after = data.train[1]
    assert isinstance(tokens, torch.Tensor)
    assert isinstance(after, torch.Tensor)
    assert tokens.shape == (CONTEXT,)
    assert torch.equal(tokens[1:], after[:-1])
    assert tokens[0] == CONTEXT % 3


def test_no_character_sees_those_after_it(tmp_path: Path) -> None:
    recipe = load_recipe(characters(tmp_path, "abc" * 1000))
    model = recipe.model(DataInfo(num_train=1, num_val=0, num_outputs=3))
    assert isinstance(model, nn.Module)
    tokens = torch.randint(3, (1, CONTEXT))
    changed = tokens.clone()
    changed[0, 40:] = (changed[0, 40:] + 1) % 3
    a, b = model(tokens), model(changed)
    torch.testing.assert_close(a[0, :40], b[0, :40])
    assert not torch.allclose(a[0, 40:], b[0, 40:])


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_the_transformer_can_be_cut_between_any_blocks(num_stages: int, tmp_path: Path) -> None:
    recipe = load_recipe(characters(tmp_path, "abc" * 1000))
    model = recipe.model(DataInfo(num_train=1, num_val=0, num_outputs=3))
    tokens = torch.randint(3, (2, CONTEXT))
    assert isinstance(model, nn.Module)
    wanted = model(tokens)
    values: object = (tokens,)
    for stage in make_stages(model, cut=(), num_stages=num_stages):
        values = stage(*values) if isinstance(values, tuple) else stage(values)
    torch.testing.assert_close(values, wanted)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"short", "give a text of"), (b"\xff\xfe" * MIN_CHARACTERS, "is no UTF-8 text")],
)
def test_a_file_that_is_no_text_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    recipe = load_recipe(TrainConfig(data=str(file), recipe="characters"))

    def read() -> None:
        recipe.check()
        recipe.open_data()

    with pytest.raises(ConfigError, match=words):
        read()


def test_a_missing_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot read DATA '/nowhere/text'"):
        load_recipe(TrainConfig(data="/nowhere/text", recipe="characters")).check()


def test_a_recipe_of_ones_own_is_found_by_its_path() -> None:
    recipe = load_recipe(TrainConfig(data="made-up", recipe=str(EXAMPLE)))
    assert recipe.unit == "pairs"
    data = recipe.open_data()
    model = recipe.model(DataInfo(num_train=1, num_val=0, num_outputs=1))
    assert isinstance(model, nn.Module)
    (one, other), distance = data.train[0]  # type: ignore[misc]
    output = model(one[None], other[None])  # type: ignore[index]
    assert recipe.loss(output, distance[None]).ndim == 0  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("image-clasification", "nearest: image-classification"),
        ("/nowhere/mine.py", "no such file"),
    ],
)
def test_a_recipe_that_is_not_there_is_named(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe(TrainConfig(data="d", recipe=name))


def test_a_file_without_the_function_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"has no function recipe\(config\)"):
        load_recipe(TrainConfig(data="d", recipe=str(file)))
