"""The recipes that come with bundlerun train through bundles as their models do in a plain loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.data.collate import Collate
from bundlerun.workers.data.order import num_steps, sample_order, step_microbatches
from bundlerun.workers.optim.lr import lr_factor
from bundlerun.workers.recipe import model_inputs
from tests.ranks.harness import run_ranks
from tests.ranks.reference import made
from tests.ranks.state.test_resume import history, trains
from tests.ranks.training.test_parity import losses_of

HERE = Path(__file__).parents[1]
CONFIG = TrainConfig(
    data="",
    shape=Shape((1,)),
    batch_size=8,
    microbatch_size=2,
    epochs=2,
    optimizer="adamw",
    lr=0.01,
    precision="float64",
    share="equal",
    timeout_s=30.0,
)


def doubled(value: object) -> Any:
    def double(leaf: Tensor) -> Tensor:
        return leaf.double() if leaf.is_floating_point() else leaf

    return torch.utils._pytree.tree_map(double, value)


def plain_run(config: TrainConfig) -> tuple[list[float], nn.Module]:
    """The losses of a loop over whole batches, and the model after it."""
    recipe, data, model = made(config)
    model.double()
    optimizer = recipe.optimizer(model.named_parameters())
    highest = optimizer.param_groups[0]["lr"]
    per_epoch, size = num_steps(len(data.train), config.batch_size), config.batch_size
    losses = []
    for step in range(config.epochs * per_epoch):
        epoch, in_epoch = divmod(step, per_epoch)
        order = sample_order(config.seed, epoch, len(data.train))
        (indices,) = step_microbatches(order, in_epoch, batch_size=size, microbatch_size=size)
        inputs, target = Collate.of(data, data.train)([data.train[i] for i in indices], indices)
        loss = recipe.loss(model(*doubled(model_inputs(recipe, inputs))), doubled(target))
        mean = loss[0] / loss[1] if isinstance(loss, tuple) else loss
        optimizer.zero_grad()
        mean.backward()
        optimizer.param_groups[0]["lr"] = highest * lr_factor(config, step, per_epoch)
        optimizer.step()
        losses.append(mean.item())
    return losses, model


def check(
    config: TrainConfig, runs: Mapping[str, tuple[dict[str, Any], tuple[int, ...]]], folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Compares runs by any bundles with the plain loop; gives their validations."""
    wanted, _ = plain_run(config)
    assert len(set(wanted)) > 3
    validations = {}
    for name, (changes, devices) in runs.items():
        changed = replace(config, **changes, run_dir=str(folder / name / "run"))
        run_ranks(devices, trains(changed), folder / name)
        assert losses_of(folder / name) == pytest.approx(wanted, rel=1e-10), name
        validations[name] = [row for row in history(folder / name) if row["kind"] == "eval"]
    return validations


def test_a_language_model_learns_the_same_through_any_bundles(tmp_path: Path) -> None:
    np.random.default_rng(1).integers(0, 50, 700).astype("uint16").tofile(tmp_path / "t.bin")
    config = replace(
        CONFIG,
        data=str(tmp_path / "t.bin"),
        recipe="language-model",
        model=f"{HERE / 'tiny_gpt.py'}:build",
        seq_len=16,
    )
    cut = {"shape": Shape((1, 1)), "cut": ("block2",)}
    runs = {
        "alone": ({"shape": Shape((1,))}, (1,)),
        # A step of 39 sequences is the last one, of a micro-batch that is not full, too.
        "cut": ({**cut, "microbatch_size": 4, "batch_size": 8}, (2, 2)),
    }
    validations = check(config, runs, tmp_path)
    for rows in validations.values():
        assert len(rows) == config.epochs
        assert rows[-1]["loss"] == pytest.approx(validations["alone"][-1]["loss"], rel=1e-10)
        perplexity = rows[-1]["metrics"]["perplexity"]
        assert perplexity == pytest.approx(math.exp(rows[-1]["loss"]), rel=1e-12)


SEGMENTER = """
from torch import nn
from torch.nn.functional import interpolate, relu


class Segmenter(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.head, self.aux = nn.Conv2d(6, classes, 1), nn.Conv2d(6, classes, 1)

    def forward(self, x):
        low = relu(self.first(x))
        out = self.head(relu(self.second(low)))
        out = interpolate(out, scale_factor=2, mode="bilinear")
        return {"out": out, "aux": self.aux(low)}


def build(num_classes):
    return Segmenter(num_classes)
"""


def write_masked(root: Path, classes: int) -> None:
    """Masks of which another share is ignored in each image."""
    numbers = np.random.default_rng(2)
    for part, count in (("train", 18), ("val", 5)):
        for name in ("images", "masks"):
            (root / part / name).mkdir(parents=True)
        for n in range(count):
            image = numbers.integers(0, 256, (12, 12, 3)).astype(np.uint8)
            mask = numbers.integers(0, classes, (12, 12)).astype(np.uint8)
            mask[: n % 12] = 255
            Image.fromarray(image).save(root / part / "images" / f"{n}.png")
            Image.fromarray(mask).save(root / part / "masks" / f"{n}.png")


def test_segmentation_learns_the_same_through_any_bundles(tmp_path: Path) -> None:
    write_masked(tmp_path / "data", 4)
    (tmp_path / "segmenter.py").write_text(SEGMENTER)
    config = replace(
        CONFIG,
        data=str(tmp_path / "data"),
        recipe="segmentation",
        model=f"{tmp_path}/segmenter.py:build",
        num_classes=4,
        image_size=8,
        augment="none",
    )
    runs = {
        "alone": ({"microbatch_size": 4}, (1,)),
        "cut": ({"shape": Shape((1, 1)), "cut": ("second",)}, (2, 2)),
    }
    validations = check(config, runs, tmp_path)
    for rows in validations.values():
        told = rows[-1]["metrics"]
        assert told == pytest.approx(validations["alone"][-1]["metrics"], rel=1e-10)
        classes = [told[f"iou_{n}"] for n in range(4)]
        assert told["miou"] == pytest.approx(sum(classes) / 4, rel=1e-12)


def test_texts_are_classified_the_same_through_any_bundles(tmp_path: Path) -> None:
    made = pytest.importorskip("tokenizers", reason="the extra text is not installed")
    letters = {letter: number for number, letter in enumerate("_abcdefg")}
    made.Tokenizer(made.models.BPE(letters, [])).save(str(tmp_path / "letters.json"))
    numbers = np.random.default_rng(4)
    (tmp_path / "data").mkdir()
    for part, count in (("train", 27), ("val", 7)):
        texts = ["".join(numbers.choice(list("abcdefg"), n % 11 + 1)) for n in range(count)]
        rows = [f"{text},{'yes' if 'a' in text else 'no'}" for text in texts]
        (tmp_path / "data" / f"{part}.csv").write_text("\n".join(["text,label", *rows]))
    config = replace(
        CONFIG,
        data=str(tmp_path / "data"),
        recipe="sequence-classification",
        model=f"{HERE / 'tiny_reader.py'}:build",
        tokenizer=str(tmp_path / "letters.json"),
        seq_len=9,
    )
    cut = {"shape": Shape((1, 1)), "cut": ("second",)}
    runs = {"alone": ({"microbatch_size": 4}, (1,)), "cut": (cut, (2, 2))}
    validations = check(config, runs, tmp_path)
    for rows in validations.values():
        assert rows[-1]["loss"] == pytest.approx(validations["alone"][-1]["loss"], rel=1e-10)
        assert rows[-1]["metrics"] == validations["alone"][-1]["metrics"]
