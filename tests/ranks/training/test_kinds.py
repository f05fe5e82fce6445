"""Kinds of samples, losses and optimizers train through bundles as in a plain loop."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.checkpoints import best_of, read_tensors, survey
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.data.collate import Collate
from bundlerun.workers.data.feed import Feed, SharePlan
from bundlerun.workers.data.order import (
    Speeds,
    mix_seed,
    num_steps,
    sample_order,
    step_microbatches,
)
from bundlerun.workers.model.stage import foreseen_division
from bundlerun.workers.optim.lr import lr_factor
from bundlerun.workers.recipe import DataInfo, load_recipe
from tests.ranks.harness import outcomes, run_ranks
from tests.ranks.state.test_resume import history, trains
from tests.ranks.training.test_parity import losses_of

CONFIG = TrainConfig(
    data="",
    recipe=str(Path(__file__).parents[1] / "kinds_recipe.py"),
    shape=Shape((1,)),
    batch_size=8,
    microbatch_size=2,
    epochs=2,
    lr=0.2,
    precision="float64",
    share="equal",
    timeout_s=30.0,
    snapshot="off",
)


def plain_losses(config: TrainConfig) -> list[float]:
    """The losses of a loop without bundles and without micro-batches."""
    recipe = load_recipe(config)
    data = recipe.open_data()
    torch.manual_seed(mix_seed(config.seed))
    model = recipe.model(DataInfo(num_train=len(data.train), num_val=0, num_outputs=3))
    assert isinstance(model, nn.Module)
    model.double()
    optimizer = recipe.optimizer(model.named_parameters())
    highest = optimizer.param_groups[0]["lr"]
    per_epoch = num_steps(len(data.train), config.batch_size)
    losses = []
    for step in range(config.epochs * per_epoch):
        epoch, in_epoch = divmod(step, per_epoch)
        order = sample_order(config.seed, epoch, len(data.train))
        size = config.batch_size
        (indices,) = step_microbatches(order, in_epoch, batch_size=size, microbatch_size=size)
        samples = [data.train[i] for i in indices]
        inputs, target = Collate.of(data, data.train)(samples, indices)
        if hasattr(recipe, "on_device"):
            inputs = (recipe.on_device(*inputs),)
        loss = recipe.loss(model(*_doubled(inputs)), _doubled(target))
        loss = loss[0] / loss[1] if isinstance(loss, tuple) else loss
        optimizer.zero_grad()
        loss.backward()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        if config.data != "scheduled":
            optimizer.param_groups[0]["lr"] = highest * lr_factor(config, step, per_epoch)
        if loss.isfinite() or config.on_nan != "skip":
            optimizer.step()
        losses.append(loss.item())
    return losses


def _doubled(value: object) -> object:
    """As `torch.utils._pytree` does it, not as the code under test."""

    def double(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    return torch.utils._pytree.tree_map(double, value)


def bundled_losses(config: TrainConfig, devices: tuple[int, ...], folder: Path) -> list[float]:
    run_ranks(devices, trains(replace(config, run_dir=str(folder / "run"))), folder)
    return losses_of(folder)


@pytest.mark.parametrize("data", ["pair", "dict"])
def test_nested_inputs_and_targets_arrive_as_they_were(data: str, tmp_path: Path) -> None:
    config = replace(CONFIG, data=data)
    plain = plain_losses(config)
    assert len(set(plain)) == 6
    alone = bundled_losses(config, (1,), tmp_path / "alone")
    cut = replace(config, shape=Shape((1, 1)), cut=("head",))
    assert alone == pytest.approx(plain, rel=1e-12)
    assert bundled_losses(cut, (4,), tmp_path / "cut") == pytest.approx(plain, rel=1e-12)


def test_inputs_made_on_the_device_are_what_the_model_gets(tmp_path: Path) -> None:
    config = replace(CONFIG, data="pixels")
    plain = plain_losses(config)
    assert len(set(plain)) == 6
    alone = bundled_losses(config, (1,), tmp_path / "alone")
    cut = replace(config, shape=Shape((1, 1)), cut=("head",))
    assert alone == pytest.approx(plain, rel=1e-12)
    assert bundled_losses(cut, (4,), tmp_path / "cut") == pytest.approx(plain, rel=1e-12)
    foreseen = replace(cut, cut=(), run_dir=str(tmp_path / "foreseen"))
    assert foreseen_division(foreseen, load_recipe(foreseen)), "costs are of what the model gets"


def test_what_is_random_on_the_device_is_drawn_alike_by_any_bundles(tmp_path: Path) -> None:
    config = replace(CONFIG, data="noisy pixels")
    alone = bundled_losses(config, (1,), tmp_path / "alone")
    assert alone != pytest.approx(plain_losses(replace(config, data="pixels")), rel=1e-3)
    cut = replace(config, shape=Shape((1, 1)), cut=("head",))
    assert bundled_losses(cut, (4,), tmp_path / "cut") == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("clip_norm", [0.0, 0.4])
def test_a_loss_that_says_its_weight_is_that_of_one_batch(clip_norm: float, tmp_path: Path) -> None:
    config = replace(CONFIG, data="weights", clip_norm=clip_norm)
    plain = plain_losses(config)
    validations = []
    for size, shape, devices in ((1, (1,), (1,)), (2, (1, 1), (4,)), (4, (1,), (1, 1))):
        cut = ("head",) if len(shape) > 1 else ()
        changed = replace(config, microbatch_size=size, shape=Shape(shape), cut=cut)
        losses = bundled_losses(changed, devices, tmp_path / str(size))
        assert losses == pytest.approx(plain, rel=1e-12), f"micro-batches of {size}"
        rows = history(tmp_path / str(size))
        validations.append([row["loss"] for row in rows if row["kind"] == "eval"])
    assert len(validations[0]) == 2
    assert validations[1] == pytest.approx(validations[0], rel=1e-12)
    assert validations[2] == pytest.approx(validations[0], rel=1e-12)


def test_complex_parameters_are_summed_clipped_and_kept(tmp_path: Path) -> None:
    config = replace(CONFIG, data="complex", clip_norm=0.1)
    plain = plain_losses(config)
    assert bundled_losses(config, (1, 1), tmp_path / "two") == pytest.approx(plain, rel=1e-12)
    half = replace(config, shape=Shape((1, 1)), cut=("turn",), max_steps=2, snapshot="on")
    bundled_losses(half, (2,), tmp_path / "cut")
    whole = replace(config, max_steps=0)
    found = bundled_losses(whole, (1,), tmp_path / "cut")
    assert found == pytest.approx(plain, rel=1e-12), "as resumed from what was kept"
    newest = survey(RunPaths(tmp_path / "cut" / "run")).found[0]
    tensors = read_tensors(newest, ["model.turn.weight", "model.phases"])
    assert {t.dtype for t in tensors.values()} == {torch.complex128, torch.complex64}
    assert tensors["model.phases"].shape == (5,)


def test_sparse_gradients_are_summed_as_dense_ones(tmp_path: Path) -> None:
    config = replace(CONFIG, data="sparse")
    plain = plain_losses(config)
    assert bundled_losses(config, (1,), tmp_path / "one") == pytest.approx(plain, rel=1e-12)
    assert bundled_losses(config, (1, 1), tmp_path / "two") == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize(("shape", "devices"), [((1,), (2,)), ((1, 1), (4,))], ids=str)
def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_good_checkpoint(
    shape: tuple[int, ...], devices: tuple[int, ...], tmp_path: Path
) -> None:
    config = replace(
        CONFIG, data="nan", shape=Shape(shape), cut=("head",)[: len(shape) - 1], checkpoint_steps=1
    )
    plain = plain_losses(config)
    number = next(i for i, loss in enumerate(plain) if math.isnan(loss))
    assert number > 0
    config = replace(config, run_dir=str(tmp_path / "run"))
    ends = outcomes(devices, trains(config), tmp_path, 60)
    told = [text for text in ends.values() if f"the loss of step {number + 1} is nan" in text]
    assert len(told) == sum(devices) // len(shape), "all replicas of the last stage"
    assert all("DivergedError" in text for text in told)
    assert losses_of(tmp_path) == pytest.approx(plain[:number], rel=1e-12)
    newest = survey(RunPaths(tmp_path / "run")).found[0]
    assert newest.step == number
    tensors = read_tensors(newest, newest.weight_map)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize(("shape", "devices"), [((1,), (2,)), ((1, 1), (4,))], ids=str)
def test_steps_without_a_number_are_left_out_on_all_ranks(
    shape: tuple[int, ...], devices: tuple[int, ...], tmp_path: Path
) -> None:
    config = replace(
        CONFIG, data="nan", shape=Shape(shape), cut=("head",)[: len(shape) - 1], on_nan="skip",
        verify_replicas=True,
    )  # fmt: skip
    plain = plain_losses(config)
    assert sum(map(math.isnan, plain)) == 2
    losses = bundled_losses(config, devices, tmp_path)
    assert list(map(float, losses)) == pytest.approx(plain, rel=1e-12, nan_ok=True)
    rows = [row for row in history(tmp_path) if row["kind"] == "step"]
    assert [bool(row.get("left_out")) for row in rows] == list(map(math.isnan, plain))


def test_who_wants_it_may_go_on_without_numbers(tmp_path: Path) -> None:
    config = replace(CONFIG, data="nan", on_nan="ignore", checkpoint_steps=1)
    losses = bundled_losses(config, (1,), tmp_path / "ignore")
    assert math.isnan(float(losses[-1]))
    assert survey(RunPaths(tmp_path / "ignore" / "run")).found[0].step == 6


def test_the_best_checkpoint_stays_where_lower_is_better(tmp_path: Path) -> None:
    config = replace(CONFIG, data="best", lr=0.5, epochs=4, keep=1, validate=True)
    bundled_losses(replace(config, shape=Shape((1, 1)), cut=("head",)), (2,), tmp_path)
    values = {
        row["step"]: row["metrics"]["mae"] for row in history(tmp_path) if row["kind"] == "eval"
    }
    best = min(values, key=values.__getitem__)
    assert best != max(values), "else it is kept as the newest"
    kept = survey(RunPaths(tmp_path / "run")).found
    assert {checkpoint.step for checkpoint in kept} == {best, max(values)}
    found = best_of(kept)
    assert found is not None
    assert found.step == best


def test_metrics_and_score_are_there_where_the_first_bundle_validates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Feed.validation

    def by_the_other(self: Feed) -> object:
        before, self._plan = self._plan, SharePlan(2)
        self._plan.change(0, Speeds((1e6, 1.0), (0.0, 0.0)))
        works, batches = honest(self)
        read = list(batches)  # asked for as they are taken, by the shares of that time
        self._plan = before
        return works, iter(read)

    monkeypatch.setattr(Feed, "validation", by_the_other)
    config = replace(CONFIG, data="best", validate=True, run_dir=str(tmp_path / "run"))
    run_ranks((1, 1), trains(config), tmp_path)
    values = [row["metrics"]["mae"] for row in history(tmp_path) if row["kind"] == "eval"]
    scores = [c.progress.score for c in survey(RunPaths(tmp_path / "run")).found]
    assert {round(score or 0.0, 9) for score in scores} == {round(-value, 9) for value in values}
    assert len(scores) == 2


def test_nested_state_and_numbers_of_groups_go_on_in_another_cut(tmp_path: Path) -> None:
    config = replace(CONFIG, data="remembers", snapshot="on")
    plain = plain_losses(config)
    cut = replace(config, shape=Shape((1, 1)), cut=("head",), max_steps=3)
    bundled_losses(cut, (2,), tmp_path)
    assert bundled_losses(config, (1, 1), tmp_path) == pytest.approx(plain, rel=1e-12)


def test_a_scheduler_of_the_recipe_holds_and_goes_on(tmp_path: Path) -> None:
    config = replace(CONFIG, data="scheduled")
    plain = plain_losses(config)
    cut = replace(config, shape=Shape((1, 1)), cut=("head",), max_steps=3)
    bundled_losses(cut, (2,), tmp_path)
    assert bundled_losses(config, (1, 1), tmp_path) == pytest.approx(plain, rel=1e-12)
    rates = [row["lr"] for row in history(tmp_path) if row["kind"] == "step"]
    assert rates == pytest.approx([config.lr * (step + 1) / 4 for step in range(6)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("hoards", "this run could not be saved: cannot keep 'lock' of Hoards for 'body.weight'"),
        ("sparse buffer", "this run could not be saved: cannot write 'model.mask': its layout is"),
    ],
)
def test_what_no_checkpoint_could_hold_is_refused_with_the_first_step(
    data: str, message: str, tmp_path: Path
) -> None:
    config = replace(CONFIG, data=data, run_dir=str(tmp_path / "run"))
    (text,) = outcomes((1,), trains(config), tmp_path, 60).values()
    assert "ConfigError" in text
    assert message in text


def test_a_run_does_not_go_on_with_another_optimizer(tmp_path: Path) -> None:
    config = replace(CONFIG, data="pair", max_steps=2, run_dir=str(tmp_path / "run"))
    bundled_losses(config, (1,), tmp_path)
    other = replace(config, data="remembers", max_steps=4)
    (text,) = outcomes((1,), trains(other), tmp_path, 60).values()
    assert "ConfigError" in text
    assert "is of the optimizer SGD, and this run has Remembers" in text
