"""A user's modules run as they are: subclasses, hooks, what `train` freezes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed import Store

from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.train import train
from tests.ranks.harness import outcomes, run_ranks
from tests.ranks.reference import Reference, train_unsplit
from tests.ranks.state.test_resume import trains
from tests.ranks.training.test_parity import CONFIG, NUM_STEPS, assert_close, losses_of, run_state

MODEL = f"{Path(__file__).parents[1] / 'users_model.py'}:build"
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
    state = run_state(replace(USERS, shape=Shape(shape), cut=cut), nodes, tmp_path)
    assert_close(state, reference.state, 1e-10)
    assert losses_of(tmp_path) == pytest.approx(reference.losses, rel=1e-10)
    assert torch.equal(state["frozen.running_mean"], torch.full((6,), 0.5).double())


def test_a_model_that_comes_frozen_trains_what_its_train_thaws(tmp_path: Path) -> None:
    config = replace(USERS, model=MODEL.replace(":build", ":build_thawed"), shape=Shape((1,)))
    wanted = train_unsplit(config, NUM_STEPS)
    assert_close(run_state(config, (2,), tmp_path), wanted.state, 1e-10)
    assert losses_of(tmp_path) == pytest.approx(wanted.losses, rel=1e-10)


def test_a_model_that_its_stages_are_not_is_refused_at_the_first_start_only(
    tmp_path: Path,
) -> None:
    model = MODEL.replace(":build", ":build_by_momentum")
    config = replace(
        USERS,
        model=model,
        shape=Shape((1, 1)),
        cut=("_2",),
        run_dir=str(tmp_path / "run"),
        max_steps=1,
    )
    config = replace(config, precision="float32", timeout_s=10.0)
    found = outcomes((2, 2), trains(config), tmp_path, 60.0)
    assert "ConfigError: in training, Sequential in stages is not what it is by itself" in found[0]
    assert "another result is '1'" in found[0]
    assert sum("ConfigError" in text for text in found.values()) == 1

    def restarts(env: RankEnv, store: Store) -> None:
        train(config, replace(env, attempt=1), store)

    run_ranks((2, 2), restarts, tmp_path)
