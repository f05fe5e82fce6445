"""A run whose last state is on no disk does not end with 0, and nobody else sweeps that state."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import EXIT_FAILED, EXIT_RESUMABLE
from bundlerun.launcher.run_folder.checkpoints import survey
from bundlerun.launcher.run_folder.outcome import Outcome, read_outcome
from bundlerun.launcher.run_folder.paths import RunPaths, SnapshotPaths
from bundlerun.workers.optim.update import Update
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.snapshot.mark import read_mark
from bundlerun.workers.snapshot.room import sweep
from bundlerun.workers.train import train
from tests.ranks.harness import outcomes, run_ranks
from tests.ranks.rank.test_failures import two_stages
from tests.ranks.reference import train_unsplit
from tests.ranks.state.test_resume import history
from tests.ranks.training.test_parity import NUM_STEPS, assert_close, losses_of, run_state


def ends_with(code: int, config: TrainConfig) -> Callable[[RankEnv, Store], None]:
    def main(env: RankEnv, store: Store) -> None:
        assert train(config, env, store) == code

    return main


def block(folder: Path) -> Path:
    """No checkpoint can be written: a file is where their folder would be."""
    blocker = RunPaths(folder / "run").checkpoints
    blocker.parent.mkdir(parents=True, exist_ok=True)
    blocker.write_text("")
    return blocker


def outcome_in(folder: Path) -> Outcome:
    outcome = read_outcome(RunPaths(folder / "run"))
    assert outcome is not None
    return outcome


def test_what_could_not_be_written_stays_in_memory_and_the_same_command_writes_it(
    tmp_path: Path, shared_memory: Path
) -> None:
    # No snapshot of the last step is due: it is taken because the checkpoint failed.
    config = two_stages(tmp_path, max_steps=NUM_STEPS, snapshot_steps=3, validate=True)
    blocker = block(tmp_path)
    run_ranks((4,), ends_with(EXIT_RESUMABLE, config), tmp_path)
    (folder,) = shared_memory.iterdir()
    outcome = outcome_in(tmp_path)
    assert (outcome.state, outcome.exit_code) == ("stopped", EXIT_RESUMABLE)
    for text in ("all steps done, but", "on no disk", str(folder), "the same command"):
        assert text in outcome.reason
    mark = read_mark(folder)
    assert mark is not None
    assert (mark.step, mark.run_dir) == (NUM_STEPS, config.run_dir)

    # A stranger's run, much later, in need of memory.
    os.utime(SnapshotPaths.lock(folder), (0, 0))
    stranger = SnapshotPaths(root=shared_memory, uid=os.getuid(), run="other", node_name="node0")
    assert sweep(stranger, grace_s=0.0) == 0

    blocker.unlink()
    state = run_state(replace(config, snapshot_steps=0), (2,), tmp_path)
    assert_close(state, train_unsplit(config, NUM_STEPS).state, 1e-10)
    rows = history(tmp_path)
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(NUM_STEPS))
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [NUM_STEPS]
    assert outcome_in(tmp_path).state == "done"
    assert list(shared_memory.iterdir()) == []


def test_without_snapshots_the_run_fails_and_says_that_the_state_is_lost(tmp_path: Path) -> None:
    config = two_stages(tmp_path, max_steps=NUM_STEPS, snapshot="off")
    block(tmp_path)
    run_ranks((3,), ends_with(EXIT_FAILED, config), tmp_path)  # the spare rank, too
    outcome = outcome_in(tmp_path)
    assert (outcome.state, outcome.exit_code, outcome.step) == ("failed", EXIT_FAILED, NUM_STEPS)
    assert "is lost" in outcome.reason


def test_the_mark_goes_with_the_next_checkpoint_that_can_be_written(
    tmp_path: Path, shared_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bundlerun.workers.run.keeper import Keeper

    config = two_stages(tmp_path, checkpoint_steps=2, max_steps=NUM_STEPS, snapshot_steps=1)
    blocker = block(tmp_path)
    honest = Keeper.save
    seen: list[bool] = []

    def save(self: Keeper, progress: object) -> None:
        if progress.step == 4:  # type: ignore[attr-defined]
            seen.append(any(read_mark(folder) for folder in shared_memory.iterdir()))
            with suppress(OSError):  # the other rank was quicker
                blocker.unlink()
        honest(self, progress)  # type: ignore[arg-type]
        if progress.step == 4:  # type: ignore[attr-defined]
            seen.append(any(read_mark(folder) for folder in shared_memory.iterdir()))

    monkeypatch.setattr(Keeper, "save", save)

    def main(env: RankEnv, store: Store) -> None:
        assert train(config, env, store) == 0
        assert seen == [True, False]

    run_ranks((2,), main, tmp_path)
    assert [c.step for c in survey(RunPaths(tmp_path / "run")).found] == [NUM_STEPS, 4]
    assert len(losses_of(tmp_path)) == NUM_STEPS


def spoils(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient of stage 1 that is no number, of a loss that is one, makes parameters so."""
    honest = Update.apply

    def apply(self: Update, *args: Any, **kwargs: Any) -> bool:
        counts = honest(self, *args, **kwargs)
        if kwargs["step"] == step and self._session.place.stage == 1:
            next(self._stage.parameters()).data.view(-1)[0] = float("nan")
        return counts

    monkeypatch.setattr(Update, "apply", apply)


def test_a_snapshot_that_is_no_number_is_passed_over_for_the_checkpoint(
    tmp_path: Path, shared_memory: Path
) -> None:
    config = two_stages(tmp_path, max_steps=NUM_STEPS, snapshot_steps=1, checkpoint_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        spoils(2, patch)
        ended = outcomes((2,), ends_with(0, config), tmp_path, 60.0)
    assert "the loss of step 4 is nan" in ended[1]
    assert not any(read_mark(folder) for folder in shared_memory.iterdir())

    state = run_state(config, (2,), tmp_path)
    assert_close(state, train_unsplit(config, NUM_STEPS).state, 1e-10)
    restarts = [row for row in history(tmp_path) if row["kind"] == "restart"]
    assert [(row["step"], row["source"]) for row in restarts] == [(2, "checkpoint")]


def test_what_is_no_number_is_not_kept_as_a_result(tmp_path: Path, shared_memory: Path) -> None:
    config = two_stages(tmp_path, max_steps=NUM_STEPS, snapshot_steps=1)
    with pytest.MonkeyPatch.context() as patch:
        spoils(NUM_STEPS - 1, patch)
        run_ranks((2,), ends_with(EXIT_FAILED, config), tmp_path)
    assert not any(read_mark(folder) for folder in shared_memory.iterdir())
    outcome = outcome_in(tmp_path)
    assert (outcome.state, outcome.step) == ("failed", NUM_STEPS)
    assert "a parameter is no finite number" in outcome.reason

    ended = outcomes((2,), ends_with(0, config), tmp_path, 60.0)
    assert all(
        "there is no checkpoint; start again in another --run-dir" in t for t in ended.values()
    )
    assert len(ended) == 2
