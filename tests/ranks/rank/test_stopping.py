"""All ranks stop after the same step, whichever of them is told, in whatever shape they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import EXIT_RESUMABLE
from bundlerun.launcher.run_folder.checkpoints import survey
from bundlerun.launcher.run_folder.events import Events
from bundlerun.launcher.run_folder.outcome import read_outcome
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.run_folder.stop_request import request_stop
from bundlerun.workers.rank.arrival.session import arrive, join
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.life.liveness import Liveness
from bundlerun.workers.rank.life.stopping import StopWord
from bundlerun.workers.sync.schemes import ways_of
from bundlerun.workers.train import train
from tests.ranks.harness import run_ranks
from tests.ranks.rank.test_failures import NUM_STEPS, losses_of, two_stages


class Told(Liveness):
    """A rank that is told to stop from a look on, by default its second, if it is the one."""

    from_look = 2

    def __init__(self, *, is_the_one: bool) -> None:
        super().__init__(None, Events(None, ""), 0, is_launched=False)
        self._is_the_one = is_the_one
        self._looks = 0

    @property
    def is_told_to_stop(self) -> bool:
        self._looks += 1
        return self._is_the_one and self._looks >= self.from_look


def run_told(config: TrainConfig, nodes: tuple[int, ...], folder: Path, told: int) -> None:
    def main(env: RankEnv, store: Store) -> None:
        code = train(config, env, store, Told(is_the_one=env.rank == told))
        assert code == EXIT_RESUMABLE

    run_ranks(nodes, main, folder)


@pytest.mark.parametrize(
    ("nodes", "told"),
    [((2,), 0), ((2,), 1), ((1, 1), 0), ((4,), 3), ((2, 2), 2), ((1, 1, 2), 3), ((2, 1), 1)],
)
def test_whoever_is_told_all_stop_after_the_same_step(
    tmp_path: Path, nodes: tuple[int, ...], told: int
) -> None:
    config = two_stages(tmp_path, max_steps=NUM_STEPS)
    run_told(config, nodes, tmp_path, told)
    # Told before its step 1, which all finish, and no other.
    assert len(losses_of(tmp_path)) == 2
    outcome = read_outcome(RunPaths(tmp_path / "run"))
    assert outcome is not None
    assert (outcome.state, outcome.step, outcome.exit_code) == ("stopped", 2, EXIT_RESUMABLE)
    assert RunPaths(tmp_path / "run").checkpoint(2).is_dir()


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    config = two_stages(tmp_path / "whole", max_steps=NUM_STEPS)

    def main(env: RankEnv, store: Store) -> None:
        assert train(config, env, store) == 0

    run_ranks((2,), main, tmp_path / "whole")
    stopped = two_stages(tmp_path, max_steps=NUM_STEPS)
    run_told(stopped, (2,), tmp_path, told=0)

    def again(env: RankEnv, store: Store) -> None:
        assert train(stopped, env, store) == 0

    run_ranks((2,), again, tmp_path)
    assert losses_of(tmp_path) == losses_of(tmp_path / "whole")
    outcome = read_outcome(RunPaths(tmp_path / "run"))
    assert outcome is not None
    assert (outcome.state, outcome.step) == ("done", NUM_STEPS)


@pytest.mark.parametrize("look", [14, 15, 16], ids=["last step", "validation", "within it"])
def test_told_at_the_end_of_an_epoch_it_is_validated_by_the_start_that_goes_on(
    tmp_path: Path, look: int
) -> None:
    # 14 steps an epoch; 26 samples to validate, in parts of 24.
    config = two_stages(tmp_path, epochs=2, max_steps=0, validate=True, snapshot="off")
    config = replace(config, batch_size=8, microbatch_size=2)
    first = Told.from_look
    Told.from_look = look
    run_told(config, (2,), tmp_path, told=0)
    Told.from_look = first
    rows = history(tmp_path)
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(14))
    assert not [row for row in rows if row["kind"] == "eval"]
    assert [c.step for c in survey(RunPaths(tmp_path / "run")).found] == [14]

    def again(env: RankEnv, store: Store) -> None:
        assert train(config, env, store) == 0

    run_ranks((2,), again, tmp_path)
    rows = history(tmp_path)
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(28))
    for kind in ("epoch", "eval"):
        assert [row["step"] for row in rows if row["kind"] == kind] == [14, 28]
    assert [row["step"] for row in rows if row["kind"] == "restart"] == [14]


def history(folder: Path) -> list[dict[str, Any]]:
    text = RunPaths(folder / "run").metrics.read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_request_from_before_the_first_step_is_obeyed_and_gone_after_it(tmp_path: Path) -> None:
    config = two_stages(tmp_path, max_steps=NUM_STEPS)
    paths = RunPaths(tmp_path / "run")
    request_stop(paths, "bundlerun drain")

    def main(env: RankEnv, store: Store) -> None:
        assert train(config, env, store) == EXIT_RESUMABLE

    run_ranks((2,), main, tmp_path)
    assert len(losses_of(tmp_path)) == 1
    assert not paths.drain.exists()

    def again(env: RankEnv, store: Store) -> None:
        assert train(config, env, store) == 0

    run_ranks((2,), again, tmp_path)
    assert len(losses_of(tmp_path)) == NUM_STEPS


def test_a_bundle_is_ready_to_move_once_all_of_its_ranks_are(tmp_path: Path) -> None:
    config = two_stages(tmp_path)

    def main(env: RankEnv, store: Store) -> None:
        arrival = arrive(config, env, store)
        word = StopWord(join(config, arrival, ways_of(config, arrival).members).groups)
        # Ranks 0 and 1 are a bundle, 2 and 3 the other one.
        for ready, expected in (((), 0), ((0,), 0), ((0, 3), 0), ((0, 1), 2), ((0, 1, 2, 3), 4)):
            word.begin(False, is_ready=env.rank in ready)
            heard, _ = word.finish()
            assert not heard
            assert word.are_ready == (env.rank < expected)

    run_ranks((2, 2), main, tmp_path)
