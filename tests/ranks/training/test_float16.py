"""float16 with a loss scale, which all ranks of all stages move alike.

A CPU has no use for it, so the options refuse it there; here the scale is forced on in other
precisions, in which it changes no bit, and gradients are made infinite on one rank.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.checkpoints import survey
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.optim import loss_scale
from bundlerun.workers.optim.loss_scale import INITIAL, LossScale
from bundlerun.workers.pipeline.bundle import Bundle
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.train import train
from tests.ranks.harness import run_ranks
from tests.ranks.state.killed_runs import KILLED_AT, killed_run, restarts, shaped
from tests.ranks.state.test_resume import history
from tests.ranks.training.test_parity import (
    CONFIG,
    CUTS,
    NUM_STEPS,
    assert_close,
    assert_keeps_single_precision_and_learns,
    bundle_run,
    final_tensors,
    losses_of,
    run_state,
)

OVER_AT = 2
Layout = tuple[tuple[int, ...], tuple[int, ...]]
LAYOUTS: list[Layout] = [((1,), (1,)), ((1, 1), (2,)), ((1, 1), (2, 2))]


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss scale in every precision."""
    monkeypatch.setattr(LossScale, "of", lambda config: LossScale(is_dynamic=True))


def overflow(step: int) -> None:
    """Makes a gradient of this process infinite in a step, before it is summed."""
    honest = Bundle._backward
    left = [step]

    def tampered(self: Bundle, one: Any, action: Any) -> None:
        honest(self, one, action)
        if one.work.step in left:
            left.clear()  # after the first of several micro-batches: the others are added
            gradient = next(p.grad for p in self.stage.parameters() if p.grad is not None)
            gradient.view(-1)[0] = math.inf

    Bundle._backward = tampered  # type: ignore[method-assign]


def run_with_overflow(
    config: TrainConfig, nodes: tuple[int, ...], folder: Path, rank: int
) -> dict[str, Tensor]:
    """The state that a run leaves in which one rank's gradient overflows in step `OVER_AT`."""
    cut = CUTS[config.shape.num_stages]
    config = replace(config, cut=cut, run_dir=str(folder / "run"))

    def main(env: RankEnv, store: Store) -> None:
        if env.rank == rank:
            overflow(OVER_AT)
        train(config, env, store)

    run_ranks(nodes, main, folder)
    return final_tensors(folder)


def scales(folder: Path) -> list[float]:
    """Of each step, those that were done again included; minus where it was left out."""
    rows = [row for row in history(folder) if row["kind"] == "step"]
    return [row["loss_scale"] * (-1 if "left_out" in row else 1) for row in rows]


@pytest.mark.parametrize(("shape", "nodes"), LAYOUTS, ids=str)
def test_a_loss_scale_changes_no_bit(
    shape: tuple[int, ...], nodes: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, precision="float32", shape=Shape(shape))
    plain = bundle_run(config, nodes, tmp_path / "plain")
    monkeypatch.setattr(LossScale, "of", lambda config: LossScale(is_dynamic=True))
    found = bundle_run(config, nodes, tmp_path / "scaled")
    assert all(torch.equal(found[name], value) for name, value in plain.items())
    assert losses_of(tmp_path / "scaled") == losses_of(tmp_path / "plain")
    assert scales(tmp_path / "scaled") == [INITIAL] * NUM_STEPS
    assert not any("loss_scale" in row for row in history(tmp_path / "plain"))


@pytest.mark.usefixtures("scaled")
def test_an_overflow_on_one_rank_leaves_the_step_out_on_all(tmp_path: Path) -> None:
    one = replace(CONFIG, shape=Shape((1,)))
    wanted = run_with_overflow(one, (1,), tmp_path / "one", 0)
    expected = [INITIAL] * 2 + [-INITIAL] + [INITIAL / 2] * 2
    assert scales(tmp_path / "one") == expected
    before = run_with_overflow(replace(one, max_steps=OVER_AT), (1,), tmp_path / "before", 0)
    after = run_with_overflow(replace(one, max_steps=OVER_AT + 1), (1,), tmp_path / "after", 0)
    # Nothing of the step is left, in the optimizer and the batch norms neither.
    assert all(torch.equal(after[name], value) for name, value in before.items())
    cases = [((1, 1), (2,), 0), ((1, 1), (2,), 1), ((1, 1), (2, 2), 2), ((2, 1), (3, 3), 5)]
    for number, (shape, nodes, rank) in enumerate(cases):
        folder = tmp_path / str(number)
        found = run_with_overflow(replace(CONFIG, shape=Shape(shape)), nodes, folder, rank)
        assert_close(found, wanted, 1e-10)
        assert scales(folder) == expected
        assert losses_of(folder) == pytest.approx(losses_of(tmp_path / "one"), rel=1e-10)


@pytest.mark.usefixtures("scaled")
def test_a_checkpoint_has_the_scale_and_how_long_it_has_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 2)
    config = replace(CONFIG, precision="float32", shape=Shape((1, 1)), on_nan="skip")
    wanted = run_with_overflow(config, (2,), tmp_path / "whole", 1)
    stopped = tmp_path / "stopped"
    run_with_overflow(replace(config, max_steps=4), (2,), stopped, 1)
    progress = survey(RunPaths(stopped / "run")).found[0].progress
    assert (progress.loss_scale, progress.loss_scale_steps) == (INITIAL, 1)
    found = run_state(replace(config, cut=CUTS[2]), (2,), stopped)
    assert all(torch.equal(wanted[f"model.{name}"], value) for name, value in found.items())
    expected = [INITIAL, INITIAL, -2 * INITIAL, INITIAL, INITIAL]
    assert scales(tmp_path / "whole") == scales(stopped) == expected
    last = [survey(RunPaths(f / "run")).found[0].progress for f in (tmp_path / "whole", stopped)]
    assert [(p.loss_scale, p.loss_scale_steps) for p in last] == [(2 * INITIAL, 0)] * 2


@pytest.mark.usefixtures("scaled")
def test_a_snapshot_has_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 2)
    config = shaped((1, 1), tmp_path)
    killed_run(config, (2,), tmp_path, "optimizer", 0)
    run_state(config, (2,), tmp_path)
    assert restarts(tmp_path) == [(KILLED_AT, "snapshot")]
    doubled = [INITIAL * 2 ** (step // 2) for step in range(config.max_steps)]
    assert scales(tmp_path) == doubled


def test_float16_keeps_its_parameters_in_single_precision_and_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainConfig, "check_kind", lambda self, kind: None)
    assert_keeps_single_precision_and_learns("float16", tmp_path)
    assert {abs(scale) for scale in scales(tmp_path)} <= {INITIAL / 2**i for i in range(10)}
