"""`--sync auto` measures, chooses alike on all replicas, and remembers."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import PrefixStore, Store

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.sync import calibrate, exchange, node_legs
from bundlerun.workers.sync.bucket import Bucket
from bundlerun.workers.sync.calibrate import (
    BUDGET_S,
    Calibration,
    Choice,
    read_choice,
    write_choice,
)
from bundlerun.workers.sync.legs import Finish
from tests.ranks.harness import run_ranks
from tests.ranks.sync.test_sync import make_sync

NODES = (2, 2)
TOPOLOGY = Topology(Shape((1,)), NODES)
CHOICE = Choice(scheme="sharded", milliseconds={"sharded": 1.5}, num_bytes=7, situation="here")


def slowed(owner: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds 10 ms to every bucket that goes through a leg."""
    honest = owner.begin  # type: ignore[attr-defined]

    def begin(self: object, bucket: Bucket) -> Finish:
        time.sleep(0.01)
        finish: Finish = honest(self, bucket)
        return finish

    monkeypatch.setattr(owner, "begin", begin)


def test_what_is_slow_is_not_chosen_and_all_replicas_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(env: RankEnv, store: Store) -> None:
        model = nn.Sequential(*(nn.Linear(200, 200) for _ in range(8)))

        def choice(name: str) -> Choice:
            start = time.monotonic()
            sync = make_sync(model, env, PrefixStore(name, store), TOPOLOGY, scheme="auto")
            # Generous: the budget is for one measurement on a machine that is free.
            assert time.monotonic() - start < 10 * BUDGET_S
            sync.close()
            assert sync.choice is not None
            return sync.choice

        with monkeypatch.context() as patch:
            slowed(exchange.AllReduce, patch)
            without_flat = choice("without flat")
        slowed(node_legs._SharedCollect, monkeypatch)
        without_hybrid = choice("without hybrid")
        assert without_flat.scheme != "flat"
        assert without_hybrid.scheme == "flat"
        assert set(without_flat.milliseconds) == {"local-master", "sharded", "flat"}
        write_choice(tmp_path / f"{env.rank}.json", without_flat)

    run_ranks(NODES, main, tmp_path)
    found = [read_choice(tmp_path / f"{rank}.json") for rank in range(4)]
    assert found == [found[0]] * 4


def test_opening_connections_is_not_in_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL takes seconds for it, more than all measurements are to take."""
    now, sizes = [0.0], []

    def measured(self: Calibration, chains: object, num_buckets: int) -> dict[str, float]:
        now[0] += 10 * BUDGET_S if not sizes else 0.01 * num_buckets
        sizes.append(num_buckets)
        return {"flat": 0.01 * num_buckets}

    monkeypatch.setattr(calibrate.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Calibration, "_round", measured)
    monkeypatch.setattr(Calibration, "_agreed", lambda self, seconds: seconds)
    cpu = torch.device("cpu")
    group: Any = SimpleNamespace(backend="gloo")
    buckets = [Bucket(list(nn.Linear(9, 9).parameters()), 0, cpu, None) for _ in range(5)]
    rounds, num_buckets = Calibration(group, buckets, "")._measure({})
    assert num_buckets == 5
    assert len(rounds) > 1


def test_a_known_choice_is_taken_where_it_fits_and_only_the_first_replicas(
    tmp_path: Path,
) -> None:
    def main(env: RankEnv, store: Store) -> None:
        model = nn.Linear(3, 3)

        def choice(name: str, known: Choice | None) -> Choice | None:
            sync = make_sync(
                model, env, PrefixStore(name, store), TOPOLOGY, scheme="auto", known=known
            )
            sync.close()
            return sync.choice

        measured = choice("first", CHOICE if env.rank else None)
        assert measured is not None
        assert measured.milliseconds != CHOICE.milliseconds
        remembered = replace(CHOICE, situation=measured.situation)
        assert choice("known", None if env.rank else remembered) == remembered
        other = choice("elsewhere", replace(remembered, situation="elsewhere"))
        assert other is not None
        assert other.milliseconds != CHOICE.milliseconds

    run_ranks(NODES, main, tmp_path)


def test_a_choice_survives_its_file_and_a_damaged_file_is_no_choice(tmp_path: Path) -> None:
    path = tmp_path / "sync" / "stage-0.json"
    assert read_choice(path) is None
    write_choice(path, CHOICE)
    assert read_choice(path) == CHOICE
    for damaged in (path.read_text()[:20], "[]", path.read_text().replace("sharded", "x"), "7"):
        path.write_text(damaged)
        assert read_choice(path) is None


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    write_choice(tmp_path / "file" / "stage-0.json", CHOICE)
