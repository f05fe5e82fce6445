"""Ranks that are killed at any place go on from the memory of the nodes, no finished step lost."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.distributed import Store

from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.snapshot.device_copy import DeviceCopy
from bundlerun.workers.snapshot.slot import Slot
from bundlerun.workers.snapshot.snapshots import Snapshots
from bundlerun.workers.train import train
from bundlerun.workers.trainer import Trainer
from tests.ranks.harness import run_ranks
from tests.ranks.reference import Reference, train_unsplit
from tests.ranks.state.killed_runs import (
    KILLED_AT,
    NUM_STEPS,
    PLACES,
    SNAPSHOTS,
    Nodes,
    always,
    assert_like_one_that_was_not,
    at,
    killed_run,
    restarts,
    shaped,
    steps_in,
)
from tests.ranks.training.test_parity import assert_close, run_state

pytestmark = pytest.mark.usefixtures("memory_that_shows")


@pytest.fixture(scope="module")
def reference() -> Reference:
    return train_unsplit(SNAPSHOTS, NUM_STEPS)


KILLS = [
    pytest.param(place, rank, marks=[] if (number + rank) % 2 == 0 else [pytest.mark.slow])
    for number, place in enumerate(PLACES)
    for rank in (0, 3)
]


@pytest.mark.parametrize(("place", "rank"), KILLS)
def test_a_killed_run_goes_on_from_the_last_finished_step(
    place: str, rank: int, shared_memory: Path, reference: Reference, tmp_path: Path
) -> None:
    """The short form has each place once, with the ranks in turn."""
    config = shaped((1, 1), tmp_path)
    killed_run(config, (2, 2), tmp_path, place, rank)
    state = run_state(config, (2, 2), tmp_path)
    # Of two copies of each stage one may be whole though the killed rank's never was.
    steps = [KILLED_AT - 1, KILLED_AT] if place == "copy" else [KILLED_AT]
    assert [(s, "snapshot") for s in steps].count(restarts(tmp_path)[0]) == 1
    assert_like_one_that_was_not(state, tmp_path, reference)
    assert list(shared_memory.iterdir()) == [], "an orderly end leaves nothing"


def test_the_last_copy_under_way_is_never_taken(reference: Reference, tmp_path: Path) -> None:
    config = shaped((1, 1), tmp_path)
    killed_run(config, (2,), tmp_path, "copy", 1)
    state = run_state(config, (2,), tmp_path)
    assert restarts(tmp_path) == [(KILLED_AT - 1, "snapshot")]
    assert_like_one_that_was_not(state, tmp_path, reference)


@pytest.mark.parametrize("nodes", [(2, 2), (2,)], ids=str)
def test_a_second_failure_right_after_the_first_loses_nothing_either(
    nodes: Nodes, shared_memory: Path, reference: Reference, tmp_path: Path
) -> None:
    config = shaped((1, 1), tmp_path)
    killed_run(config, (2,), tmp_path, "optimizer", 0)
    # Before the first snapshot of the second round is whole, and before its second is.
    killed_run(config, nodes, tmp_path, "copy", sum(nodes) - 1, KILLED_AT + 1)
    killed_run(config, (2,), tmp_path, "copy", 1, KILLED_AT + 2)
    state = run_state(config, (2,), tmp_path)
    found = [step for step, source in restarts(tmp_path) if source == "snapshot"]
    assert found[0] == KILLED_AT
    assert found[1] in ((KILLED_AT,) if nodes == (2,) else (KILLED_AT, KILLED_AT + 1))
    assert found[2] == KILLED_AT + 1
    assert_like_one_that_was_not(state, tmp_path, reference)
    assert not list(shared_memory.glob("*-node0"))


@pytest.mark.parametrize(
    ("model", "operation"), [("tiny_model", "batch_norm"), ("stateful_model", "linear")]
)
def test_a_copy_has_nothing_of_the_forward_that_runs_meanwhile(
    model: str, operation: str, shared_memory: Path, tmp_path: Path
) -> None:
    # Batch norms get other buffers for their forward; other state is written where it is.
    path = f"{Path(__file__).parents[1] / model}.py:build"
    changes: dict[str, Any] = {"model": path, "image_size": 8 if model == "tiny_model" else 4}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killed.mkdir()
    (killed / "shm").symlink_to(shared_memory)
    wanted = run_state(shaped((1, 1), whole, **changes), (2, 2), whole)
    late = at(Snapshots, "_copy_share", always, lambda: time.sleep(0.03))
    slow = at(nn.functional, operation, always, lambda: time.sleep(0.02))
    with late, slow:  # so the copy begins in the next forward, inside of such an operation
        killed_run(shaped((1, 1), killed, **changes), (2, 2), killed, "backward", 0)
    found = run_state(shaped((1, 1), killed, **changes), (2, 2), killed)
    assert restarts(killed) == [(KILLED_AT, "snapshot")]
    assert_close(found, wanted, 1e-10)


@pytest.mark.parametrize("slow_stage", [0, 1])
def test_whoever_has_finished_a_step_knows_that_all_have_the_one_before(
    slow_stage: int, shared_memory: Path, tmp_path: Path
) -> None:
    """I8, over all stages: no rank may get ahead of the slow copies of another stage."""
    # Clipping and checking replicas would have the stages wait for each other in each step.
    config = shaped((1, 1), tmp_path, microbatch_size=24, clip_norm=0.0, verify_replicas=False)

    def main(env: RankEnv, store: Store) -> None:
        honest = Trainer.step

        def step(self: Trainer, work: Any, *rest: Any) -> object:
            outcome = honest(self, work, *rest)
            if work.step:
                assert steps_in(shared_memory) in ([work.step], [work.step + 1])
            return outcome

        def is_slow(_: object, __: Slot, label: Any, ___: object) -> bool:
            return bool(label.stage == slow_stage)

        Trainer.step = step  # type: ignore[method-assign, assignment]
        with at(DeviceCopy, "write", is_slow, lambda: time.sleep(0.2)):
            train(config, env, store)

    # With one micro-batch of 24 the second bundle is idle: nobody waits for it but by the gate.
    run_ranks((2, 2), main, tmp_path)


def test_a_run_goes_on_without_snapshots_where_no_memory_is_left(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bundlerun.workers.snapshot import room as snapshot_folder

    monkeypatch.setattr(snapshot_folder, "has_room", lambda *_: False)
    state = run_state(shaped((1, 1), tmp_path), (2, 2), tmp_path)
    assert_like_one_that_was_not(state, tmp_path, reference)


def test_a_folder_that_is_made_anew_is_a_new_run(tmp_path: Path, shared_memory: Path) -> None:
    config = shaped((1,), tmp_path)
    killed_run(config, (1,), tmp_path, "optimizer", 0)
    assert list(shared_memory.iterdir())
    shutil.rmtree(tmp_path / "run")
    run_state(config, (1,), tmp_path)
    assert restarts(tmp_path) == []


def test_what_a_killed_run_left_is_removed_by_another_run_in_time(
    tmp_path: Path, shared_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    killed_run(shaped((1,), tmp_path), (2,), tmp_path, "forward", 0)
    (left,) = shared_memory.iterdir()
    assert list((tmp_path / "temp").iterdir()) == [], "memory that ranks share has no name"
    other = tmp_path / "other"
    run_state(shaped((1,), other), (1,), other)
    assert list(shared_memory.iterdir()) == [left], "it may start again"
    os.utime(left / "lock", (0, 0))
    run_state(shaped((1,), other, max_steps=NUM_STEPS + 1), (1,), other)
    assert list(shared_memory.iterdir()) == []


def test_with_snapshots_off_nothing_is_kept(tmp_path: Path, shared_memory: Path) -> None:
    config = shaped((1, 1), tmp_path, snapshot="off")
    run_state(config, (3,), tmp_path)
    assert list(shared_memory.iterdir()) == []
    assert not RunPaths(tmp_path / "run").run_id.exists()
    rows = [json.loads(line) for line in RunPaths(tmp_path / "run").metrics.open()]
    phases = next(row["phases"] for row in rows if row["kind"] == "epoch")
    assert phases["snapshot"] == 0
