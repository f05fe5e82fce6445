"""A run that stops and goes on, on other ranks, ends where an uninterrupted one does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.checkpoints import survey
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.train import train
from tests.ranks.harness import RankMain, outcomes, run_ranks
from tests.ranks.reference import train_unsplit
from tests.ranks.training.test_parity import (
    CONFIG,
    MIXED,
    NUM_STEPS,
    assert_close,
    assert_same_average,
    bundle_run,
    losses_of,
)

Layout = tuple[tuple[int, ...], tuple[int, ...]]
STOP_AT = 3  # in the middle of the first epoch of five steps
ADAMW = {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1}


@pytest.mark.parametrize("optimizer", [{}, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (((1, 1), (4,)), ((1,), (2, 1))),
        (((1,), (1,)), ((1, 1, 1), (3,))),
        (((1, 1, 1), (3,)), ((2, 1), (3, 3))),
    ],
    ids=str,
)
def test_another_split_shape_and_number_of_nodes_may_resume(
    first: Layout, then: Layout, optimizer: dict[str, Any], tmp_path: Path
) -> None:
    config = replace(MIXED, **optimizer)
    bundle_run(replace(config, shape=Shape(first[0]), max_steps=STOP_AT), first[1], tmp_path)
    assert len(losses_of(tmp_path)) == STOP_AT
    state = bundle_run(replace(config, shape=Shape(then[0])), then[1], tmp_path)
    reference = train_unsplit(config, NUM_STEPS)
    assert_close(state, reference.state, 1e-10)
    assert losses_of(tmp_path) == pytest.approx(reference.losses, rel=1e-10)
    assert_same_average(tmp_path, reference)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    config = replace(CONFIG, shape=Shape((1, 1)), checkpoint_steps=2, max_steps=4)
    bundle_run(config, (2,), tmp_path)
    paths = RunPaths(tmp_path / "run")
    assert [c.step for c in survey(paths).found] == [4, 2]
    part = paths.checkpoint(4) / "stage-1.safetensors"
    data = bytearray(part.read_bytes())
    data[-5] ^= 1
    part.write_bytes(bytes(data))
    state = bundle_run(replace(config, max_steps=NUM_STEPS), (2,), tmp_path)
    restarts = [row["step"] for row in history(tmp_path) if row["kind"] == "restart"]
    assert restarts == [2]
    assert_close(state, train_unsplit(CONFIG, NUM_STEPS).state, 1e-10)


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    config = replace(CONFIG, shape=Shape((1, 1)), validate=True)
    bundle_run(config, (2,), tmp_path)
    summary = RunPaths(tmp_path / "run").summary
    before = json.loads(summary.read_text())
    bundle_run(config, (2,), tmp_path)
    steps = [row["step"] for row in history(tmp_path) if row["kind"] == "step"]
    assert steps == list(range(NUM_STEPS))
    after = json.loads(summary.read_text())
    assert after["steps"] == NUM_STEPS
    assert after["validation"] == before["validation"]


def test_the_loss_curves_of_one_two_and_four_bundles_agree(tmp_path: Path) -> None:
    config = replace(CONFIG, shape=Shape((1, 1)), max_steps=0, epochs=2)
    curves = []
    for count in (1, 2, 4):
        folder = tmp_path / str(count)
        bundle_run(config, (2 * count,), folder)
        curves.append(losses_of(folder))
    assert len(curves[0]) == 2 * NUM_STEPS
    assert curves[1] == pytest.approx(curves[0], rel=1e-10)
    assert curves[2] == pytest.approx(curves[0], rel=1e-10)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    config = replace(CONFIG, shape=Shape((1,)), run_dir=str(tmp_path / "run"))
    bundle_run(config, (1,), tmp_path)
    other = replace(config, model="squeezenet1_1", image_size=64, max_steps=9)
    found = outcomes((1,), trains(other), tmp_path / "other", 60)
    assert "is it of another --model?" in found[0]


@pytest.mark.parametrize(
    ("stop_at", "change"),
    [
        (STOP_AT, {"batch_size": 12}),
        (NUM_STEPS, {"batch_size": 12}),
        (NUM_STEPS, {"synthetic_samples": 90}),
        (STOP_AT, {"seed": 77}),
    ],
    ids=str,
)
def test_a_checkpoint_that_counts_other_steps_is_refused_by_every_rank(
    stop_at: int, change: dict[str, Any], tmp_path: Path
) -> None:
    config = replace(
        CONFIG,
        shape=Shape((1, 1)),
        cut=("second",),
        run_dir=str(tmp_path / "run"),
        max_steps=stop_at,
    )
    run_ranks((2,), trains(config), tmp_path)
    found = outcomes((2,), trains(replace(config, max_steps=99, **change)), tmp_path, 60)
    assert sorted(found) == [0, 1]
    other_data = "this run has other DATA: the number of training samples was 107, is 90"
    reason = other_data if "synthetic_samples" in change else "the checkpoint of step"
    for text in found.values():
        assert f"ConfigError: {reason}" in text
        assert "seed" not in change or "resume with --seed" in text
    assert [c.step for c in survey(RunPaths(tmp_path / "run")).found] == [stop_at]


@pytest.mark.parametrize("rank", [1, 3])
def test_replicas_that_differ_are_noticed(rank: int, tmp_path: Path) -> None:
    from bundlerun.workers.verify.verifier import Verifier

    honest = Verifier.verify
    config = replace(
        CONFIG, shape=Shape((1, 1)), cut=("second",), run_dir=str(tmp_path / "run"), timeout_s=10
    )

    def main(env: RankEnv, store: Store) -> None:
        def tampered(self: Verifier, step: int) -> None:
            if step == 2 and env.rank == rank:
                tensor = self._replicas._entries()[0].find()
                assert tensor is not None
                tensor.data.view(-1)[0] += 1e-12
            honest(self, step)

        Verifier.verify = tampered  # type: ignore[method-assign] # in this rank's process only
        train(config, env, store)

    found = outcomes((4,), main, tmp_path, 60)
    assert "the replicas of stage 1 differ after step 2" in found[rank]


def trains(config: TrainConfig) -> RankMain:
    def main(env: RankEnv, store: Store) -> None:
        train(config, env, store)

    return main


def history(folder: Path) -> list[dict[str, Any]]:
    lines = RunPaths(folder / "run").metrics.read_text().splitlines()
    return [json.loads(line) for line in lines]
