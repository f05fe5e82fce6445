"""Ranks that are killed at any place go on from the memory of the nodes, no finished step lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.model.batchnorm import StatisticsPool
from bundlerun.workers.pipeline.bundle import Bundle
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.snapshot.device_copy import DeviceCopy
from bundlerun.workers.snapshot.restore import Restore
from bundlerun.workers.snapshot.restore_plan import Piece, newest_state
from bundlerun.workers.snapshot.slot import Slot, read_piece
from bundlerun.workers.snapshot.snapshots import Snapshots
from bundlerun.workers.sync import bucket
from bundlerun.workers.sync.gradient_sync import GradientSync
from bundlerun.workers.train import train
from bundlerun.workers.trainer import Trainer
from tests.ranks.harness import outcomes, run_ranks
from tests.ranks.reference import Reference, train_unsplit
from tests.ranks.state.test_resume import history
from tests.ranks.training.test_parity import CONFIG, CUTS, assert_close, losses_of, run_state

NUM_STEPS = 7  # one epoch of five steps, and two
KILLED_AT = 3
SNAPSHOTS = replace(CONFIG, max_steps=NUM_STEPS, snapshot_steps=1, share="equal")
Widths = tuple[int, ...]
Nodes = tuple[int, ...]
Act = Callable[[], None]


@pytest.fixture(autouse=True)
def _memory_that_shows() -> Iterator[None]:
    """What nobody initialises is NaN: a model that is restored draws no numbers before."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return train_unsplit(SNAPSHOTS, NUM_STEPS)


def shaped(shape: Widths, folder: Path, **changes: Any) -> TrainConfig:
    config = replace(
        SNAPSHOTS, shape=Shape(shape), cut=CUTS[len(shape)], run_dir=str(folder / "run")
    )
    return replace(config, **changes)


# --- where it is killed, and by whom


@contextmanager
def at(owner: object, name: str, is_it: Callable[..., bool], act: Act) -> Iterator[None]:
    """Lets `act` happen in the ranks where a method is called as `is_it` says."""
    honest = getattr(owner, name)

    def tampered(self: Any, *rest: Any) -> object:
        if is_it(self, *rest):
            act()
        return honest(self, *rest)

    setattr(owner, name, tampered)
    try:
        yield
    finally:
        setattr(owner, name, honest)


def always(*_: object) -> bool:
    return True


def counted(step: int) -> Callable[..., bool]:
    """True for the call number `step` of a method that is called once a step."""
    calls = iter(range(1 << 30))
    return lambda *_: next(calls) == step


def in_pass(step: int) -> Callable[..., bool]:
    return lambda _, one, *__: bool(one.work.step == step)


def of_label(step: int) -> Callable[..., bool]:
    return lambda _, label, *__: bool(label.step == step)


PLACES: dict[str, tuple[type, str, Callable[[int], Callable[..., bool]]]] = {
    "forward": (Bundle, "_forward", in_pass),
    "backward": (Bundle, "_backward", in_pass),
    "sync": (GradientSync, "finish", counted),
    "optimizer": (StatisticsPool, "apply", counted),
    "copy": (Slot, "seal", of_label),
}


def steps_in(shm: Path) -> list[int]:
    """The step of the newest whole state in the memory of all nodes together."""
    found = [read_piece(path) for path in shm.glob("*/*.piece")]
    state = newest_state([[Piece(p.label, p.layout.specs) for p in found if p is not None]])
    return [] if state is None else [state.id.step]


def until(is_so: Callable[[], bool], *, limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def killed_run(
    config: TrainConfig,
    nodes: Nodes,
    folder: Path,
    place: str,
    rank: int,
    step: int = KILLED_AT,
) -> None:
    """A run whose ranks are all killed at once when one of them is at a place, in one step."""
    pids = folder / "pids"
    pids.mkdir(exist_ok=True)
    shm = folder / "shm"

    def kill_all() -> None:
        if place not in ("copy", "optimizer"):
            until(lambda: steps_in(shm) == [step])
        for path in pids.iterdir():
            if int(path.name) != os.getpid():
                os.kill(int(path.name), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def main(env: RankEnv, store: Store) -> None:
        (pids / str(os.getpid())).touch()
        if env.rank != rank:
            train(config, env, store)
            return
        owner, name, is_it = PLACES[place]
        with at(owner, name, is_it(step), kill_all):
            train(config, env, store)

    found = outcomes(nodes, main, folder, 60)
    assert len(found) == sum(nodes)
    shutil.rmtree(pids)


def restarts(folder: Path) -> list[tuple[int, str]]:
    rows = [row for row in history(folder) if row["kind"] == "restart"]
    return [(row["step"], row["source"]) for row in rows]


def assert_like_one_that_was_not(
    state: dict[str, Tensor], folder: Path, reference: Reference
) -> None:
    assert_close(state, reference.state, 1e-10)
    assert losses_of(folder) == pytest.approx(reference.losses, rel=1e-10)
    steps = [row["step"] for row in history(folder) if row["kind"] == "step"]
    assert steps == list(range(NUM_STEPS)), "a step that is done again is reported once"


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("place", PLACES)
def test_a_killed_run_goes_on_from_the_last_finished_step(
    place: str, rank: int, shared_memory: Path, reference: Reference, tmp_path: Path
) -> None:
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


MOVES: list[tuple[tuple[Widths, Nodes], tuple[Widths, Nodes], tuple[int, ...]]] = [
    # shape and nodes before, after, and nodes whose memory is lost
    (((1, 1), (2, 2)), ((1, 1), (2,)), (1,)),
    (((1, 1), (2, 2)), ((1, 1), (2, 2)), (0,)),
    (((1, 1), (2, 2)), ((1, 1), (2, 4, 2)), ()),
    (((1, 1), (4,)), ((1,), (1, 1)), ()),
    (((1,), (2, 1)), ((1, 1, 1), (3,)), (1,)),
    (((1, 1, 1), (3, 3)), ((2, 1), (3, 3)), (0,)),
    (((2, 1), (3,)), ((1, 1, 1), (3, 3)), ()),
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
    for node in lost:
        for folder in shared_memory.glob(f"*-node{node}"):
            shutil.rmtree(folder)
    state = run_state(shaped(after[0], tmp_path), after[1], tmp_path)
    assert restarts(tmp_path) == [(KILLED_AT, "snapshot")]
    assert_like_one_that_was_not(state, tmp_path, reference)
    assert list(shared_memory.iterdir()) == []


@pytest.mark.parametrize("then", [(4, 2), (2, 4)], ids=str)
def test_the_same_nodes_go_on_bit_equal_rounding_included(
    then: Nodes, shared_memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "_MOST_WIDENED", 20)  # what is longer is rounded between nodes
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killed.mkdir()
    (killed / "shm").symlink_to(shared_memory)
    changes = {"precision": "float32", "exchange_dtype": "bfloat16", "clip_norm": 0.0}
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
    config = shaped((1, 1), tmp_path, checkpoint_steps=2)
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
