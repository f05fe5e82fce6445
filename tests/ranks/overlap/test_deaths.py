"""Ranks that die while sums come behind a forward: no finished step is lost."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import Store

from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.overlap.behind import Behind
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.run.course import Run
from bundlerun.workers.snapshot.device_copy import DeviceCopy
from bundlerun.workers.snapshot.slot import Slot
from bundlerun.workers.sync import bucket
from bundlerun.workers.sync.coming import Coming
from bundlerun.workers.sync.legs import Leg
from bundlerun.workers.train import train
from tests.ranks.harness import outcomes, run_ranks
from tests.ranks.state.killed_runs import PLACES, always, at, counted, killed_run, restarts, shaped
from tests.ranks.state.killed_runs import steps_in as steps_in_memory
from tests.ranks.training.test_parity import losses_of, run_state

BEHIND: dict[str, Any] = {
    "clip_norm": 0.0,
    "verify_replicas": False,
    "precision": "float32",
    "max_steps": 10,
    "synthetic_samples": 240,
}


@pytest.fixture(autouse=True)
def short_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models as small as these would have all their gradients in the first bucket."""
    monkeypatch.setattr(bucket, "MOST_WIDENED", 40)


def test_a_peer_that_dies_while_its_sums_are_awaited_is_an_error_of_the_forward(
    tmp_path: Path,
) -> None:
    config = shaped((1,), tmp_path, **BEHIND, overlap_forward=True, timeout_s=10.0)

    def main(env: RankEnv, store: Store) -> None:
        die = counted(1)

        def is_here(*arguments: Any) -> bool:
            return env.rank == 1 and die(*arguments)

        slow = at(Leg, "_finish_oldest", always, lambda: time.sleep(0.01))
        with slow, at(Behind, "leave", is_here, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            train(config, env, store)

    start = time.monotonic()
    found = outcomes((1, 1), main, tmp_path, timeout_s=60)
    assert "PeerGoneError" in found[0]
    assert "_wait_for" in found[0]
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("owner", "name", "number", "rank"),
    [(Coming, "release", 7, 0), (Behind, "leave", 3, 3), (Slot, "seal", 5, 1)],
)
def test_a_run_that_is_killed_meanwhile_goes_on_to_the_same_bits(
    owner: type,
    name: str,
    number: int,
    rank: int,
    shared_memory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killed.mkdir()
    (killed / "shm").symlink_to(shared_memory)
    wanted = run_state(shaped((1, 1), whole, **BEHIND), (2, 2), whole)
    config = shaped((1, 1), killed, **BEHIND, overlap_forward=True)
    # In the middle of what the optimizer does, with nothing of it done, and of a copy.
    monkeypatch.setitem(PLACES, "optimizer", (owner, name, lambda _: counted(number)))
    with at(Leg, "_finish_oldest", always, lambda: time.sleep(0.002)):
        killed_run(config, (2, 2), killed, "optimizer", rank)
        found = run_state(config, (2, 2), killed)
    ((step, source),) = restarts(killed)
    assert source == "snapshot"
    assert step > 0
    assert all(torch.equal(found[n], value) for n, value in wanted.items())
    assert losses_of(killed) == losses_of(whole)


@pytest.mark.parametrize("slow_stage", [0, 1])
def test_whoever_has_finished_a_step_knows_that_all_have_the_one_before(
    slow_stage: int, shared_memory: Path, tmp_path: Path
) -> None:
    """I8, over all stages, where a step is finished in the next forward."""
    config = shaped((1, 1), tmp_path, **BEHIND, overlap_forward=True)
    config = replace(config, microbatch_size=24)

    def main(env: RankEnv, store: Store) -> None:
        honest = Run._finish_step

        def finish(self: Run, progress: Progress, step_s: float) -> None:
            if progress.step > 1:
                assert steps_in_memory(shared_memory) in ([progress.step - 1], [progress.step])
            honest(self, progress, step_s)

        def is_slow(_: object, __: Slot, label: Any, ___: object) -> bool:
            return bool(label.stage == slow_stage)

        Run._finish_step = finish  # type: ignore[method-assign]
        with at(DeviceCopy, "write", is_slow, lambda: time.sleep(0.1)):
            train(config, env, store)

    # With one micro-batch of 24 the second bundle is idle: nobody waits for it but by the gate.
    run_ranks((2, 2), main, tmp_path)
