"""Runs whose ranks are killed at a named place in a named step, and what they go on from."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.model.norms.batchnorm import StatisticsPool
from bundlerun.workers.pipeline.bundle import Bundle
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.snapshot.restore_plan import Piece, newest_state
from bundlerun.workers.snapshot.slot import Slot, read_piece
from bundlerun.workers.sync.rank_sync import RankSync
from bundlerun.workers.train import train
from tests.ranks.harness import outcomes
from tests.ranks.reference import Reference
from tests.ranks.state.test_resume import history
from tests.ranks.training.test_parity import (
    CUTS,
    MIXED,
    assert_close,
    assert_same_average,
    losses_of,
)

NUM_STEPS = 7  # one epoch of five steps, and two


KILLED_AT = 3


SNAPSHOTS = replace(MIXED, max_steps=NUM_STEPS, snapshot_steps=1, share="equal")


Widths = tuple[int, ...]


Nodes = tuple[int, ...]


Act = Callable[[], None]


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
    "sync": (RankSync, "finish", counted),
    "optimizer": (StatisticsPool, "apply", counted),
    "copy": (Slot, "seal", of_label),
}


def steps_in(shm: Path) -> list[int]:
    """The step of the newest whole state in the memory of all nodes together."""
    found = [read_piece(path) for path in shm.glob("*/*.piece")]
    shared = [p for p in found if p is not None and not p.label.situation]
    state = newest_state([[Piece(p.label, p.layout.specs) for p in shared]])
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


def lose(shm: Path, nodes: Iterable[int]) -> None:
    """Takes away what is in the memory of some nodes."""
    for node in nodes:
        for folder in shm.glob(f"*-node{node}"):
            shutil.rmtree(folder)


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
    assert_same_average(folder, reference)
