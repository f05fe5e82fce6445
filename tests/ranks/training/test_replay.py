"""Stages that run the model's own Python train like the unsplit model, in every schedule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from tests.ranks.reference import Reference, train_unsplit
from tests.ranks.training.test_parity import CONFIG, NUM_STEPS, assert_close, run_state

MODEL = f"{Path(__file__).parents[1] / 'untraced_model.py'}:build"
REPLAYED = replace(CONFIG, model=MODEL, cutter="replay")
CUTS = {2: ("second",), 3: ("second", "third"), 4: ("norm1", "second", "third")}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return train_unsplit(replace(CONFIG, model=MODEL), NUM_STEPS)


def replayed(shape: tuple[int, ...], schedule: str, chunks: int = 1) -> TrainConfig:
    return replace(
        REPLAYED,
        shape=Shape(shape),
        schedule=schedule,
        chunks=chunks,
        cut=CUTS[len(shape) * chunks],
    )


@pytest.mark.parametrize(
    ("config", "nodes"),
    [
        (replace(replayed((1, 1), "1f1b"), cutter="auto"), (2, 2)),
        (replayed((1, 1, 1), "zero-bubble"), (3,)),
        (replayed((1, 1), "interleaved", 2), (2,)),
        # Such stages are not compiled, and the run says so.
        (replace(replayed((2, 1), "gpipe"), recompute="all", compile="default"), (3,)),
    ],
    ids=["auto", "zero-bubble", "interleaved", "recomputed"],
)
def test_stages_that_replay_train_like_the_unsplit_model(
    config: TrainConfig, nodes: tuple[int, ...], reference: Reference, tmp_path: Path
) -> None:
    assert_close(run_state(config, nodes, tmp_path), reference.state, 1e-10)


def test_a_run_goes_on_with_other_stages_and_without_any(
    reference: Reference, tmp_path: Path
) -> None:
    for steps, shape in ((2, (1, 1, 1)), (3, (1,)), (NUM_STEPS, (1, 1))):
        config = replace(replayed(shape, "1f1b") if shape[1:] else REPLAYED, max_steps=steps)
        config = config if shape[1:] else replace(config, shape=Shape(shape))
        state = run_state(config, (len(shape),), tmp_path)
    assert_close(state, reference.state, 1e-10)


def test_bfloat16_is_bit_equal_to_one_process(tmp_path: Path) -> None:
    half = replace(REPLAYED, precision="bfloat16", clip_norm=0.0, max_steps=3)
    one = run_state(replace(half, shape=Shape((1,))), (1,), tmp_path / "one")
    two = run_state(replace(half, cut=CUTS[2], shape=Shape((1, 1))), (2,), tmp_path / "two")
    assert [name for name, value in one.items() if not torch.equal(two[name], value)] == []
