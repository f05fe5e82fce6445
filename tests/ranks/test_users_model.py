"""A user's modules run as they are: subclasses, hooks, what `train` freezes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.ranks.reference import Reference, train_unsplit
from tests.ranks.test_parity import CONFIG, NUM_STEPS, assert_close, losses_of, run_state

MODEL = f"{Path(__file__).with_name('users_model.py')}:build"
USERS = replace(CONFIG, model=MODEL, clip_norm=0.0)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return train_unsplit(USERS, NUM_STEPS)


@pytest.mark.parametrize(
    ("shape", "cut", "nodes"),
    [((1,), (), (2,)), ((1, 1), ("act",), (2, 2)), ((1, 1), ("frozen",), (2,))],
    ids=str,
)
def test_subclasses_hooks_and_frozen_layers_train_as_in_plain_torch(
    shape: tuple[int, ...],
    cut: tuple[str, ...],
    nodes: tuple[int, ...],
    reference: Reference,
    tmp_path: Path,
) -> None:
    state = run_state(replace(USERS, shape=shape, cut=cut), nodes, tmp_path)
    assert_close(state, reference.state, 1e-10)
    assert losses_of(tmp_path) == pytest.approx(reference.losses, rel=1e-10)
    assert torch.equal(state["frozen.running_mean"], torch.full((6,), 0.5).double())
