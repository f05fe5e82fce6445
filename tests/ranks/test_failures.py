"""A rank that dies ends the others in time; a full disk ends nobody."""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor
from torch.distributed import Store

from launcher.checkpoints import survey
from launcher.config import TrainConfig
from launcher.paths import RunPaths
from tests.ranks.harness import outcomes, run_ranks
from tests.ranks.test_parity import CONFIG, losses_of
from tests.ranks.test_resume import trains
from workers import checkpoint
from workers.bundle import Bundle
from workers.env import RankEnv
from workers.session import join
from workers.tensor_file import Written
from workers.train import train

LIMIT_S = 4.0


def two_stages(folder: Path, **changes: object) -> TrainConfig:
    config = replace(CONFIG, shape=(1, 1), cut=("second",), run_dir=str(folder / "run"))
    return replace(config, **changes)  # type: ignore[arg-type]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise ValueError("a mistake in the recipe")


@contextmanager
def at_step_2(place: str, rank: int, what: Callable[[], None]) -> Iterator[None]:
    """Injects `what` into one rank: `_forward`, `_backward` of a bundle in its third step."""
    honest = getattr(Bundle, place)

    def tampered(self: Bundle, work: object, *rest: object) -> object:
        if getattr(work, "step", None) == 2 and self._place.rank == rank:
            what()
        return honest(self, work, *rest)

    setattr(Bundle, place, tampered)
    try:
        yield
    finally:
        setattr(Bundle, place, honest)


@pytest.mark.parametrize("what", [die, fail], ids=["killed", "exception"])
@pytest.mark.parametrize("place", ["_forward", "_backward"])
@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_that_ends_ends_all_others(
    place: str, rank: int, what: Callable[[], None], tmp_path: Path
) -> None:
    config = two_stages(tmp_path, timeout_s=LIMIT_S, max_steps=0, epochs=50)
    start = time.monotonic()
    with at_step_2(place, rank, what):
        found = outcomes((2, 2), trains(config), tmp_path, 60)
    assert sorted(found) == [0, 1, 2, 3]
    assert ("a mistake in the recipe" in found[rank]) == (what is fail)
    # Not a speed test: a rank that hangs is killed by the harness only after a minute.
    assert time.monotonic() - start < 50


def test_a_full_disk_costs_a_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = checkpoint.write_tensors

    def full(path: Path, tensors: Mapping[str, Tensor]) -> Written:
        if "000000004" in str(path) and path.name.startswith("stage-1"):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return honest(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    config = two_stages(tmp_path, checkpoint_steps=2, max_steps=4)
    said = tmp_path / "said.txt"

    def main(env: RankEnv, store: Store) -> None:
        logging.basicConfig(filename=said, force=True)
        train(config, env, store)

    run_ranks((2,), main, tmp_path)
    assert len(losses_of(tmp_path)) == 4
    assert "no checkpoint of step 4" in said.read_text()
    paths = RunPaths(tmp_path / "run")
    assert [c.step for c in survey(paths).found] == [2]
    assert [f.name for f in paths.checkpoints.iterdir()] == ["step-000000002"]


def test_a_spare_rank_has_nothing_to_do(tmp_path: Path) -> None:
    config = two_stages(tmp_path, max_steps=2)

    def main(env: RankEnv, store: Store) -> None:
        train(config, env, store)
        assert (tmp_path / "run").exists() or env.rank == 2

    run_ranks((3,), main, tmp_path)
    assert len(losses_of(tmp_path)) == 2


def test_too_few_devices_are_the_same_error_on_every_rank(tmp_path: Path) -> None:
    config = two_stages(tmp_path, shape=(2, 2))

    def main(env: RankEnv, store: Store) -> None:
        join(config, env, store)

    found = outcomes((1, 2), main, tmp_path, 30)
    assert sorted(found) == [0, 1, 2]
    assert all("3 devices do not hold one bundle of shape 2,2" in t for t in found.values())
