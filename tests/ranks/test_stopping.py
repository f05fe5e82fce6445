"""All ranks stop after the same step, whichever of them is told, in whatever shape they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed import Store

from launcher.config import TrainConfig
from launcher.errors import EXIT_RESUMABLE
from launcher.events import Events
from launcher.outcome import read_outcome
from launcher.paths import RunPaths
from tests.ranks.harness import run_ranks
from tests.ranks.test_failures import NUM_STEPS, losses_of, two_stages
from workers.env import RankEnv
from workers.liveness import Liveness
from workers.train import train


class Told(Liveness):
    """A rank that is told to stop from its second look on, if it is the one."""

    def __init__(self, *, is_the_one: bool) -> None:
        super().__init__(None, Events(None, ""), 0, is_launched=False)
        self._is_the_one = is_the_one
        self._looks = 0

    @property
    def is_told_to_stop(self) -> bool:
        self._looks += 1
        return self._is_the_one and self._looks > 1


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
    # Told before its step 1: heard by its stage behind that step, by all behind the next.
    assert len(losses_of(tmp_path)) == 3
    outcome = read_outcome(RunPaths(tmp_path / "run"))
    assert outcome is not None
    assert (outcome.state, outcome.step, outcome.exit_code) == ("stopped", 3, EXIT_RESUMABLE)
    assert RunPaths(tmp_path / "run").checkpoint(3).is_dir()


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


def test_a_request_of_an_earlier_run_is_not_followed_and_one_of_this_run_is(
    tmp_path: Path,
) -> None:
    config = two_stages(tmp_path, max_steps=NUM_STEPS)
    drain = RunPaths(tmp_path / "run").drain
    drain.parent.mkdir(parents=True)
    drain.write_text("{}")

    def main(env: RankEnv, store: Store) -> None:
        assert train(config, env, store) == 0

    run_ranks((2,), main, tmp_path)
    assert len(losses_of(tmp_path)) == NUM_STEPS
    assert not drain.exists()
