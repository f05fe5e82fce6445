"""A round takes the shape and the cut that are foreseen to be the fastest, on all ranks alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from torch.distributed import Store

from bundlerun.launcher.layout.prospects import NO_CUT, Cut, Prospect, Prospects
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.rank.arrival.session import arrive
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.train import train
from tests.ranks.harness import run_ranks
from tests.ranks.reference import train_unsplit
from tests.ranks.state.killed_runs import NUM_STEPS, SNAPSHOTS
from tests.ranks.training.test_parity import CUTS, assert_close, final_tensors, losses_of

FAMILY = Shape.parse("1,1,1|1,1|1")
CUT = Cut(tuple(CUTS[2]), "graph")


def foreseen(best: str) -> str:
    """On three nodes of one device; cut as nobody would by operations alone."""
    return Prospects(
        tuple(
            Prospect(
                devices=(1, 1, 1),
                shape=one,
                samples_per_s=2.0 if str(one) == best else 1.0,
                cut=CUT if one.num_stages == 2 else NO_CUT,
            )
            for one in FAMILY.family
        )
    ).to_text()


def test_the_first_rank_decides_for_all(tmp_path: Path) -> None:
    config = replace(SNAPSHOTS, shape=FAMILY, cut=(), run_dir=str(tmp_path / "run"))

    def main(env: RankEnv, store: Store) -> None:
        # What another one was told by its launcher decides nothing.
        text = foreseen("1,1" if env.rank == 0 else "1")
        arrival = arrive(config, replace(env, prospects=text), store)
        told = [str(arrival.topology.shape), arrival.cut.names, arrival.place.is_spare]
        (tmp_path / f"rank-{env.rank}").write_text(json.dumps(told))

    run_ranks((1, 1, 1), main, tmp_path)
    found = [json.loads((tmp_path / f"rank-{rank}").read_text()) for rank in range(3)]
    assert found == [["1,1", list(CUT.names), spare] for spare in (False, False, True)]


def test_it_trains_in_that_shape_as_the_unsplit_model(tmp_path: Path) -> None:
    config = replace(SNAPSHOTS, shape=FAMILY, cut=(), run_dir=str(tmp_path / "run"))

    def main(env: RankEnv, store: Store) -> None:
        train(config, replace(env, prospects=foreseen("1,1")), store)

    run_ranks((1, 1, 1), main, tmp_path)
    reference = train_unsplit(SNAPSHOTS, NUM_STEPS)
    state = {
        name.removeprefix("model."): tensor
        for name, tensor in final_tensors(tmp_path).items()
        if name.startswith("model.")
    }
    assert_close(state, reference.state, 1e-10)
    assert len(losses_of(tmp_path)) == NUM_STEPS
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert [row["shape"] for row in rows if row["kind"] == "start"] == ["1,1"]
