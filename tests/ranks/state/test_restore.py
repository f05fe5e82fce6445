"""What memory has is found and brought to where it is needed, whatever the nodes and the shape."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import Store

from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.snapshot.restore import Restore
from bundlerun.workers.snapshot.slot import read_piece
from bundlerun.workers.sync import bucket
from bundlerun.workers.train import train
from tests.ranks.harness import outcomes
from tests.ranks.reference import Reference, train_unsplit
from tests.ranks.state.killed_runs import (
    KILLED_AT,
    NUM_STEPS,
    SNAPSHOTS,
    Nodes,
    Widths,
    assert_like_one_that_was_not,
    at,
    killed_run,
    lose,
    restarts,
    shaped,
)
from tests.ranks.training.test_parity import losses_of, run_state

UNTRACED = f"{Path(__file__).parents[1] / 'untraced_model.py'}:build"
pytestmark = pytest.mark.usefixtures("memory_that_shows")


@pytest.fixture(scope="module")
def reference() -> Reference:
    return train_unsplit(SNAPSHOTS, NUM_STEPS)


MOVES: list[tuple[tuple[Widths, Nodes], tuple[Widths, Nodes], tuple[int, ...]]] = [
    # shape and nodes before, after, and nodes whose memory is lost
    (((1, 1), (2, 2)), ((1, 1), (2,)), (1,)),
    (((1, 1), (2, 2)), ((1, 1), (2, 2)), (0,)),
    (((1, 1), (2, 2)), ((1, 1), (2, 4, 2)), ()),
    (((1, 1), (4,)), ((1,), (1, 1)), ()),
    (((1,), (2, 1)), ((1, 1, 1), (3,)), (1,)),
    (((1, 1, 1), (3, 3)), ((2, 1), (3, 3)), (0,)),
    (((2, 1), (3,)), ((1, 1, 1), (3, 3)), ()),
    (((1, 1, 1), (1, 1, 1)), ((1, 1), (1, 1)), (2,)),  # stage 2 was on node 2 alone, and its buddy
    (((1, 1), (1, 1)), ((1, 1), (1, 2)), ()),  # node 0 is spare then, and has the front alone
]


@pytest.mark.parametrize(("before", "after", "lost"), MOVES, ids=str)
def test_other_nodes_and_another_shape_go_on_without_losing_a_step(
    before: tuple[Widths, Nodes],
    after: tuple[Widths, Nodes],
    lost: tuple[int, ...],
    shared_memory: Path,
    reference: Reference,
    tmp_path: Path,
) -> None:
    killed_run(shaped(before[0], tmp_path), before[1], tmp_path, "optimizer", 0)
    lose(shared_memory, lost)
    state = run_state(shaped(after[0], tmp_path), after[1], tmp_path)
    assert restarts(tmp_path) == [(KILLED_AT, "snapshot")]
    assert_like_one_that_was_not(state, tmp_path, reference)
    assert list(shared_memory.iterdir()) == []


def test_stages_that_replay_and_recompute_go_on_with_another_cut(
    shared_memory: Path, tmp_path: Path
) -> None:
    how = {"model": UNTRACED, "cutter": "replay", "recompute": "all"}
    unsplit = train_unsplit(replace(SNAPSHOTS, model=UNTRACED), NUM_STEPS)
    killed_run(shaped((1, 1), tmp_path, **how, cut=("norm1",)), (2,), tmp_path, "optimizer", 0)
    # By the model's own names, which other stages have now.
    state = run_state(shaped((1, 1, 1), tmp_path, **how), (3,), tmp_path)
    assert restarts(tmp_path) == [(KILLED_AT, "snapshot")]
    assert_like_one_that_was_not(state, tmp_path, unsplit)
    assert list(shared_memory.iterdir()) == []


@pytest.mark.parametrize(
    ("then", "form"),
    [((4, 2), "bfloat16"), ((2, 4), "bfloat16"), ((4, 2), "int4")],
    ids=str,
)
def test_the_same_nodes_go_on_bit_equal_rounding_included(
    then: Nodes, form: str, shared_memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "MOST_WIDENED", 20)  # what is longer is rounded between nodes
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killed.mkdir()
    (killed / "shm").symlink_to(shared_memory)
    changes = {"precision": "float32", "exchange_dtype": form, "clip_norm": 0.0}
    wanted = run_state(shaped((1, 1), whole, **changes), (4, 2), whole)
    config = shaped((1, 1), killed, **changes)
    killed_run(config, (4, 2), killed, "optimizer", 1)
    assert len(list(shared_memory.glob("*/*feedback*"))) == 8, "two slots of four leaders"
    found = run_state(config, then, killed)
    assert restarts(killed) == [(KILLED_AT, "snapshot")]
    is_equal = all(torch.equal(found[name], value) for name, value in wanted.items())
    assert is_equal == (then == (4, 2)), "another layout has other sums"
    if is_equal:
        assert losses_of(killed) == losses_of(whole)


def test_without_a_copy_of_a_stage_the_newest_checkpoint_is_taken(
    shared_memory: Path, reference: Reference, tmp_path: Path
) -> None:
    config = shaped((1, 1), tmp_path, checkpoint_steps=2, snapshot_copies=1)
    killed_run(config, (1, 1), tmp_path, "optimizer", 0)
    for folder in shared_memory.glob("*-node1"):
        shutil.rmtree(folder)
    state = run_state(config, (1, 1), tmp_path)
    assert restarts(tmp_path) == [(2, "checkpoint")]
    assert_like_one_that_was_not(state, tmp_path, reference)


def test_damaged_pieces_are_passed_over(
    shared_memory: Path, reference: Reference, tmp_path: Path
) -> None:
    config = shaped((1, 1), tmp_path)
    killed_run(config, (2, 2), tmp_path, "optimizer", 0)
    for path in shared_memory.glob("*-node0/*.piece"):  # all that node 0 has
        data = bytearray(path.read_bytes())
        data[-9] ^= 4
        path.write_bytes(bytes(data))
    for path in shared_memory.glob("*-node1/*stage1*.piece"):  # the newest of stage 1 of node 1
        piece = read_piece(path)
        if piece is not None and piece.label.step == KILLED_AT:
            os.truncate(path, path.stat().st_size - 4096)
    state = run_state(config, (2, 2), tmp_path)
    assert restarts(tmp_path) == [(KILLED_AT - 1, "snapshot")]
    assert_like_one_that_was_not(state, tmp_path, reference)


@pytest.mark.parametrize("name", ["_receive", "_send", "load"])
def test_a_restore_that_is_killed_is_done_again(
    name: str, shared_memory: Path, reference: Reference, tmp_path: Path
) -> None:
    config = shaped((1, 1), tmp_path, timeout_s=4.0)
    killed_run(config, (2, 2), tmp_path, "optimizer", 0)
    for folder in shared_memory.glob("*-node1"):
        shutil.rmtree(folder)

    def main(env: RankEnv, store: Store) -> None:
        store.set_timeout(timedelta(seconds=4))  # as `open_store` does
        is_here = env.rank == (2 if name == "_receive" else 0)
        with at(Restore, name, lambda *_: is_here, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            train(config, env, store)

    assert len(outcomes((2, 2), main, tmp_path, 60)) == 4
    state = run_state(config, (2, 2), tmp_path)
    assert restarts(tmp_path)[-1] == (KILLED_AT, "snapshot")
    assert_like_one_that_was_not(state, tmp_path, reference)
    assert list(shared_memory.iterdir()) == []
