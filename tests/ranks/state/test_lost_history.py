"""The history has each step once, whatever was left of the run to go on from."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import Store

from bundlerun.launcher.errors import EXIT_RESUMABLE
from bundlerun.launcher.run_folder.checkpoints import survey
from bundlerun.launcher.run_folder.outcome import read_outcome
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.run.keeper import Keeper
from bundlerun.workers.train import train
from bundlerun.workers.trainer import Trainer
from tests.ranks.harness import outcomes, run_ranks
from tests.ranks.rank.test_failures import two_stages
from tests.ranks.state.test_resume import history, trains
from tests.ranks.training.test_parity import NUM_STEPS


def steps_in(folder: Path) -> list[int]:
    return [row["step"] for row in history(folder) if row["kind"] == "step"]


def test_a_run_that_begins_at_0_again_takes_the_old_rows_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = two_stages(tmp_path, max_steps=NUM_STEPS, snapshot="off")
    honest = Trainer.step

    def step(self: Trainer, work: Any, *rest: Any) -> object:
        if work.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(self, work, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", step)
        outcomes((2,), trains(config), tmp_path, 60)
    assert steps_in(tmp_path) == [0, 1, 2]
    run_ranks((2,), trains(config), tmp_path)
    assert steps_in(tmp_path) == list(range(NUM_STEPS))
    restarts = [row for row in history(tmp_path) if row["kind"] == "restart"]
    assert [(row["step"], row["source"]) for row in restarts] == [(0, "nothing")]


def rename(run: Path) -> None:
    run.rename(run.with_name("renamed"))


@pytest.mark.parametrize("what", [shutil.rmtree, rename], ids=["deleted", "renamed"])
@pytest.mark.parametrize("when", ["in step 2", "at the end"])
def test_a_run_folder_that_goes_under_the_run_is_made_again_with_history_and_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Callable[[Path], None], when: str
) -> None:
    config = two_stages(tmp_path, max_steps=NUM_STEPS, checkpoint_steps=1)
    run = tmp_path / "run"
    step, save = Trainer.step, Keeper.save

    def tampered_step(self: Trainer, work: Any, *rest: Any) -> object:
        if (when, work.step, self._session.is_reporter) == ("in step 2", 2, True):
            what(run)
        return step(self, work, *rest)

    def tampered_save(self: Keeper, progress: Any) -> None:
        save(self, progress)
        is_last = progress.step == NUM_STEPS and progress.step_in_epoch == 0
        if is_last and when == "at the end" and self._session.is_reporter:
            what(run)

    monkeypatch.setattr(Trainer, "step", tampered_step)
    monkeypatch.setattr(Keeper, "save", tampered_save)

    def main(env: RankEnv, store: Store) -> None:
        monkeypatch.setattr("bundlerun.workers.rank.life.stopping.LOOK_S", 0.0)
        assert train(config, env, store) == EXIT_RESUMABLE

    run_ranks((2,), main, tmp_path)
    done = 4 if when == "in step 2" else NUM_STEPS
    assert steps_in(tmp_path) == list(range(done))
    assert survey(RunPaths(run)).found[0].step == done
    assert RunPaths(run).run_id.exists()
    outcome = read_outcome(RunPaths(run))
    assert outcome is not None
    assert outcome.state == "stopped"
    assert "deleted or renamed" in outcome.reason
    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(Keeper, "save", save)
    run_ranks((2,), trains(config), tmp_path)
    assert steps_in(tmp_path) == list(range(NUM_STEPS))
