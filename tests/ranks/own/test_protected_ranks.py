"""Ranks of a protected loop: what they have alike and what not; how they go on after an end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import Store
from torch.nn.parallel import DistributedDataParallel

from bundlerun import Protection, protect
from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.rank.env import RankEnv
from tests.ranks.harness import run_ranks
from tests.ranks.own.launching import launched

FIRST, ALL = 4, 7
KEPT = Protection(snapshot_steps=1)


class Seen:
    """What a rank has seen itself."""

    def __init__(self) -> None:
        self.numbers: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"numbers": self.numbers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.numbers = list(state["numbers"])


def trained(folder: Path, rank: int, num_steps: int, fail_at: int = -1) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Dropout(0.2), nn.Linear(9, 3))
    torch.manual_seed(100 + rank)
    wrapped = DistributedDataParallel(model)
    optimizer, seen = torch.optim.Adam(model.parameters(), lr=0.02), Seen()
    with protect(wrapped, optimizer, run_dir=folder, each_rank=[seen], protection=KEPT) as run:
        for step in run.steps(num_steps):
            if step == fail_at:
                # As it is for the others where one is killed: nothing is unwound.
                run.__dict__["_parts"].snapshots.finish_copy(5.0)
                os._exit(0)
            optimizer.zero_grad()
            loss = wrapped(torch.randn(6, 4)).square().mean()
            loss.backward()
            optimizer.step()
            seen.numbers.append(loss.item())
    return [*model.state_dict().values(), torch.tensor(seen.numbers), torch.rand(3)]


def start(tmp_path: Path, name: str, fail_at: int = -1, nodes: tuple[int, ...] = (1, 1)) -> None:
    """Trains in a folder; each rank leaves what has come of it, and from which step on."""

    def main(env: RankEnv, store: Store) -> None:
        launched(env, store)
        found = trained(tmp_path / name, env.rank, ALL, fail_at)
        torch.save(found, tmp_path / f"{name}-{env.rank}.pt")

    run_ranks(nodes, main, tmp_path)


def loaded(tmp_path: Path, name: str, rank: int) -> list[torch.Tensor]:
    found: list[torch.Tensor] = torch.load(tmp_path / f"{name}-{rank}.pt")
    return found


def test_ranks_go_on_to_the_same_bits_each_with_its_own_draws(tmp_path: Path) -> None:
    # Two ranks: a sum of three depends on DDP's buckets, which it lays out anew in a second step.
    start(tmp_path, "whole")
    start(tmp_path, "failed", FIRST)
    start(tmp_path, "failed")
    for rank in range(2):
        whole, failed = (loaded(tmp_path, name, rank) for name in ("whole", "failed"))
        assert all(torch.equal(a, b) for a, b in zip(whole, failed, strict=True))
    others = [loaded(tmp_path, "whole", rank)[-2] for rank in range(2)]
    assert not torch.equal(others[0], others[1])


def test_other_ranks_go_on_with_what_all_have_alike(tmp_path: Path) -> None:
    start(tmp_path, "run", FIRST)
    start(tmp_path, "run", nodes=(1, 1, 1))
    # What a rank of two has seen is nobody's of three.
    assert [len(loaded(tmp_path, "run", rank)[-2]) for rank in range(3)] == [ALL - FIRST] * 3
    weights = [torch.cat([t.flatten() for t in loaded(tmp_path, "run", r)[:2]]) for r in range(3)]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_a_process_may_protect_one_loop_after_another(tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store) -> None:
        launched(env, store)
        for name in ("first", "second"):
            found = trained(tmp_path / name, env.rank, 2)
            assert len(found[-2]) == 2

    run_ranks((2,), main, tmp_path)


@pytest.mark.parametrize("what", ["form", "shape"])
def test_ranks_that_differ_in_what_they_should_have_alike_are_refused(
    what: str, tmp_path: Path
) -> None:
    def main(env: RankEnv, store: Store) -> None:
        launched(env, store)
        model, seen = nn.Linear(2, 3 + (env.rank if what == "shape" else 0)), Seen()
        seen.numbers = [float(env.rank)] if what == "form" else []
        text = r"'model.bias': it is \(3,\) float32 on rank 0 on node0 and \(4,\) float32 on rank"
        if what == "form":
            text = "'seen': it is one on rank 0 on node0 and another on rank 1 .*each_rank="
        with (
            pytest.raises(ConfigError, match=f"ranks differ in {text}"),
            protect(model, seen, run_dir=tmp_path / "run", protection=KEPT),
        ):
            pass

    run_ranks((2,), main, tmp_path)
