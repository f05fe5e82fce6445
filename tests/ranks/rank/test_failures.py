"""A rank that dies ends the others in time; a full disk ends nobody."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import EXIT_RESUMABLE
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.run_folder.checkpoints import survey
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.pipeline.bundle import Bundle
from bundlerun.workers.rank.arrival import session
from bundlerun.workers.rank.arrival.open_store import open_store
from bundlerun.workers.rank.arrival.session import arrive, join
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.run.keeper import Keeper
from bundlerun.workers.state import checkpoint
from bundlerun.workers.state.tensor_file import Written
from bundlerun.workers.step import StepWork
from bundlerun.workers.sync.schemes import ways_of
from bundlerun.workers.train import train
from bundlerun.workers.trainer import Trainer
from tests.ranks.harness import free_port, outcomes, run_ranks
from tests.ranks.state.test_resume import trains
from tests.ranks.training.test_parity import CONFIG, NUM_STEPS, losses_of

LIMIT_S = 4.0


def two_stages(folder: Path, **changes: object) -> TrainConfig:
    config = replace(CONFIG, shape=Shape((1, 1)), cut=("second",), run_dir=str(folder / "run"))
    return replace(config, **changes)  # type: ignore[arg-type]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise ValueError("a mistake in the recipe")


@contextmanager
def at_step_2(place: str, rank: int, what: Callable[[], None]) -> Iterator[None]:
    """Injects `what` into one rank: `_forward`, `_backward` of a bundle in its third step."""
    honest = getattr(Bundle, place)

    def tampered(self: Bundle, step: Any, *rest: object) -> object:
        if step.work.step == 2 and self._place.rank == rank:
            what()
        return honest(self, step, *rest)

    setattr(Bundle, place, tampered)
    try:
        yield
    finally:
        setattr(Bundle, place, honest)


@contextmanager
def at_call(owner: object, name: str, rank: int, what: Callable[[], None]) -> Iterator[None]:
    """Injects `what` into one rank, where it first calls `name` of a class or module."""
    honest = getattr(owner, name)

    def tampered(first: Any, *rest: Any, **named: Any) -> object:
        place = rest[0] if name == "make_groups" else first._session.place
        if place.rank == rank:
            what()
        return honest(first, *rest, **named)

    setattr(owner, name, tampered)
    try:
        yield
    finally:
        setattr(owner, name, honest)


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


@pytest.mark.parametrize(
    ("owner", "name", "rank"),
    [
        (session, "make_groups", 0),
        (Trainer, "copy_from_first", 4),
        (Keeper, "resume", 2),
        (Trainer, "total", 5),
        (Trainer, "evaluate", 1),
        (Keeper, "save", 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_rank_that_dies_outside_a_step_ends_all_others(
    owner: object, name: str, rank: int, tmp_path: Path
) -> None:
    config = replace(
        CONFIG,
        shape=Shape((1, 1, 1)),
        cut=("second", "third"),
        run_dir=str(tmp_path / "run"),
        timeout_s=LIMIT_S,
        max_steps=0,
        validate=True,
    )

    def main(env: RankEnv, store: Store) -> None:
        store.set_timeout(timedelta(seconds=LIMIT_S))  # as `open_store` does
        train(config, env, store)

    with at_call(owner, name, rank, die):
        found = outcomes((3, 3), main, tmp_path, 50)
    assert sorted(found) == list(range(6))


def test_a_frozen_rank_ends_all_others_in_time(tmp_path: Path) -> None:
    thawed = tmp_path / "thawed"

    def ended() -> int:
        return len(list(tmp_path.glob("round-*/rank*.txt")))

    def freeze() -> None:
        frozen = os.getpid()
        if os.fork() == 0:
            deadline = time.monotonic() + 40
            while ended() < 3 and time.monotonic() < deadline:
                time.sleep(0.05)
            thawed.write_text(f"{ended()} others had ended")
            os.kill(frozen, signal.SIGKILL)
            os._exit(0)
        os.kill(frozen, signal.SIGSTOP)

    config = two_stages(tmp_path, timeout_s=1.5, max_steps=0, epochs=50)
    with at_step_2("_forward", 3, freeze):
        found = outcomes((2, 2), trains(config), tmp_path, 50)
    assert sorted(found) == [0, 1, 2, 3]
    assert thawed.read_text() == "3 others had ended"


def test_a_disk_on_which_nothing_can_be_written_any_more_does_not_end_the_run_early(
    tmp_path: Path,
) -> None:
    config = two_stages(tmp_path, checkpoint_steps=2, max_steps=NUM_STEPS)
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    def main(env: RankEnv, store: Store) -> None:
        logging.basicConfig(handlers=[Listener()], force=True, level=logging.INFO)
        honest = Trainer.step

        def step(self: Trainer, work: StepWork, *rest: object) -> object:
            if work.step == 3:
                _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
            return honest(self, work, *rest)  # type: ignore[arg-type]

        Trainer.step = step  # type: ignore[method-assign, assignment]
        assert train(config, env, store) == EXIT_RESUMABLE
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        for what in ("no checkpoint of step 4", "metrics.jsonl", "summary.json", "on no disk"):
            assert (env.rank == 1) == any(what in line for line in said), what

    run_ranks((2,), main, tmp_path)
    assert len(losses_of(tmp_path)) == 2  # a step is told behind the next
    assert [c.step for c in survey(RunPaths(tmp_path / "run")).found] == [2]


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
        assert train(config, env, store) == EXIT_RESUMABLE

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


def test_a_spare_rank_that_hosts_the_store_stays_to_the_end(tmp_path: Path) -> None:
    config = two_stages(tmp_path, max_steps=2)
    port = free_port()

    def main(env: RankEnv, store: Store) -> None:
        os.environ |= {
            "RANK": str(env.rank),
            "WORLD_SIZE": "3",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        train(config, env, open_store(replace(env, master_port=port), 30.0))

    assert Topology(Shape((1, 1)), (1, 2)).spare_ranks == (0,)
    run_ranks((1, 2), main, tmp_path)
    assert len(losses_of(tmp_path)) == 2


def test_too_few_devices_are_the_same_error_on_every_rank(tmp_path: Path) -> None:
    config = two_stages(tmp_path, shape=Shape((2, 2)))

    def main(env: RankEnv, store: Store) -> None:
        arrival = arrive(config, env, store)
        join(config, arrival, ways_of(config, arrival).members)

    found = outcomes((1, 2), main, tmp_path, 30)
    assert sorted(found) == [0, 1, 2]
    assert all("3 devices do not hold one bundle of shape 2,2" in t for t in found.values())
