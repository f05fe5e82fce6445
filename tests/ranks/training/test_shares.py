"""Micro-batches that are shared out anew while a run goes: the numbers stay those of the model.

What ranks have computed is made up, so that it does not depend on the machine when they change.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed import Store

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.workers.data.feed import Feed
from bundlerun.workers.data.order import Speeds
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.shares import shares
from bundlerun.workers.shares.spent import Spending
from bundlerun.workers.train import train
from tests.ranks.harness import run_ranks
from tests.ranks.reference import train_unsplit
from tests.ranks.state.test_resume import history
from tests.ranks.training.test_parity import CONFIG, CUTS, NUM_STEPS, assert_close, final_tensors

STEPS = 40
SLOW_FROM = 12


class MadeUp(Spending):
    """A rank that says that it takes 10 ms for a micro-batch, or 30 ms from a step on."""

    is_slow = False
    num_steps = 0
    made_up_s = 0.0

    def end_step(self, num_microbatches: int) -> None:
        super().end_step(num_microbatches)
        self.num_steps += 1
        ms = 30 if self.is_slow and self.num_steps > SLOW_FROM else 10
        self.made_up_s += num_microbatches * ms / 1000
        self._compute_s, self._wall_s = self.made_up_s, self.num_steps / 2


@pytest.mark.parametrize(
    ("widths", "nodes", "slow", "loader_workers", "counts"),
    [
        # Of six, where one bundle takes three times as long.
        ((1,), (1, 1), 1, 0, [5, 1]),
        ((1,), (2, 1), 0, 2, [1, 3, 2]),
        ((1, 1), (2, 2), 2, 0, [5, 1]),
        ((2, 1), (3, 3), 5, 1, [5, 1]),
    ],
)
def test_a_slow_rank_changes_who_does_what_and_no_number(
    widths: tuple[int, ...],
    nodes: tuple[int, ...],
    slow: int,
    loader_workers: int,
    counts: list[int],
    tmp_path: Path,
) -> None:
    config = replace(
        CONFIG,
        shape=Shape(widths),
        cut=CUTS[len(widths)],
        share="measured",
        max_steps=STEPS,
        epochs=STEPS // NUM_STEPS,
        loader_workers=loader_workers,
        run_dir=str(tmp_path / "run"),
    )

    def main(env: RankEnv, store: Store) -> None:
        told: list[tuple[int, list[int]]] = []
        share_from = Feed.share_from

        def note(self: Feed, step: int, speeds: Speeds) -> None:
            share_from(self, step, speeds)
            told.append((step, self.counts()))

        Feed.share_from = note  # type: ignore[method-assign]
        MadeUp.is_slow = env.rank == slow
        shares.Spending = MadeUp  # type: ignore[misc]
        train(config, env, store)
        (tmp_path / f"told-{env.rank}").write_text(json.dumps(told))

    run_ranks(nodes, main, tmp_path, timeout_s=120)
    topology = Topology(Shape(widths), nodes)
    told = [json.loads((tmp_path / f"told-{rank}").read_text()) for rank in topology.active_ranks]
    assert all(each == told[0] for each in told)
    ((step, found_counts),) = told[0]
    assert SLOW_FROM < step < SLOW_FROM + 20
    assert found_counts == counts
    rows = [row for row in history(tmp_path) if row["kind"] == "step"]
    assert sum(row["samples"] for row in rows) == CONFIG.synthetic_samples * STEPS // NUM_STEPS
    reference = train_unsplit(config, STEPS)
    assert [row["loss"] for row in rows] == pytest.approx(reference.losses, rel=1e-9)
    found = final_tensors(tmp_path)
    state = {n.removeprefix("model."): t for n, t in found.items() if n.startswith("model.")}
    assert_close(state, reference.state, 1e-8)
